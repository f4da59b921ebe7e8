//! Why a store did not do what it was asked.

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Certainly not done; may go through later.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// Sent, and no answer came. The same batch must be sent again before anything in it is
    /// answered.
    #[error("the outcome of the commit is unknown: {0}")]
    OutcomeUnknown(String),
    /// The node's lease was closed: another node may have taken its executions. Nothing was done.
    #[error("the lease of the node was lost")]
    LeaseLost,
    #[error("not found")]
    NotFound,
    #[error("exists already")]
    AlreadyExists,
    /// The request id was used within the day, by another operation or with another body.
    #[error("the request id was used with another body")]
    RequestIdReused,
    /// A compare-and-set met another version.
    #[error("changed by another writer")]
    Conflict,
    /// The cursor is of another store, or of a life of this one that ended with a restore.
    #[error("the cursor belongs to another store")]
    ForeignCursor,
    #[error("the cursor can not be read")]
    MalformedCursor,
    /// Written by a newer binary, or damaged.
    #[error("the store can not be used: {0}")]
    Incompatible(String),
    /// Another process has the embedded store open.
    #[error("the store is in use by another process")]
    InUse,
    /// The value itself is refused; it will be refused again.
    #[error("the store refuses the data: {0}")]
    Data(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
