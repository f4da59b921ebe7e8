//! The reasons why a call to a store can fail.

/// The error of every call to a store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The call certainly took no effect. The same call may succeed later.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The commit was sent, but no answer arrived. The caller must send the same batch again before it answers
    /// any request that the batch contains.
    #[error("the outcome of the commit is unknown: {0}")]
    OutcomeUnknown(String),
    /// The node's lease was closed, so another node may have taken its executions. Nothing was written.
    #[error("the lease of the node was lost")]
    LeaseLost,
    #[error("not found")]
    NotFound,
    #[error("exists already")]
    AlreadyExists,
    /// The request id was used less than a day ago, by another operation or with another body.
    #[error("the request id was used with another body")]
    RequestIdReused,
    /// A compare-and-set found another version than the expected one.
    #[error("changed by another writer")]
    Conflict,
    /// The cursor belongs to another store, or to this store before it was restored from a dump.
    #[error("the cursor belongs to another store")]
    ForeignCursor,
    #[error("the cursor is malformed; use one that the service returned")]
    MalformedCursor,
    /// The store was written by a newer binary, or it is damaged.
    #[error("the store cannot be used: {0}")]
    Incompatible(String),
    /// Another process has the embedded store open.
    #[error("the store is in use by another process")]
    InUse,
    /// The store refuses the value itself. Sending the same value again will fail again.
    #[error("the store refuses the data: {0}")]
    Data(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
