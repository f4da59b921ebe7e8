//! Reading executions: whole histories to fold, and the index.

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::execution::State;
use recoup_core::id::{ExecutionId, Namespace, TransitionId, WorkflowName};
use recoup_core::quarantine::Quarantine;
use recoup_core::time::Timestamp;

use super::{IndexRow, Named, NodeId, QuarantineRow, Release, Result};
use crate::format;

#[derive(Clone, Debug, PartialEq)]
pub struct History {
    pub execution: ExecutionId,
    /// Whose transition won last and carried an index row; none if that node has left.
    pub owner: Option<NodeId>,
    /// [`IndexRow::wake_at`] as it is stored.
    pub wake_at: Option<Timestamp>,
    /// [`IndexRow::format`] as it is stored.
    pub format: u16,
    /// From the first one after [`Wanted::after`] on, without a gap, unless the store is damaged.
    pub transitions: Vec<StoredTransition>,
    /// The last one, be it in force or released.
    pub quarantine: Option<QuarantineRow>,
}

/// An execution to read, and how much of it the caller knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub execution: ExecutionId,
    /// Only transitions with higher sequences are read; 0 reads all.
    pub after: u64,
}

impl Wanted {
    pub fn whole(execution: ExecutionId) -> Self {
        Self { execution, after: 0 }
    }
}

impl History {
    /// Of the data of its transitions.
    pub fn bytes(&self) -> usize {
        self.transitions.iter().map(|transition| transition.data.len()).sum()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTransition {
    pub sequence: u64,
    pub transition_id: TransitionId,
    pub format: u16,
    /// As the row has it: [`format::checksum`] of all the other columns, unless the row is damaged.
    pub checksum: u32,
    pub data: Bytes,
}

impl StoredTransition {
    /// What the row holds, after its checksum was compared.
    pub fn decode(&self, execution: ExecutionId) -> Result<format::TransitionData, format::Error> {
        if self.checksum != self.expected_checksum(execution) {
            return Err(format::Error::Damaged);
        }
        format::decode_transition(self.format, &self.data)
    }

    /// The row of this execution with the checksum that belongs to it.
    #[must_use]
    pub fn sealed(self, execution: ExecutionId) -> Self {
        Self { checksum: self.expected_checksum(execution), ..self }
    }

    fn expected_checksum(&self, execution: ExecutionId) -> u32 {
        format::checksum(execution, self.sequence, self.transition_id, self.format, &self.data)
    }
}

/// How far a history is: cheap to ask for many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub execution: ExecutionId,
    pub sequence: u64,
    pub state: Named<State>,
    pub owner: Option<NodeId>,
    /// Is in quarantine.
    pub quarantined: bool,
}

/// An execution that wants to be read at a time. In the order of pages: earliest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    pub wake_at: Timestamp,
    pub execution: ExecutionId,
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
    /// Only those in quarantine.
    pub quarantined: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub execution: ExecutionId,
    pub index: IndexRow,
    /// The one in force.
    pub quarantine: Option<Quarantine>,
}

#[async_trait]
pub trait Executions {
    /// Whole histories, as [`Self::load_within`], without a limit.
    async fn load(&self, node: NodeId, executions: &[ExecutionId]) -> Result<Vec<History>> {
        let wanted: Vec<_> = executions.iter().copied().map(Wanted::whole).collect();
        self.load_within(node, &wanted, usize::MAX).await
    }

    /// Histories, each after what the caller knows of it: one without further transitions is in the answer,
    /// with none. Those that do not exist are left out, and so are those with which the data of all
    /// would exceed `bytes`; one that exists is read at least, whatever its size. So what is missing from
    /// an answer has to be asked for again, unless the answer is empty. After this, events that the asking
    /// node writes for the executions of the answer have feed positions behind all their earlier ones,
    /// those of transitions that were not read included.
    async fn load_within(
        &self,
        node: NodeId,
        wanted: &[Wanted],
        bytes: usize,
    ) -> Result<Vec<History>>;

    /// At most `limit` transitions of one execution behind the sequence `after`, in order: for readers.
    /// Unlike [`Self::load`] it bears on nothing that anybody writes. Empty if there is no such execution.
    async fn history(
        &self,
        execution: ExecutionId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<StoredTransition>>;

    async fn heads(&self, executions: &[ExecutionId]) -> Result<Vec<Head>>;

    /// Executions of this node whose `wake_at` is not after `until`, earliest first, after the one where
    /// the last page ended. Without those in quarantine, which would come each time anew, and those in a
    /// format that this binary cannot read.
    async fn due(
        &self,
        node: NodeId,
        until: Timestamp,
        after: Option<Due>,
        limit: usize,
    ) -> Result<Vec<Due>>;

    /// Newest first, below `before`.
    async fn list(
        &self,
        filter: &ListFilter,
        before: Option<ExecutionId>,
        limit: usize,
    ) -> Result<Vec<Listed>>;

    /// What an execution is found by.
    async fn indexed(&self, execution: ExecutionId) -> Result<Option<Listed>>;

    /// Ends a quarantine and makes the node the owner of the execution, in one transaction.
    ///
    /// Nothing happens if the request is the one that released it last. [`super::Error::RequestIdReused`] if
    /// that had the same id but another digest; otherwise [`super::Error::NotFound`] if no quarantine
    /// is in force.
    async fn release_quarantine(
        &self,
        node: NodeId,
        execution: ExecutionId,
        release: &Release,
    ) -> Result<()>;

    /// The execution that holds, or last held, a key.
    async fn key_holder(&self, namespace: &Namespace, key: &str) -> Result<Option<ExecutionId>>;

    /// What a request id started, within its day.
    async fn started_by(
        &self,
        namespace: &Namespace,
        request_id: &str,
    ) -> Result<Option<(ExecutionId, u64)>>;
}
