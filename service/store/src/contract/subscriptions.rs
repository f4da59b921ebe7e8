//! Subscriptions are durable readers of the feed.

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::id::Namespace;
use recoup_core::time::Timestamp;

use super::{RegistryRequest, Result};

/// A durable reader of the feed. `recoup-core` decides the content of `state`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionRow {
    pub namespace: Namespace,
    pub name: String,
    /// Changes with every write. A writer passes the version that it has read.
    pub version: u64,
    pub format: u16,
    pub state: Bytes,
    pub created_at: Timestamp,
}

/// Creates, reads, updates and deletes subscriptions.
#[async_trait]
pub trait Subscriptions {
    /// Creates a subscription. [`super::Error::AlreadyExists`] if the name is taken in its namespace.
    async fn create_subscription(
        &self,
        namespace: &Namespace,
        name: &str,
        format: u16,
        state: &Bytes,
        request: Option<&RegistryRequest>,
    ) -> Result<SubscriptionRow>;

    /// Answers a request to create a subscription that exists already. The caller has checked that `row` is the
    /// subscription that the request asks for. The request is answered with this row, now and when it is
    /// repeated.
    async fn accept_subscription(
        &self,
        row: &SubscriptionRow,
        request: &RegistryRequest,
    ) -> Result<SubscriptionRow>;

    /// The subscription with this name, if it exists.
    async fn subscription(
        &self,
        namespace: &Namespace,
        name: &str,
    ) -> Result<Option<SubscriptionRow>>;

    /// In the order of names, starting above `after`.
    async fn list_subscriptions(
        &self,
        namespace: &Namespace,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<SubscriptionRow>>;

    /// Replaces `state` if the row still has the version `row.version`, and returns the new version.
    /// [`super::Error::Conflict`] if the version has changed, [`super::Error::NotFound`] if the subscription
    /// was deleted.
    async fn update_subscription(&self, row: &SubscriptionRow) -> Result<u64>;

    /// Deletes a subscription. [`super::Error::NotFound`] if it does not exist.
    async fn delete_subscription(
        &self,
        namespace: &Namespace,
        name: &str,
        request: Option<&RegistryRequest>,
    ) -> Result<()>;
}
