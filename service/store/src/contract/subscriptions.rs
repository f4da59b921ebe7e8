//! Subscriptions: durable readers of the feed.

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::id::Namespace;
use recoup_core::time::Timestamp;

use super::{RegistryRequest, Result};

/// A durable reader of the feed. What is in `state` is decided by `recoup-core`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionRow {
    pub namespace: Namespace,
    pub name: String,
    /// Changes with every write: a writer names the one it read.
    pub version: u64,
    pub format: u16,
    pub state: Bytes,
    pub created_at: Timestamp,
}

#[async_trait]
pub trait Subscriptions {
    /// [`super::Error::AlreadyExists`] if the name is taken in its namespace.
    async fn create_subscription(
        &self,
        namespace: &Namespace,
        name: &str,
        format: u16,
        state: &Bytes,
        request: Option<&RegistryRequest>,
    ) -> Result<SubscriptionRow>;

    /// A request to create a subscription that exists, and is the one that was wanted: the caller has
    /// judged that. It is answered with this row, now and when it is repeated.
    async fn accept_subscription(
        &self,
        row: &SubscriptionRow,
        request: &RegistryRequest,
    ) -> Result<SubscriptionRow>;

    async fn subscription(
        &self,
        namespace: &Namespace,
        name: &str,
    ) -> Result<Option<SubscriptionRow>>;

    /// In the order of names, above `after`.
    async fn list_subscriptions(
        &self,
        namespace: &Namespace,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<SubscriptionRow>>;

    /// Replaces `state` if the row still has `row.version`, and returns the new version;
    /// [`super::Error::Conflict`] if not, [`super::Error::NotFound`] if it was deleted.
    async fn update_subscription(&self, row: &SubscriptionRow) -> Result<u64>;

    /// [`super::Error::NotFound`] if there is none.
    async fn delete_subscription(
        &self,
        namespace: &Namespace,
        name: &str,
        request: Option<&RegistryRequest>,
    ) -> Result<()>;
}
