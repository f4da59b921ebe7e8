//! Reads of executions: their histories, which the engine folds into states, and their index rows.

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::execution::State;
use recoup_core::id::{ExecutionId, Namespace, TransitionId, WorkflowName};
use recoup_core::quarantine::Quarantine;
use recoup_core::time::Timestamp;

use super::{IndexRow, Named, NodeId, QuarantineRow, Release, Result};
use crate::format;

/// The history of one execution, or the part of it that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    pub execution: ExecutionId,
    /// The node that owns the execution: the last one that committed a transition with an index row, adopted the
    /// execution or released it from quarantine. None if the lease of that node is closed.
    pub owner: Option<NodeId>,
    /// The stored value of [`IndexRow::wake_at`].
    pub wake_at: Option<Timestamp>,
    /// The stored value of [`IndexRow::format`].
    pub format: u16,
    /// The transitions that follow [`Wanted::after`], without a gap unless the store is damaged.
    pub transitions: Vec<StoredTransition>,
    /// The latest quarantine of the execution, whether it is in force or released.
    pub quarantine: Option<QuarantineRow>,
}

/// An execution to read, and the part of its history that the caller knows already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub execution: ExecutionId,
    /// Only transitions with a higher sequence are read; 0 reads them all.
    pub after: u64,
}

impl Wanted {
    /// Asks for the whole history of an execution.
    pub fn whole(execution: ExecutionId) -> Self {
        Self { execution, after: 0 }
    }
}

impl History {
    /// The size of the data of all transitions, in bytes.
    pub fn bytes(&self) -> usize {
        self.transitions.iter().map(|transition| transition.data.len()).sum()
    }
}

/// One row of a history, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTransition {
    pub sequence: u64,
    pub transition_id: TransitionId,
    pub format: u16,
    /// The checksum that is stored in the row. It equals [`format::checksum`] of all other columns unless the
    /// row is damaged.
    pub checksum: u32,
    pub data: Bytes,
}

impl StoredTransition {
    /// Compares the checksum, then decodes the data of the row.
    pub fn decode(&self, execution: ExecutionId) -> Result<format::TransitionData, format::Error> {
        if self.checksum != self.expected_checksum(execution) {
            return Err(format::Error::Damaged);
        }
        format::decode_transition(self.format, &self.data)
    }

    /// The same row with the checksum that it must have as a row of `execution`.
    #[must_use]
    pub fn sealed(self, execution: ExecutionId) -> Self {
        Self { checksum: self.expected_checksum(execution), ..self }
    }

    fn expected_checksum(&self, execution: ExecutionId) -> u32 {
        format::checksum(execution, self.sequence, self.transition_id, self.format, &self.data)
    }
}

/// The last sequence, state and owner of an execution. Reading the heads of many executions is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub execution: ExecutionId,
    pub sequence: u64,
    pub state: Named<State>,
    pub owner: Option<NodeId>,
    /// Whether a quarantine of the execution is in force.
    pub quarantined: bool,
}

/// An execution whose owner asked to be reminded of it at a given time. The derived order is the order of
/// pages: earliest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    pub wake_at: Timestamp,
    pub execution: ExecutionId,
}

/// Selects executions. All conditions that are set must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListFilter {
    pub namespace: Option<Namespace>,
    /// Empty selects all states.
    pub states: Vec<State>,
    pub workflow: Option<WorkflowName>,
    /// Selects this error type and the types below it.
    pub error_type: Option<String>,
    pub key_prefix: Option<String>,
    /// Inclusive.
    pub started_after: Option<Timestamp>,
    /// Exclusive.
    pub started_before: Option<Timestamp>,
    /// Selects only executions in quarantine.
    pub quarantined: bool,
}

/// An execution in a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub execution: ExecutionId,
    pub index: IndexRow,
    /// The quarantine that is in force, if there is one.
    pub quarantine: Option<Quarantine>,
}

/// Reads of histories and of the index, and the release of a quarantine.
#[async_trait]
pub trait Executions {
    /// Loads whole histories: [`Self::load_within`] without a limit.
    async fn load(&self, node: NodeId, executions: &[ExecutionId]) -> Result<Vec<History>> {
        let wanted: Vec<_> = executions.iter().copied().map(Wanted::whole).collect();
        self.load_within(node, &wanted, usize::MAX).await
    }

    /// Loads histories, each from the point up to which the caller knows it.
    ///
    /// An execution without further transitions is in the answer, with an empty list. An execution that does
    /// not exist is left out. So is an execution whose data would bring the total above `bytes`, except that at
    /// least one existing execution is always read, whatever its size. The caller therefore has to ask again
    /// for everything that is missing from an answer, unless the answer is empty.
    ///
    /// After this call, the events that the asking node writes for the returned executions get feed positions
    /// after all earlier events of those executions, including the events of transitions that were not read.
    async fn load_within(
        &self,
        node: NodeId,
        wanted: &[Wanted],
        bytes: usize,
    ) -> Result<Vec<History>>;

    /// Reads at most `limit` transitions of one execution after the sequence `after`, in order. It is meant for
    /// readers: unlike [`Self::load`], it has no influence on the positions of later events. The answer is
    /// empty if the execution does not exist.
    async fn history(
        &self,
        execution: ExecutionId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<StoredTransition>>;

    /// The heads of these executions. Executions that do not exist are left out.
    async fn heads(&self, executions: &[ExecutionId]) -> Result<Vec<Head>>;

    /// The executions of this node whose `wake_at` is not later than `until`, earliest first, starting after
    /// the entry at which the last page ended. Executions in quarantine are left out, because they would be
    /// returned by every call. So are executions in a format that this binary cannot read.
    async fn due(
        &self,
        node: NodeId,
        until: Timestamp,
        after: Option<Due>,
        limit: usize,
    ) -> Result<Vec<Due>>;

    /// Newest first, starting below `before`.
    async fn list(
        &self,
        filter: &ListFilter,
        before: Option<ExecutionId>,
        limit: usize,
    ) -> Result<Vec<Listed>>;

    /// The index row of an execution.
    async fn indexed(&self, execution: ExecutionId) -> Result<Option<Listed>>;

    /// Ends a quarantine and makes the node the owner of the execution, in one transaction.
    ///
    /// If `release` carries the same request as the latest release, nothing changes. If it carries the same
    /// request id with another digest, the answer is [`super::Error::RequestIdReused`]. Otherwise the answer is
    /// [`super::Error::NotFound`] if no quarantine is in force.
    async fn release_quarantine(
        &self,
        node: NodeId,
        execution: ExecutionId,
        release: &Release,
    ) -> Result<()>;

    /// The execution that holds the key, or that held it last.
    async fn key_holder(&self, namespace: &Namespace, key: &str) -> Result<Option<ExecutionId>>;

    /// The execution that a request id started or was settled on, and the digest of that request, for a day.
    async fn started_by(
        &self,
        namespace: &Namespace,
        request_id: &str,
    ) -> Result<Option<(ExecutionId, u64)>>;
}
