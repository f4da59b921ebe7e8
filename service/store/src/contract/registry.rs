//! What changes rarely: namespaces, workflow versions, subscriptions.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;

use super::Result;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceRow {
    pub name: Namespace,
    pub description: String,
    /// How long ended executions and their events are kept, counted from the end.
    pub retention: Duration,
    pub created_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkflowVersion {
    pub namespace: Namespace,
    pub name: WorkflowName,
    /// 1, 2, 3…
    pub version: u32,
    /// SHA-256 of the canonical definition before defaults.
    pub digest: [u8; 32],
    /// Of `definition`; see [`crate::format`].
    pub format: u16,
    pub definition: Bytes,
    pub created_at: Timestamp,
    /// No further start takes a retired version.
    pub retired_at: Option<Timestamp>,
}

/// A new version, unless the latest one is equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVersion {
    pub namespace: Namespace,
    pub name: WorkflowName,
    pub digest: [u8; 32],
    pub format: u16,
    pub definition: Bytes,
}

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
pub trait Registry {
    /// The store's clock.
    async fn now(&self) -> Result<Timestamp>;

    /// [`super::Error::AlreadyExists`] if the name is taken. `default` always exists.
    async fn create_namespace(
        &self,
        name: &Namespace,
        description: &str,
        retention: Duration,
    ) -> Result<NamespaceRow>;

    async fn namespace(&self, name: &Namespace) -> Result<Option<NamespaceRow>>;

    /// In the order of names, above `after`.
    async fn list_namespaces(
        &self,
        after: Option<&Namespace>,
        limit: usize,
    ) -> Result<Vec<NamespaceRow>>;

    /// The version that has this definition, and whether it is new: a definition equal to the latest
    /// one that is not retired makes none. [`super::Error::NotFound`] if there is no such namespace.
    async fn register(&self, new: &NewVersion) -> Result<(WorkflowVersion, bool)>;

    /// The latest version that is not retired, or the one that is named.
    async fn workflow(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
    ) -> Result<Option<WorkflowVersion>>;

    /// The latest version of each workflow, in the order of names, above `after`.
    async fn list_workflows(
        &self,
        namespace: &Namespace,
        after: Option<&WorkflowName>,
        limit: usize,
    ) -> Result<Vec<WorkflowVersion>>;

    /// Newest first, below `before`.
    async fn list_versions(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<WorkflowVersion>>;

    /// Retires one version, or all. Idempotent. [`super::Error::NotFound`] if there is none.
    async fn retire(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
    ) -> Result<()>;

    /// [`super::Error::AlreadyExists`] if the name is taken in its namespace.
    async fn create_subscription(
        &self,
        namespace: &Namespace,
        name: &str,
        format: u16,
        state: &Bytes,
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
    async fn delete_subscription(&self, namespace: &Namespace, name: &str) -> Result<()>;
}
