//! Versions of workflows: immutable once they are registered.

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::definition::Workflow;
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;

use super::{RegistryRequest, Result};
use crate::format::{Encoded, encode_workflow};

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

#[async_trait]
pub trait Workflows {
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
}
