use std::sync::Arc;

use async_trait::async_trait;

use crate::contract::{NodeId, Store};
use crate::format::Formats;

/// Makes stores. It lives as long as the case: what it owns (a folder, a database) may go with it.
#[async_trait]
pub trait Harness: Send + Sync {
    /// A store that nobody has written to.
    async fn fresh(&self) -> Arc<dyn Store>;

    /// Makes the lane of a node, in the store that was made last, go on behind this number, as if its
    /// clock had been ahead.
    async fn set_lane(&self, node: NodeId, last: i64);

    /// The store that was made last, as a binary has it that reads formats up to these.
    fn reading(&self, formats: Formats) -> Arc<dyn Store>;
}
