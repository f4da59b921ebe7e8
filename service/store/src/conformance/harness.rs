use std::sync::Arc;

use async_trait::async_trait;

use crate::contract::{NodeId, Store};
use crate::format::Formats;

/// Creates stores. It lives as long as the case, so it may own the folder or database of a store and delete it
/// when it is dropped.
#[async_trait]
pub trait Harness: Send + Sync {
    /// A store that has no data yet.
    async fn fresh(&self) -> Arc<dyn Store>;

    /// Advances the lane of a node past this number, as if the node's clock had been ahead. The node belongs to
    /// the store that was created last.
    async fn set_lane(&self, node: NodeId, last: i64);

    /// The store that was created last, as seen by a binary that reads only these formats and older ones.
    fn reading(&self, formats: Formats) -> Arc<dyn Store>;
}
