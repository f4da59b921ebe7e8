//! Reading executions: whole histories to fold, and the index.

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::execution::State;
use recoup_core::id::{ExecutionId, Namespace, TransitionId, WorkflowName};
use recoup_core::time::Timestamp;

use super::{IndexRow, NodeId, Result};

#[derive(Clone, Debug, PartialEq)]
pub struct History {
    pub execution: ExecutionId,
    /// Whose transition won last and carried an index row; none if that node has left.
    pub owner: Option<NodeId>,
    /// From sequence 1 on, without a gap, unless the store is damaged.
    pub transitions: Vec<StoredTransition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTransition {
    pub sequence: u64,
    pub transition_id: TransitionId,
    pub format: u16,
    pub data: Bytes,
}

/// How far a history is: cheap to ask for many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub execution: ExecutionId,
    pub sequence: u64,
    pub state: State,
    pub owner: Option<NodeId>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListFilter {
    pub namespace: Option<Namespace>,
    /// Empty is all.
    pub states: Vec<State>,
    pub workflow: Option<WorkflowName>,
    /// Takes the type itself and those below it.
    pub error_type: Option<String>,
    pub key_prefix: Option<String>,
    /// Inclusive.
    pub started_after: Option<Timestamp>,
    /// Exclusive.
    pub started_before: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub execution: ExecutionId,
    pub index: IndexRow,
}

#[async_trait]
pub trait Executions {
    /// Whole histories. Those that do not exist are left out. After this, events that the asking
    /// node writes for these executions have feed positions behind all their earlier ones.
    async fn load(&self, node: NodeId, executions: &[ExecutionId]) -> Result<Vec<History>>;

    async fn heads(&self, executions: &[ExecutionId]) -> Result<Vec<Head>>;

    /// Executions of this node whose `wake_at` is not after `until`, earliest first.
    async fn due(&self, node: NodeId, until: Timestamp, limit: usize) -> Result<Vec<ExecutionId>>;

    /// Newest first, below `before`.
    async fn list(
        &self,
        filter: &ListFilter,
        before: Option<ExecutionId>,
        limit: usize,
    ) -> Result<Vec<Listed>>;

    /// The execution that holds, or last held, a key.
    async fn key_holder(&self, namespace: &Namespace, key: &str) -> Result<Option<ExecutionId>>;

    /// What a request id started, within its day.
    async fn started_by(
        &self,
        namespace: &Namespace,
        request_id: &str,
    ) -> Result<Option<(ExecutionId, u64)>>;
}
