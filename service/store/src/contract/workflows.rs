//! Versions of workflows. A version is immutable once it is registered.

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::definition::Workflow;
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;

use super::{RegistryRequest, Result};
use crate::format::{Encoded, encode_workflow};

/// A registered version of a workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkflowVersion {
    pub namespace: Namespace,
    pub name: WorkflowName,
    /// 1, 2, 3…
    pub version: u32,
    /// The SHA-256 of the canonical definition before defaults are applied.
    pub digest: [u8; 32],
    /// The format of `definition`; see [`crate::format`].
    pub format: u16,
    pub definition: Bytes,
    pub created_at: Timestamp,
    /// When the version was retired. A retired version takes no new starts.
    pub retired_at: Option<Timestamp>,
}

/// A version to register. It becomes a new version unless it is equal to the latest one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVersion {
    pub namespace: Namespace,
    pub name: WorkflowName,
    pub digest: [u8; 32],
    /// The format of `definition`; see [`crate::format`].
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

/// Registers, reads and retires versions of workflows.
#[async_trait]
pub trait Workflows {
    /// Registers a definition. Returns the version that has it, and whether that version is new: a definition
    /// that equals the latest version that is not retired makes no new one. [`super::Error::NotFound`] if the
    /// namespace does not exist.
    async fn register(
        &self,
        new: &NewVersion,
        request: Option<&RegistryRequest>,
    ) -> Result<(WorkflowVersion, bool)>;

    /// The given version, or the latest one that is not retired if `version` is none.
    async fn workflow(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
    ) -> Result<Option<WorkflowVersion>>;

    /// The latest version of each workflow, in the order of names, starting above `after`.
    async fn list_workflows(
        &self,
        namespace: &Namespace,
        after: Option<&WorkflowName>,
        limit: usize,
    ) -> Result<Vec<WorkflowVersion>>;

    /// Newest first, starting below `before`.
    async fn list_versions(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<WorkflowVersion>>;

    /// Retires one version, or all of them if `version` is none. Returns the time at which that version, or the
    /// latest of all, was first retired. Idempotent. [`super::Error::NotFound`] if there is no such version.
    async fn retire(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
        request: Option<&RegistryRequest>,
    ) -> Result<Timestamp>;
}
