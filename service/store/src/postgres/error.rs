//! What a failure of the database means for the caller.

use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::contract::Error;

/// Why a statement or a transaction did not go through.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server answered, and the transaction is rolled back.
    Refused(Box<DbError>),
    /// No answer: what the server did is not known.
    Lost(String),
    /// Decided by us; the transaction is rolled back.
    Store(Error),
    /// Another writer came in between: send again.
    Again,
}

/// What to do about a [`Failure::Refused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
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

pub(super) fn refusal(error: &DbError) -> Refusal {
    let code = error.code();
    if *code == SqlState::UNIQUE_VIOLATION {
        return Refusal::Taken;
    }
    // Nothing else divides.
    if *code == SqlState::DIVISION_BY_ZERO {
        return Refusal::Lease;
    }
    match &code.code()[..2] {
        "22" | "23" => Refusal::Data,
        // A row of an index that is too large, and the like.
        "54" => Refusal::Data,
        "40" => Refusal::Again,
        _ => Refusal::Other,
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
                if *refused.code() == SqlState::DISK_FULL {
                    // A person must make room.
                    tracing::error!(error = %text(refused), "the disk of the database is full");
                }
                Self::Refused(Box::new(refused.clone()))
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
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused(error) => Some(refusal(error)),
            Self::Again => Some(Refusal::Again),
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
            Failure::Refused(error) => match refusal(&error) {
                Refusal::Data | Refusal::Taken => Self::Data(text(&error)),
                Refusal::Lease => Self::LeaseLost,
                Refusal::Again | Refusal::Other => Self::Unavailable(text(&error)),
            },
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Failure::from(error).into()
    }
}

pub(super) fn text(error: &DbError) -> String {
    format!("{} ({})", error.message(), error.code().code())
}

/// The driver's errors keep the reason in their source.
fn describe(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
