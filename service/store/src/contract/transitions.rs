//! Appending transitions to histories. This is the hot path.

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::execution::{CompensationState, Phase, State};
use recoup_core::id::{ExecutionId, Namespace, TransitionId, WorkflowName};
use recoup_core::key::{OnEnded, OnRunning};
use recoup_core::time::Timestamp;

use super::{FeedRow, Named, NewQuarantine, NodeId, Result, TaskKey};
use crate::format;

impl Reminder {
    /// Roughly how many bytes a store writes for a reminder.
    pub const BYTES: usize = ROW_BYTES;
}

/// The bytes that a row takes besides its texts and data: ids, numbers, times, and its index entries.
pub(super) const ROW_BYTES: usize = 200;

/// Holds at most one transition per execution, and none of an execution that is in another batch in flight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    pub transitions: Vec<Transition>,
    /// Failure events that belong to no execution, such as a lost session. If an event with the same id exists
    /// already, that event is left unchanged.
    pub feed: Vec<FeedRow>,
    /// Executions to put into quarantine. Each appears at most once and has no transition in this batch. A
    /// quarantine whose data the store refuses is dropped.
    pub quarantined: Vec<NewQuarantine>,
    /// Reminders for executions that have no transition in this batch. A reminder changes nothing if another
    /// node owns the execution by now.
    pub reminders: Vec<Reminder>,
}

/// Sets [`IndexRow::wake_at`] without a transition. The owner either lets the execution leave memory, or has
/// read it and no longer needs a reminder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reminder {
    pub execution: ExecutionId,
    pub wake_at: Option<Timestamp>,
}

/// One decided change of an execution, with everything that is written together with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    pub execution: ExecutionId,
    /// 1 is the start of the execution.
    pub sequence: u64,
    pub transition_id: TransitionId,
    /// The format of `data`; see [`crate::format`].
    pub format: u16,
    pub data: Bytes,
    /// Written with the first transition, and then whenever one of its values changes. The committing node
    /// becomes the owner.
    pub index: Option<IndexRow>,
    /// The request id of a start, if it has one, with or without a key.
    pub request: Option<StartRequest>,
    pub feed: Vec<FeedRow>,
    /// Overflow rows that become void with this transition.
    pub overflow_done: Vec<TaskKey>,
    /// Whether retention may have deleted the execution since the store last confirmed that it exists.
    /// (Retention deletes no execution that ended less than a minute ago.) A store has to check for this only
    /// if it is set: checking each execution of each commit would cost a tenth of the commit.
    pub may_be_gone: bool,
}

impl Transition {
    /// The checksum of the row that this transition becomes.
    pub fn checksum(&self) -> u32 {
        let Self { execution, sequence, transition_id, format, data, .. } = self;
        format::checksum(*execution, *sequence, *transition_id, *format, data)
    }

    /// Roughly how many bytes a store writes for this transition.
    pub fn bytes(&self) -> usize {
        let Self { data, index, request, feed, overflow_done, .. } = self;
        let index = index.as_ref().map_or(0, IndexRow::bytes);
        let request = request.as_ref().map_or(0, |request| ROW_BYTES + request.request_id.len());
        let feed = feed.iter().map(FeedRow::bytes).sum::<usize>();
        let done = overflow_done.iter().map(|task| ROW_BYTES + task.path.as_str().len());
        ROW_BYTES + data.len() + index + request + feed + done.sum::<usize>()
    }
}

/// The values by which executions are found.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexRow {
    /// The highest format of any transition in the history. It is written with the transition that raises it,
    /// and says which nodes can run the execution.
    pub format: u16,
    pub namespace: Namespace,
    pub workflow: WorkflowName,
    pub version: u32,
    pub key: Option<String>,
    pub state: Named<State>,
    pub phase: Named<Phase>,
    pub compensation: Named<CompensationState>,
    pub run: u32,
    pub error_type: Option<String>,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    /// When the owner wants to be reminded of the execution, if that is too far in the future to keep the
    /// execution in memory.
    pub wake_at: Option<Timestamp>,
}

