//! Translates the errors of SQLite into those of the contract.

use rusqlite::ErrorCode;

use crate::contract::Error;

/// Why a piece of work stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The work found its answer before it wrote anything.
    #[error(transparent)]
    Answer(#[from] Error),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

impl From<rusqlite::types::FromSqlError> for Failure {
    fn from(error: rusqlite::types::FromSqlError) -> Self {
        Self::Sqlite(error.into())
    }
}

impl Failure {
    /// The disk is full: an operator must free space.
    pub fn is_full(&self) -> bool {
        let Self::Sqlite(error) = self else { return false };
        error.sqlite_error_code() == Some(ErrorCode::DiskFull)
    }

    /// The reason, if the value itself is refused.
    pub fn refused(&self) -> Option<String> {
        match self {
            Self::Answer(_) => None,
            Self::Sqlite(error) => match error.sqlite_error_code() {
                Some(
                    ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch,
                ) => Some(error.to_string()),
                _ => match error {
                    rusqlite::Error::ToSqlConversionFailure(error) => Some(error.to_string()),
                    _ => None,
                },
            },
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        if let Some(reason) = failure.refused() {
            return Self::Data(reason);
        }
        match failure {
            Failure::Answer(error) => error,
            Failure::Sqlite(error) => match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) | None => {
                    Self::Incompatible(error.to_string())
                }
                Some(_) => Self::Unavailable(error.to_string()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn full_disk_is_recognised_and_unavailable() {
        let connection = Connection::open_in_memory().expect("it opens");
        connection.execute_batch("create table t (v)").expect("there is room");
        connection.pragma_update(None, "max_page_count", 3).expect("it is a setting");
        let full = connection.execute("insert into t values (zeroblob(100000))", []);
        let failure = Failure::from(full.expect_err("there is no room"));
        assert!(failure.is_full(), "{failure}");
        assert!(matches!(Error::from(failure), Error::Unavailable(_)));
        let other = connection.execute("insert into u values (1)", []).expect_err("no table");
        assert!(!Failure::from(other).is_full());
    }
}
