//! Maps failures of the database to what the caller must do.

use sqlx::postgres::{PgDatabaseError, PgSeverity};
use tokio_postgres::error::{DbError, Severity};

use crate::contract::Error;

/// Another transaction held the lock on a row, an index or a table for too long.
const LOCK_NOT_AVAILABLE: &str = "55P03";
const UNIQUE_VIOLATION: &str = "23505";
const DIVISION_BY_ZERO: &str = "22012";
const DISK_FULL: &str = "53100";

/// The reasons why a statement or a transaction did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server answered with an error, and the transaction is rolled back.
    Refused(Box<ServerError>),
    /// No answer arrived, so it is unknown what the server did.
    Lost(String),
    /// This store decided against it; the transaction is rolled back.
    Store(Error),
    /// Another writer interfered. The transaction has to be sent again.
    Again,
}

/// The server's error, from either driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerError {
    /// The SQLSTATE, which has five characters.
    pub code: String,
    pub message: String,
}

/// The class of a [`Failure::Refused`], which decides how it is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorClass {
    /// A row with this key exists already, and the store must find out whose it is.
    Taken,
    /// The value itself is refused, and would be refused again.
    Data,
    /// The fence failed: the node's lease is closed.
    Lease,
    /// A deadlock or a serialization failure. The transaction has to be sent again.
    Again,
    Other,
}

pub(super) fn class(error: &ServerError) -> ErrorClass {
    match error.code.as_str() {
        UNIQUE_VIOLATION => ErrorClass::Taken,
        // Only the fence divides.
        DIVISION_BY_ZERO => ErrorClass::Lease,
        code => match code.get(..2) {
            Some("22" | "23") => ErrorClass::Data,
            // For example, a row that is too large for an index.
            Some("54") => ErrorClass::Data,
            Some("40") => ErrorClass::Again,
            _ => ErrorClass::Other,
        },
    }
}

impl ServerError {
    fn refused(code: &str, message: &str) -> Failure {
        let error = Self { code: code.to_owned(), message: message.to_owned() };
        if code == DISK_FULL {
            // This is logged as an error because an operator must free space.
            tracing::error!(error = %text(&error), "the disk of the database is full");
        }
        Failure::Refused(Box::new(error))
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let fatal = |refused: &DbError| {
            matches!(refused.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
                || matches!(refused.severity(), "FATAL" | "PANIC")
        };
        match error.as_db_error() {
            // A fatal error ends the connection, so what the server did after it is unknown.
            Some(refused) if !fatal(refused) => {
                ServerError::refused(refused.code().code(), refused.message())
            }
            _ => Self::Lost(describe(&error)),
        }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => {
                match database.try_downcast_ref::<PgDatabaseError>() {
                    Some(refused)
                        if !matches!(refused.severity(), PgSeverity::Fatal | PgSeverity::Panic) =>
                    {
                        ServerError::refused(refused.code(), refused.message())
                    }
                    _ => Self::Lost(describe(&error)),
                }
            }
            sqlx::Error::Encode(_) => Self::Store(Error::Data(describe(&error))),
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::RowNotFound
            | sqlx::Error::TypeNotFound { .. } => {
                Self::Store(Error::Incompatible(describe(&error)))
            }
            _ => Self::Lost(describe(&error)),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl Failure {
    /// Whether a lock was not granted in time.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Refused(error) if error.code == LOCK_NOT_AVAILABLE)
    }

    pub fn class(&self) -> Option<ErrorClass> {
        match self {
            Self::Refused(error) => Some(class(error)),
            Self::Again => Some(ErrorClass::Again),
            Self::Lost(_) | Self::Store(_) => None,
        }
    }
}

/// For a call that may safely be repeated.
impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Store(error) => error,
            Failure::Lost(reason) => Self::Unavailable(reason),
            Failure::Again => {
                Self::Unavailable("the transaction conflicted with other writers".into())
            }
            Failure::Refused(error) => match class(&error) {
                ErrorClass::Data | ErrorClass::Taken => Self::Data(text(&error)),
                ErrorClass::Lease => Self::LeaseLost,
                ErrorClass::Again | ErrorClass::Other => Self::Unavailable(text(&error)),
            },
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Failure::from(error).into()
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Failure::from(error).into()
    }
}

pub(super) fn text(error: &ServerError) -> String {
    format!("{} ({})", error.message, error.code)
}

/// The drivers' errors carry the reason in their source.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