impl IndexRow {
    fn bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let names = self.namespace.as_str().len() + self.workflow.as_str().len();
        ROW_BYTES + names + text(&self.key) + text(&self.error_type)
    }

    /// Whether retention may delete the execution once it is old enough. False if a state is known only to a
    /// newer binary, because it may mean that work remains.
    pub(crate) fn is_done_for_good(&self) -> bool {
        use CompensationState::{Done, None, Pending};
        let compensation = self.compensation.known();
        self.state.known().is_some_and(State::is_ended)
            && compensation.is_some_and(|own| matches!(own, None | Pending | Done))
    }

    /// Whether work remains to be done. Nodes own and adopt only active executions.
    pub fn is_active(&self) -> bool {
        self.ended_at.is_none() || self.compensation == CompensationState::Running
    }
}

/// The identity of a call that starts an execution. It is kept for a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartRequest {
    pub namespace: Namespace,
    pub request_id: String,
    /// The digest of the request's body.
    pub digest: u64,
}

/// The verdict on one transition of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The transition is in the history, written by this commit or by an earlier copy of the same batch.
    Won,
    /// Another transition has its place, or retention has deleted the execution. Nothing of this transition was
    /// written.
    Lost,
    /// Its request id belongs to another start. Nothing of this transition was written.
    RequestTaken {
        execution: ExecutionId,
        digest: u64,
        /// Whether the request started this execution. False if it was settled on an execution that held its
        /// key.
        started: bool,
    },
    /// The store refuses the data of this transition. The others of the batch are not affected.
    Refused(String),
    /// Its place is free, but the execution is in quarantine. Nothing of this transition was written. A
    /// transition that was in flight while another node quarantined its execution may get another verdict: it
    /// may win.
    Quarantined,
}

/// A start that asks for a key. Its transition is the first of its execution and carries an index row.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyedStart {
    pub transition: Transition,
    pub key: String,
    pub on_running: OnRunning,
    pub on_ended: OnEnded,
}

/// The verdict on one start with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySettled {
    Won,
    /// As [`Settled::RequestTaken`].
    RequestTaken {
        execution: ExecutionId,
        digest: u64,
        started: bool,
    },
    /// The policies say that the start uses the execution that holds the key.
    UseExisting {
        execution: ExecutionId,
    },
    /// The policies reject the start. Neither the key nor the request id is used up.
    Rejected {
        execution: ExecutionId,
        state: State,
    },
    /// Only a newer binary knows the state of the execution that holds the key. Neither the key nor the request
    /// id is used up.
    TooNew {
        execution: ExecutionId,
    },
    Refused(String),
}

/// The execution that holds a key, and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub execution: ExecutionId,
    pub state: Named<State>,
    pub compensation: Named<CompensationState>,
}

impl Holder {
    /// The two values that [`recoup_core::key::decide`] needs. None if only a newer binary knows one of them.
    pub fn standing(&self) -> Option<(State, CompensationState)> {
        Some((self.state.known()?, self.compensation.known()?))
    }
}

/// Commits transitions and whatever belongs to them.
#[async_trait]
pub trait Transitions {
    /// Commits a batch in one transaction and returns a verdict for each transition, in the order of the batch.
    ///
    /// After [`super::Error::OutcomeUnknown`] the caller sends the identical batch again. It then gets the
    /// verdicts that the first copy would have returned, whichever copy was committed, because rows are
    /// recognised by their `transition_id`.
    ///
    /// A data error refuses only the transition that caused it.
    async fn commit(&self, node: NodeId, batch: &Batch) -> Result<Vec<Settled>>;

    /// Commits starts with keys. A call holds at most one start per key and per request id.
    /// [`recoup_core::key::decide`] decides on the state of the key's holder, which is read in the same
    /// transaction. The same call may be sent again, like a batch.
    ///
    /// A start that is rejected writes nothing. A start that uses an existing execution writes only its request
    /// id, which is settled on that execution.
    async fn start_keyed(&self, node: NodeId, starts: &[KeyedStart]) -> Result<Vec<KeySettled>>;
}
