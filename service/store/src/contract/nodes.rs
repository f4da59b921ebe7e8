//! Nodes and their leases. Ownership is for speed: it says who dispatches and keeps timers. What is
//! correct is decided by the lock on the history alone.

use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;

use super::Result;

/// One life of one node: every start of a process gets a new one, greater than all before. Also the
/// lane of the feed that it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub i64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub node: NodeId,
    /// The store's clock when the lease was granted. Deadlines are in this time.
    pub now: Timestamp,
    pub expires_at: Timestamp,
    /// Changes when the database was restored or failed over: all cached state is void then.
    pub timeline: String,
}

#[async_trait]
pub trait Nodes {
    /// Begins a life. `address` is where other nodes reach this one.
    ///
    /// Its events have feed positions behind all that earlier lives of the same process wrote, and
    /// behind all of the executions that they had loaded: a batch that was under way when a life ended
    /// is sent again in the next, without another load.
    async fn join(&self, address: &str, ttl: Duration) -> Result<Lease>;

    /// Extends the lease. [`super::Error::LeaseLost`] if it was closed meanwhile.
    async fn renew(&self, node: NodeId, ttl: Duration) -> Result<Lease>;

    /// Ends a life: closes its lease, so that others may adopt at once.
    async fn leave(&self, node: NodeId) -> Result<()>;

    /// Closes the leases that have expired, then takes over at most `limit` active executions whose
    /// owner's lease is closed, and returns them; not those whose history has a transition in a format
    /// newer than [`crate::format::CURRENT`], which stay for a node that can read it. After this a closed node can commit nothing: its
    /// commits answer [`super::Error::LeaseLost`].
    async fn adopt(&self, node: NodeId, limit: usize) -> Result<Vec<ExecutionId>>;
}
