//! What changes rarely: namespaces, workflow versions, subscriptions.
//!
//! A mutation may carry a request id. Then it and its answer are one transaction: for a day, whoever
//! comes with the same id, operation and body gets the answer of the first, whatever has become of the
//! registry since, also beside the first or after its outcome was not known. Another operation or body
//! is [`super::Error::RequestIdReused`]. A mutation that is refused uses up no id.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::definition::Workflow;
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;

use super::{Error, Result};
use crate::format::{Encoded, encode_workflow};

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
    /// Of `definition`; see [`crate::format`].
    pub format: u16,
    pub definition: Bytes,
}

impl NewVersion {
    pub fn new(namespace: Namespace, digest: [u8; 32], workflow: &Workflow) -> Self {
        let Encoded { format, data } = encode_workflow(workflow);
        let name = workflow.name.clone();
        Self { namespace, name, digest, format, definition: data }
    }
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

/// The identity of a mutation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryRequest {
    /// In which the id is unique; empty for the creation of a namespace, which is in none.
    pub namespace: Namespace,
    pub request_id: String,
    /// Of the request's body.
    pub digest: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryOperation {
    CreateNamespace,
    RegisterWorkflow,
    RetireWorkflow,
    CreateSubscription,
    DeleteSubscription,
}

impl RegistryOperation {
    pub const ALL: [Self; 5] = [
        Self::CreateNamespace,
        Self::RegisterWorkflow,
        Self::RetireWorkflow,
        Self::CreateSubscription,
        Self::DeleteSubscription,
    ];

    /// As tables have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CreateNamespace => "CREATE_NAMESPACE",
            Self::RegisterWorkflow => "REGISTER_WORKFLOW",
            Self::RetireWorkflow => "RETIRE_WORKFLOW",
            Self::CreateSubscription => "CREATE_SUBSCRIPTION",
            Self::DeleteSubscription => "DELETE_SUBSCRIPTION",
        }
    }
}

/// What a mutation answered: enough to answer it again when the registry has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryAnswer {
    NamespaceCreated(NamespaceRow),
    WorkflowRegistered { name: WorkflowName, version: u32, is_new: bool },
    WorkflowRetired { retired_at: Timestamp },
    SubscriptionCreated(SubscriptionRow),
    SubscriptionDeleted,
}

impl RegistryAnswer {
    /// What answers like this.
    pub fn operation(&self) -> RegistryOperation {
        match self {
            Self::NamespaceCreated(_) => RegistryOperation::CreateNamespace,
            Self::WorkflowRegistered { .. } => RegistryOperation::RegisterWorkflow,
            Self::WorkflowRetired { .. } => RegistryOperation::RetireWorkflow,
            Self::SubscriptionCreated(_) => RegistryOperation::CreateSubscription,
            Self::SubscriptionDeleted => RegistryOperation::DeleteSubscription,
        }
    }

    pub(crate) fn into_namespace(self) -> Result<NamespaceRow> {
        match self {
            Self::NamespaceCreated(row) => Ok(row),
            other => other.is_misplaced(),
        }
    }

    /// Name, number, and whether it was new.
    pub(crate) fn into_version(self) -> Result<(WorkflowName, u32, bool)> {
        match self {
            Self::WorkflowRegistered { name, version, is_new } => Ok((name, version, is_new)),
            other => other.is_misplaced(),
        }
    }

    pub(crate) fn into_retired_at(self) -> Result<Timestamp> {
        match self {
            Self::WorkflowRetired { retired_at } => Ok(retired_at),
            other => other.is_misplaced(),
        }
    }

    pub(crate) fn into_subscription(self) -> Result<SubscriptionRow> {
        match self {
            Self::SubscriptionCreated(row) => Ok(row),
            other => other.is_misplaced(),
        }
    }

    fn is_misplaced<T>(&self) -> Result<T> {
        let operation = self.operation().as_str();
        Err(Error::Incompatible(format!("the answer to another operation is that of {operation}")))
    }
}

#[async_trait]
pub trait Registry {
    /// The store's clock.
    async fn now(&self) -> Result<Timestamp>;

    /// What the mutation with this request answered, if there was one within the day. Each mutation
    /// finds that by itself; this is for callers who would do work, or refuse, before they come to it.
    async fn answered(
        &self,
        operation: RegistryOperation,
        request: &RegistryRequest,
    ) -> Result<Option<RegistryAnswer>>;

    /// [`super::Error::AlreadyExists`] if the name is taken. `default` always exists.
    async fn create_namespace(
        &self,
        name: &Namespace,
        description: &str,
        retention: Duration,
        request: Option<&RegistryRequest>,
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
    async fn register(
        &self,
        new: &NewVersion,
        request: Option<&RegistryRequest>,
    ) -> Result<(WorkflowVersion, bool)>;

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

    /// Retires one version, or all, and answers when it, or the latest of all, was retired first.
    /// Idempotent. [`super::Error::NotFound`] if there is none.
    async fn retire(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
        request: Option<&RegistryRequest>,
    ) -> Result<Timestamp>;

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
