//! What a failure of the database means for the caller.

use sqlx::postgres::{PgDatabaseError, PgSeverity};
use tokio_postgres::error::{DbError, Severity};

use crate::contract::Error;

/// A row, an index or a table is locked by somebody else for too long.
const LOCK_NOT_AVAILABLE: &str = "55P03";
const UNIQUE_VIOLATION: &str = "23505";
const DIVISION_BY_ZERO: &str = "22012";
const DISK_FULL: &str = "53100";

/// Why a statement or a transaction did not go through.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server answered, and the transaction is rolled back.
    Refused(Box<ServerError>),
    /// No answer: what the server did is not known.
    Lost(String),
    /// Decided by us; the transaction is rolled back.
    Store(Error),
    /// Another writer came in between: send again.
    Again,
}

/// What the server answered, through either driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerError {
    /// Five characters of SQLSTATE.
    pub code: String,
    pub message: String,
}

/// The class of a [`Failure::Refused`], which decides what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorClass {
    /// A row is there already: find out whose.
    Taken,
    /// The value itself: it will be refused again.
    Data,
    /// The fence: the node's lease is closed.
    Lease,
    /// A deadlock or a serialization failure: send again.
    Again,
    Other,
}

pub(super) fn class(error: &ServerError) -> ErrorClass {
    match error.code.as_str() {
        UNIQUE_VIOLATION => ErrorClass::Taken,
        // Nothing else divides.
        DIVISION_BY_ZERO => ErrorClass::Lease,
        code => match code.get(..2) {
            Some("22" | "23") => ErrorClass::Data,
            // A row of an index that is too large, and the like.
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
            // A person must make room.
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
            // With a fatal error the connection ends, and with it the knowledge of what followed.
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
    /// What was to be locked stayed locked for too long.
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

/// Of a call that may be repeated freely.
impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Store(error) => error,
            Failure::Lost(reason) => Self::Unavailable(reason),
            Failure::Again => Self::Unavailable("other writers came in between".into()),
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

/// The drivers' errors keep the reason in their source.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
