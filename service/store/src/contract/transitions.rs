//! Appending to histories: the hot path.

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::execution::{CompensationState, Phase, State};
use recoup_core::id::{ExecutionId, Namespace, TransitionId, WorkflowName};
use recoup_core::key::{OnEnded, OnRunning};
use recoup_core::time::Timestamp;

use super::{FeedRow, Named, NewQuarantine, NodeId, Result, TaskKey};
use crate::format;

impl Reminder {
    /// About how much a store writes for it.
    pub const BYTES: usize = ROW_BYTES;
}

/// What a row takes besides its texts and data: ids, numbers, times, and its places in indexes.
pub(super) const ROW_BYTES: usize = 200;

/// At most one transition per execution, and no execution that is in another batch in flight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    pub transitions: Vec<Transition>,
    /// Failure events of no execution, such as a lost session. An event whose id is there already is
    /// left as it is.
    pub feed: Vec<FeedRow>,
    /// Executions that are put in quarantine, each at most once, none of them with a transition in
    /// this batch. One whose data the store refuses is dropped.
    pub quarantined: Vec<NewQuarantine>,
    /// Each of an execution without a transition in this batch. Where another node is the owner by
    /// now, it changes nothing.
    pub reminders: Vec<Reminder>,
}

/// Sets [`IndexRow::wake_at`] of an execution that does not move on: its owner lets it leave memory, or
/// has read it and needs no reminder any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reminder {
    pub execution: ExecutionId,
    pub wake_at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    pub execution: ExecutionId,
    /// 1 is the start.
    pub sequence: u64,
    pub transition_id: TransitionId,
    /// Of `data`; see [`crate::format`].
    pub format: u16,
    pub data: Bytes,
    /// Written with the first transition, then whenever something in it changes. The committing node
    /// becomes the owner.
    pub index: Option<IndexRow>,
    /// Of an unkeyed start that carries one.
    pub request: Option<StartRequest>,
    pub feed: Vec<FeedRow>,
    /// Overflow rows that this transition makes void.
    pub overflow_done: Vec<TaskKey>,
    /// Whether retention may have taken the execution since the store last spoke of it, as it takes none
    /// that ended less than a minute ago. Only then does a store have to look: a look at each execution
    /// of each commit would cost a tenth of it.
    pub may_be_gone: bool,
}

impl Transition {
    /// Of the row that it becomes.
    pub fn checksum(&self) -> u32 {
        let Self { execution, sequence, transition_id, format, data, .. } = self;
        format::checksum(*execution, *sequence, *transition_id, *format, data)
    }

    /// About how much a store writes for it.
    pub fn bytes(&self) -> usize {
        let Self { data, index, request, feed, overflow_done, .. } = self;
        let index = index.as_ref().map_or(0, IndexRow::bytes);
        let request = request.as_ref().map_or(0, |request| ROW_BYTES + request.request_id.len());
        let feed = feed.iter().map(FeedRow::bytes).sum::<usize>();
        let done = overflow_done.iter().map(|task| ROW_BYTES + task.path.as_str().len());
        ROW_BYTES + data.len() + index + request + feed + done.sum::<usize>()
    }
}

/// What executions are found by.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexRow {
    /// The highest format of a transition in its history. It is written with the transition that raises it,
    /// and says which nodes can go on with the execution.
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
    /// When the owner wants to be reminded, if that is too far away to stay in memory.
    pub wake_at: Option<Timestamp>,
}

impl IndexRow {
    fn bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let names = self.namespace.as_str().len() + self.workflow.as_str().len();
        ROW_BYTES + names + text(&self.key) + text(&self.error_type)
    }

    /// Whether retention may take it once it is old. False for names that only a newer binary knows: what they mean may
    /// be that something remains.
    pub(crate) fn is_done_for_good(&self) -> bool {
        use CompensationState::{Done, None, Pending};
        let compensation = self.compensation.known();
        self.state.known().is_some_and(State::is_ended)
            && compensation.is_some_and(|own| matches!(own, None | Pending | Done))
    }

    /// Whether something remains to be done: what nodes own and adopt.
    pub fn is_active(&self) -> bool {
        self.ended_at.is_none() || self.compensation == CompensationState::Running
    }
}

/// The identity of a call that starts: kept for a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartRequest {
    pub namespace: Namespace,
    pub request_id: String,
    /// Of the request's body.
    pub digest: u64,
}

/// How one transition of a batch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is in the history, by this commit or by an earlier copy of the same batch.
    Won,
    /// Another transition has its place, or there is no such execution any more: retention took it.
    /// Nothing of it was written.
    Lost,
    /// Its request id belongs to another start. Nothing of it was written.
    RequestTaken {
        execution: ExecutionId,
        digest: u64,
        /// The request started the execution. False: it was settled on one that had its key.
        started: bool,
    },
    /// The store refuses its data; the others of the batch are not affected.
    Refused(String),
    /// Its place is free, but the execution is in quarantine. Nothing of it was written. Not said of
    /// a transition that was under way while another node quarantined its execution: it may win.
    Quarantined,
}

/// A start that wants a key. Its transition is the first of its execution and carries an index row.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyedStart {
    pub transition: Transition,
    pub key: String,
    pub on_running: OnRunning,
    pub on_ended: OnEnded,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySettled {
    Won,
    /// As [`Settled::RequestTaken`].
    RequestTaken {
        execution: ExecutionId,
        digest: u64,
        started: bool,
    },
    /// The policies say to use the holder.
    UseExisting {
        execution: ExecutionId,
    },
    /// The policies say no. Neither key nor request id is used up.
    Rejected {
        execution: ExecutionId,
        state: State,
    },
    /// Only a newer binary knows the state of the execution that holds the key. Neither key nor request id is used
    /// up.
    TooNew {
        execution: ExecutionId,
    },
    Refused(String),
}

/// Which execution holds a key, and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub execution: ExecutionId,
    pub state: Named<State>,
    pub compensation: Named<CompensationState>,
}

impl Holder {
    /// What [`recoup_core::key::decide`] asks. None if only a newer binary knows it.
    pub fn standing(&self) -> Option<(State, CompensationState)> {
        Some((self.state.known()?, self.compensation.known()?))
    }
}

#[async_trait]
pub trait Transitions {
    /// Commits a batch in one transaction and answers for each transition, in the order of the
    /// batch. Sent again after [`super::Error::OutcomeUnknown`], the identical batch answers as if
    /// the first had answered: by `transition_id`, whichever copy was committed.
    ///
    /// A data error refuses only its culprit.
    async fn commit(&self, node: NodeId, batch: &Batch) -> Result<Vec<Settled>>;

    /// Starts with keys, at most one per key and request id in a call. Decided by
    /// [`recoup_core::key::decide`] on the holder's state in the same transaction. May be sent again
    /// like a batch. A start that uses an existing execution or is rejected writes nothing, but that
    /// `UseExisting` settles its request id on the holder.
    async fn start_keyed(&self, node: NodeId, starts: &[KeyedStart]) -> Result<Vec<KeySettled>>;
}
