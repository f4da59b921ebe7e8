//! Nodes and their leases. Ownership is for speed: it says which node dispatches tasks and keeps timers.
//! Correctness depends only on the lock on the history.

use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;

use super::Result;
use crate::format::Formats;

/// One life of one node. Each start of a server process gets a new id, greater than all earlier ones. It is
/// also the lane of the feed that this life writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub i64);

/// The answer that a node gets when it begins a life, and with each renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub node: NodeId,
    /// The database's clock. It may have gone back since the last answer.
    pub now: Timestamp,
    /// The highest time that any life of any node has reported to have reached.
    pub reached: Timestamp,
    /// Set for a life that has just begun: the time on the database's clock at which the previous life, of any
    /// node, was last renewed.
    pub renewed_before: Option<Timestamp>,
    /// Changes when the database was restored or failed over. A node must then discard all cached state.
    pub timeline: String,
    /// The highest formats that may be written: [`StoreFormats::writable`].
    pub writable: Formats,
}

/// The formats that a store may hold, and the formats that its nodes can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFormats {
    /// The highest formats that may be written. A new store begins with the newest formats of the binary that
    /// created it. After that only [`Nodes::finalize`] raises them, and nothing lowers them.
    pub writable: Formats,
    /// The nodes with an open lease, by id; at most [`NODES_MAX`].
    pub nodes: Vec<NodeFormats>,
}

impl StoreFormats {
    /// The formats that every node with an open lease can read. None if there is no such node.
    pub fn readable(&self) -> Option<Formats> {
        self.nodes.iter().map(|node| node.readable).reduce(Formats::min)
    }
}

/// The formats that one node can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFormats {
    pub node: NodeId,
    /// The address that the node gave when it joined.
    pub address: String,
    /// The newest formats that the node can read.
    pub readable: Formats,
}

/// The maximum number of nodes that [`StoreFormats`] lists.
pub const NODES_MAX: usize = 1000;

/// How many times a node has renewed its lease. The count grows as long as the node is alive, so another node
/// can tell by its own clock whether it still is. The clocks of two nodes need not agree for this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewals {
    pub node: NodeId,
    pub count: u64,
    /// The length of the node's lease.
    pub ttl: Duration,
}

/// The number at which [`Nodes::unread`] stops counting.
pub const UNREAD_MAX: u64 = 1000;

/// Lives of nodes, their leases, and the formats that they read.
#[async_trait]
pub trait Nodes {
    /// Begins a life and publishes the newest formats that this node can read. `address` is where other nodes
    /// reach it.
    ///
    /// The events of the new life have feed positions after everything that earlier lives of the same process
    /// wrote, and after all events of the executions that those lives had loaded. This matters because a batch
    /// that was in flight when a life ended is sent again in the next life, without another load.
    async fn join(&self, address: &str, ttl: Duration) -> Result<Lease>;

    /// Counts a renewal, and records that this node has reached `reached` in its own store time. Later lives
    /// and other nodes continue from that time. [`super::Error::LeaseLost`] if the lease has been closed
    /// meanwhile.
    async fn renew(&self, node: NodeId, ttl: Duration, reached: Timestamp) -> Result<Lease>;

    /// Ends a life by closing its lease, so that other nodes may adopt its executions at once.
    async fn leave(&self, node: NodeId) -> Result<()>;

    /// Closes each of the `silent` leases that has not been renewed since the caller saw it with this count.
    /// Then returns all open leases except the asking node's own. From then on a closed node cannot commit
    /// anything: its commits fail with [`super::Error::LeaseLost`]. This call fails in the same way if the
    /// lease of the asking node was closed.
    ///
    /// The caller decides which leases are silent: those whose count has not changed for the length of the
    /// lease, on the caller's monotonic clock. The database's clock is not consulted, so a step of that clock
    /// closes no lease.
    async fn leases(&self, node: NodeId, silent: &[Renewals]) -> Result<Vec<Renewals>>;

    /// Takes over at most `limit` active executions whose owner's lease is closed, and returns them. Executions
    /// in a format that this binary cannot read ([`super::IndexRow::format`]) are left for a node that can read
    /// them.
    async fn adopt(&self, node: NodeId, limit: usize) -> Result<Vec<ExecutionId>>;

    /// The number of active executions in a format that no node with an open lease can read, so that no node
    /// can run them. Counting stops at [`UNREAD_MAX`].
    async fn unread(&self) -> Result<u64>;

    /// The formats that may be written, and the formats that the nodes with an open lease can read.
    async fn formats(&self) -> Result<StoreFormats>;

    /// Raises the formats that may be written to the newest ones that every node with an open lease can read,
    /// and returns the result. Changes nothing if no node has an open lease, or if the formats are that high
    /// already. No node can join during the call.
    async fn finalize(&self) -> Result<StoreFormats>;
}
