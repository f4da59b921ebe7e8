//! Nodes and their leases. Ownership is for speed: it says who dispatches and keeps timers. What is
//! correct is decided by the lock on the history alone.

use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;

use super::Result;
use crate::format::Formats;

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
    /// The highest formats that may be written: [`StoreFormats::writable`].
    pub writable: Formats,
}

/// Which formats a store may hold, and which the nodes on it read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFormats {
    /// The highest that may be written. A new store begins with the newest of the binary that made it; after
    /// that only [`Nodes::finalize`] raises them, and nothing lowers them.
    pub writable: Formats,
    /// The nodes with an open lease, by id; at most [`NODES_MAX`].
    pub nodes: Vec<NodeFormats>,
}

impl StoreFormats {
    /// What all nodes with an open lease read; none without such a node.
    pub fn readable(&self) -> Option<Formats> {
        self.nodes.iter().map(|node| node.readable).reduce(Formats::min)
    }
}

/// What a node reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFormats {
    pub node: NodeId,
    /// As it joined with it.
    pub address: String,
    /// The newest that it reads.
    pub readable: Formats,
}

/// How many nodes [`StoreFormats`] lists.
pub const NODES_MAX: usize = 1000;

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
    /// Begins a life, and publishes the newest formats that it reads. `address` is where other nodes reach this
    /// one.
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

    /// Which formats may be written, and what the nodes read that are alive.
    async fn formats(&self) -> Result<StoreFormats>;

    /// Raises the formats that may be written to the newest that every node with an open lease reads, and answers
    /// with what holds then. Without such a node, and where they are that high already, it changes nothing. No
    /// node joins meanwhile.
    async fn finalize(&self) -> Result<StoreFormats>;
}
