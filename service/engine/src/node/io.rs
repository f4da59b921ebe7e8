//! The inputs and outputs of a node.

use std::sync::Arc;
use std::time::Duration;

use recoup_core::command::{Command, Rejection, RequestId, StartExecution, TaskId};
use recoup_core::evolve::Transition;
use recoup_core::execution::{Execution, State};
use recoup_core::failure_event::Subject;
use recoup_core::id::{ExecutionId, Namespace};
use recoup_core::key::{OnEnded, OnRunning};
use recoup_core::outcome::Outcome;
use recoup_core::payload::Payload;
use recoup_core::plan::Plan;
use recoup_core::quarantine::{Quarantine, QuarantineReason};
use recoup_core::retry::Decision;
use recoup_core::time::Timestamp;
use recoup_store::format::{NotFinalized, Row};
use recoup_store::{
    Batch, Due, Head, IdleCredit, KeySettled, KeyedStart, Lease, NodeId, Nodes, OverflowTask,
    Peers, QuarantineRow, QueueName, Release, Renewals, Settled, TaskKey, Wanted,
};

use crate::task::HandedTask;

/// Identifies one stream or poll of a worker.
pub type WorkerKey = u64;

/// An input. `R` is how a caller is answered: a closure over a channel in the driver, a number in the simulation.
#[derive(Debug)]
pub enum Input<R> {
    /// The node's first life has begun, or a new one after its lease was lost.
    Joined(recoup_store::Result<Lease>),
    /// The answers of the store, from here on, carry the id of the life that asked.
    Renewed(NodeId, recoup_store::Result<Lease>),
    Start {
        spec: Box<StartSpec>,
        reply: R,
    },
    Submit {
        execution: ExecutionId,
        command: Command,
        request: Option<RequestId>,
        reply: R,
    },
    /// Answered when the execution has ended, or at `until` with the state that it has then.
    Await {
        execution: ExecutionId,
        until: Timestamp,
        reply: R,
    },
    Get {
        execution: ExecutionId,
        reply: R,
    },
    /// A worker offers to take tasks.
    Attach {
        worker: WorkerKey,
        offer: Offer,
    },
    /// The worker accepts this many more tasks.
    Credit {
        worker: WorkerKey,
        tasks: u32,
    },
    /// The server is about to stop and accepts no new connections. Callers that wait for the end of an
    /// execution are answered at once, and no worker is given up because it is silent.
    Close,
    /// The worker accepts no more tasks. Tasks that wait in its queues are left to other workers.
    Drain {
        worker: WorkerKey,
    },
    /// A message came from a session, so its worker is alive.
    Touch {
        session: SessionKey,
    },
    /// The worker's connection or poll has ended. The tasks that it holds stay with its session.
    Detach {
        worker: WorkerKey,
    },
    Heartbeat {
        task: TaskId,
        /// `None` keeps the details of the last heartbeat.
        details: Option<Payload>,
        reply: R,
    },
    /// The task is given back unstarted by the session that it was handed to, or by a worker without a
    /// session (an empty id). The attempt does not count. This changes nothing if a different worker has the
    /// task by now.
    Release {
        task: TaskId,
        session: String,
        reply: R,
    },
    /// The task was handed over at that time, and the hand-over never left the process.
    Undelivered {
        task: TaskId,
        handed_at: Timestamp,
    },
    /// A notice did not reach its session.
    Untold {
        session: SessionKey,
        task: TaskId,
        notice: Notice,
    },
    /// An operator releases an execution from quarantine.
    ReleaseQuarantine {
        execution: ExecutionId,
        release: Release,
        reply: R,
    },
    QuarantineReleased {
        node: NodeId,
        execution: ExecutionId,
        released: recoup_store::Result<()>,
        reply: R,
    },
    Committed(NodeId, recoup_store::Result<Vec<Settled>>),
    KeyedStarted(NodeId, recoup_store::Result<Vec<KeySettled>>),
    Loaded {
        node: NodeId,
        asked: Vec<Wanted>,
        loaded: Result<Reading, String>,
    },
    Adopted(NodeId, recoup_store::Result<Adopted>),
    Heads(NodeId, recoup_store::Result<Vec<Head>>),
    Due(NodeId, recoup_store::Result<Vec<Due>>),
    Published(NodeId, recoup_store::Result<Peers>),
    Claimed(NodeId, recoup_store::Result<Vec<OverflowTask>>),
    Overflowed {
        node: NodeId,
        tasks: Vec<OverflowTask>,
        /// The tasks that were left out, because another node owns their execution.
        result: recoup_store::Result<Vec<TaskKey>>,
    },
}

