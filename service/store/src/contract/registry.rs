//! The registry: namespaces, workflow versions and subscriptions.

use async_trait::async_trait;
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;

use super::{
    Error, NamespaceRow, Namespaces, RegistryOperation, RegistryRequest, Result, SubscriptionRow,
    Subscriptions, WorkflowVersion, Workflows,
};

/// The answer to a mutation. It holds enough to give the same answer again after the registry has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryAnswer {
    NamespaceCreated(NamespaceRow),
    WorkflowRegistered { name: WorkflowName, version: u32, is_new: bool },
    WorkflowRetired { retired_at: Timestamp },
    SubscriptionCreated(SubscriptionRow),
    SubscriptionDeleted,
}

impl RegistryAnswer {
    /// The operation that gives this kind of answer.
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

    /// The version as it was when this answer was given, and whether it was new.
    pub(crate) async fn into_version(
        self,
        workflows: &(impl Workflows + Sync),
        namespace: &Namespace,
    ) -> Result<(WorkflowVersion, bool)> {
        let Self::WorkflowRegistered { name, version, is_new } = self else {
            return self.is_misplaced();
        };
        let version = workflows.workflow(namespace, &name, Some(version)).await?;
        let version = version.ok_or(Error::NotFound)?;
        Ok((WorkflowVersion { retired_at: None, ..version }, is_new))
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

/// The parts of the store that change rarely, and the calls that its three parts share.
#[async_trait]
pub trait Registry: Namespaces + Workflows + Subscriptions {
    /// The time on the store's clock.
    async fn now(&self) -> Result<Timestamp>;

    /// The answer that this request got from its mutation, if there was one within the last day. Each mutation
    /// checks this itself. The call is for callers that would otherwise do work, or refuse the request, before
    /// they reach the mutation.
    async fn answered(
        &self,
        operation: RegistryOperation,
        request: &RegistryRequest,
    ) -> Result<Option<RegistryAnswer>>;
}
