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

/// What a node learns when it begins a life, and with each renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub node: NodeId,
    /// The database's clock, which may have gone back since the last time.
    pub now: Timestamp,
    /// The highest time that any life of any node has said it has reached.
    pub reached: Timestamp,
    /// Of a life that has just begun: what the database's clock said when the life before it, of
    /// whatever node, was last renewed.
    pub renewed_before: Option<Timestamp>,
    /// Changes when the database was restored or failed over: all cached state is void then.
    pub timeline: String,
}

/// How often a node has renewed its lease. The number grows for as long as the node is alive, so
/// another node can tell by its own clock whether it still is; no two clocks have to agree for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewals {
    pub node: NodeId,
    pub count: u64,
    /// The length of its lease.
    pub ttl: Duration,
}

/// How far [`Nodes::unread`] counts.
pub const UNREAD_MAX: u64 = 1000;

#[async_trait]
pub trait Nodes {
    /// Begins a life, and publishes the newest format of histories that it reads. `address` is where other
    /// nodes reach this one.
    ///
    /// Its events have feed positions behind all that earlier lives of the same process wrote, and
    /// behind all of the executions that they had loaded: a batch that was under way when a life ended
    /// is sent again in the next, without another load.
    async fn join(&self, address: &str, ttl: Duration) -> Result<Lease>;

    /// Counts a renewal and notes that this node has reached `reached` in its own store time: later
    /// lives, and other nodes, go on from there. [`super::Error::LeaseLost`] if the lease was closed
    /// meanwhile.
    async fn renew(&self, node: NodeId, ttl: Duration, reached: Timestamp) -> Result<Lease>;

    /// Ends a life: closes its lease, so that others may adopt at once.
    async fn leave(&self, node: NodeId) -> Result<()>;

    /// Closes those of the `silent` leases that have not been renewed since they were seen like this,
    /// then answers with all leases that are open, except the asking node's own. A closed node can
    /// commit nothing from then on: its commits answer [`super::Error::LeaseLost`]. So does this call
    /// for a node whose own lease was closed.
    ///
    /// The caller decides who is silent: whose count has not moved for the length of the lease, on the
    /// caller's monotonic clock. The database's clock has no say, so its steps close no lease.
    async fn leases(&self, node: NodeId, silent: &[Renewals]) -> Result<Vec<Renewals>>;

    /// Takes over at most `limit` active executions whose owner's lease is closed, and returns them;
    /// not those in a format that this binary cannot read ([`super::IndexRow::format`]), which stay for a
    /// node that can.
    async fn adopt(&self, node: NodeId, limit: usize) -> Result<Vec<ExecutionId>>;

    /// How many active executions are in a format that no node with an open lease reads, so that nobody
    /// goes on with them. At most [`UNREAD_MAX`] are counted.
    async fn unread(&self) -> Result<u64>;
}