/// A start whose workflow version has been looked up.
#[derive(Clone, Debug)]
pub struct StartSpec {
    pub start: StartExecution,
    pub plan: Arc<Plan>,
    pub on_running: OnRunning,
    pub on_ended: OnEnded,
    pub request: Option<RequestId>,
    /// Answer when the execution has ended, or at this time, instead of when it has started: a start and an
    /// [`Input::Await`] in one.
    pub until: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub queues: Vec<QueueName>,
    /// Empty: all task types.
    pub task_types: Vec<String>,
    pub credit: u32,
    /// Without a session, attempts are limited only by their own timeouts.
    pub session: Option<Session>,
    pub worker: String,
    /// All tasks that the session holds. A task that was handed to the session and is missing here is handed
    /// out again, and any other stream or poll of the session is superseded. `None`: the worker does not list
    /// its tasks.
    pub held: Option<Vec<TaskId>>,
    /// The worker is detached with the first tasks that it gets: it is a poll.
    pub once: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub key: SessionKey,
    pub ttl: Duration,
}

/// Identifies a session. Workers choose the session ids, so the same id in two namespaces means two sessions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionKey {
    pub namespace: Namespace,
    pub id: String,
}

/// How much of a history was read.
#[derive(Clone, Debug)]
pub enum Read {
    /// The whole history, folded, with the plan that the execution follows.
    Whole(Box<Execution>, Arc<Plan>),
    /// The transitions after the one with the sequence `after`, which the node knew already.
    After { after: u64, transitions: Vec<Transition> },
}

impl Read {
    /// The sequence of the last transition.
    pub fn sequence(&self) -> u64 {
        match self {
            Self::Whole(state, _) => state.sequence,
            Self::After { after, transitions } => {
                transitions.last().map_or(*after, |last| last.sequence)
            }
        }
    }
}

/// One execution as it was read.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub execution: ExecutionId,
    pub owner: Option<NodeId>,
    /// When the store will remind the owner of the execution, as stored.
    pub wake_at: Option<Timestamp>,
    /// The highest format in the history, as the index row has it.
    pub format: u16,
    pub state: Result<Read, Unusable>,
    /// The last quarantine, whether in force or released.
    pub quarantine: Option<QuarantineRow>,
}

impl Loaded {
    /// When the last transition that was read was decided, in the store time of the node that decided it.
    pub fn decided_at(&self) -> Option<Timestamp> {
        match self.state.as_ref().ok()? {
            Read::Whole(state, _) => Some(state.decided_at),
            Read::After { transitions, .. } => transitions.last().map(|last| last.decided_at),
        }
    }
}

/// The result of a call to read executions.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub found: Vec<Loaded>,
    /// Executions that did not fit into one answer and must be asked for again.
    pub rest: Vec<ExecutionId>,
}

/// Why an execution cannot proceed, on this node or on any.
#[derive(Clone, Debug)]
pub enum Unusable {
    /// It is in quarantine already.
    Quarantined(Quarantine),
    /// It must be put in quarantine.
    Damaged(Box<Damage>),
    /// A newer binary wrote it. It is not damaged; this node leaves it alone.
    Newer(String),
}

/// What is wrong with an execution, and what is known about it nevertheless.
#[derive(Clone, Debug)]
pub struct Damage {
    pub reason: QuarantineReason,
    pub detail: String,
    pub namespace: Namespace,
    pub subject: Subject,
}

/// The result of a search for executions without an owner.
#[derive(Debug)]
pub struct Adopted {
    /// The open leases of other nodes.
    pub leases: Vec<Renewals>,
    /// Executions that this node now owns.
    pub executions: Vec<ExecutionId>,
}

impl Adopted {
    /// Closes the silent leases and takes over executions that have no owner.
    pub async fn ask(
        store: &(impl Nodes + ?Sized),
        node: NodeId,
        silent: &[Renewals],
        limit: usize,
    ) -> recoup_store::Result<Self> {
        let leases = store.leases(node, silent).await?;
        Ok(Self { leases, executions: store.adopt(node, limit).await? })
    }
}

#[derive(Debug)]
pub enum Output<R> {
    Join,
    Renew {
        node: NodeId,
        /// The node's store time.
        reached: Timestamp,
    },
    Commit(NodeId, Arc<Batch>),
    StartKeyed(NodeId, Arc<Vec<KeyedStart>>),
    Load(NodeId, Vec<Wanted>),
    Adopt {
        node: NodeId,
        /// Leases to close first, unless they have been renewed in the meantime.
        silent: Vec<Renewals>,
        limit: usize,
    },
    Heads(NodeId, Vec<ExecutionId>),
    Due(NodeId, Timestamp, Option<Due>, usize),
    Publish(NodeId, Vec<IdleCredit>),
    Claim {
        node: NodeId,
        idle: Vec<IdleCredit>,
        limit: usize,
        lease: Duration,
        now: Timestamp,
    },
    Overflow(NodeId, Vec<OverflowTask>),
    WithdrawOverflow(Vec<TaskKey>),
    ReleaseQuarantine {
        node: NodeId,
        execution: ExecutionId,
        release: Release,
        /// Returned with the answer.
        reply: R,
    },
    Reply {
        reply: R,
        answer: Result<Answer, Refusal>,
    },
    Tell {
        worker: WorkerKey,
        message: WorkerMessage,
    },
    /// Failure events were committed.
    FeedWritten,
}

#[derive(Clone, Debug)]
pub enum Answer {
    /// The state right after the command was committed. `is_own` is true if the request started this
    /// execution, now or when it was first sent. It is false if the start was answered with an existing
    /// execution that had the key.
    Done {
        outcome: Box<Outcome>,
        is_own: bool,
    },
    /// A worker's report about a task is committed.
    Recorded {
        /// The sequence of the execution's last transition at that moment.
        sequence: u64,
        /// The run, or a step around the task, is being stopped, so the worker should stop its work.
        cancel_requested: bool,
        /// The retry decision, if the command reported a failed attempt and was the one that ended it.
        decision: Option<Decision>,
    },
    Snapshot(Snapshot),
    /// The answer to a heartbeat.
    Beat {
        cancel_requested: bool,
    },
    /// The answer to a release.
    Released,
}

/// A committed state, with what the owner knows beyond it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub state: Box<Execution>,
    pub plan: Arc<Plan>,
    /// The attempts that are with a worker now.
    pub live: Vec<LiveAttempt>,
    /// The last quarantine, which was released.
    pub quarantine: Option<QuarantineRow>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveAttempt {
    pub task: TaskId,
    pub worker: String,
    pub session: Option<String>,
    pub since: Timestamp,
    /// The details of its last heartbeat that had any.
    pub details: Option<Payload>,
}

#[derive(Clone, Debug)]
pub enum WorkerMessage {
    Tasks(Vec<HandedTask>),
    /// The run is ending. A result that the worker sends within the grace period still counts.
    CancelRequested(TaskId),
    /// The attempt is closed. No report of the worker counts any more.
    Closed(TaskId),
    /// The session's time to live has passed, and the worker was detached.
    Detached,
    /// Another stream or poll has attached for the session and listed what it holds, and this one was detached.
    Superseded,
}

/// A notice to a session about a task that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The run is ending. A result within the grace period still counts.
    CancelRequested,
    /// The attempt has ended. No result counts any more.
    Closed,
}

impl Notice {
    pub(super) fn message(self, task: TaskId) -> WorkerMessage {
        match self {
            Self::CancelRequested => WorkerMessage::CancelRequested(task),
            Self::Closed => WorkerMessage::Closed(task),
        }
    }
}

/// Why a node refused a request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Rejected(Rejection),
    #[error("the request id was used for another start")]
    RequestIdReused,
    #[error("the execution key is held by {execution}, which is {state}")]
    KeyHeld { execution: ExecutionId, state: State },
    /// Nothing was done. Try again after the delay.
    #[error("the node is overloaded; try again later")]
    Overloaded { retry_after: Duration },
    #[error("the store refuses the data: {0}")]
    Refused(String),
    /// The execution does not proceed until an operator releases it.
    #[error("the execution is quarantined: {0}")]
    Quarantined(Quarantine),
    #[error("the execution is not quarantined")]
    NotQuarantined,
    /// A node of a newer version may be able to continue it.
    #[error("the execution was written by a newer server: {0}")]
    TooNew(String),
    /// The start needs a history format that the store may not hold yet. Nothing was done.
    #[error(transparent)]
    NotFinalized(#[from] NotFinalized),
    /// A decision about a start panicked. Nothing was done; the log has the details.
    #[error("the server failed to process the start; its log has the details")]
    Failed,
    /// Nothing was done.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The change is under way to the store and may still take effect.
    #[error("the store did not confirm in time whether the call took effect")]
    OutcomeUnknown,
    #[error("the node is stopping")]
    Stopping,
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            // A start begins in the newest format that the store may hold.
            Rejection::FormatTooOld { needed, format: writable } => {
                Self::NotFinalized(NotFinalized { row: Row::History, needed, writable })
            }
            rejection => Self::Rejected(rejection),
        }
    }
}
