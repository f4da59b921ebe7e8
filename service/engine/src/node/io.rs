//! What goes into a node and what comes out.

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
use recoup_store::format::NotFinalized;
use recoup_store::{
    Batch, Due, Head, IdleCredit, KeySettled, KeyedStart, Lease, NodeId, Nodes, OverflowTask,
    Peers, QuarantineRow, QueueName, Release, Renewals, Settled, TaskKey, Wanted,
};

use crate::task::HandedTask;

/// How a caller is answered: a closure over a channel in the driver, a number in the simulation.
pub type WorkerKey = u64;

#[derive(Debug)]
pub enum Input<R> {
    /// The node has begun a life, or a new one after its lease was lost.
    Joined(recoup_store::Result<Lease>),
    /// Answers from here on say which life has asked.
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
    /// Answered when the execution has ended.
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
    /// He takes so many more tasks.
    Credit {
        worker: WorkerKey,
        tasks: u32,
    },
    /// The server is going to stop, and takes no new connections: nobody waits for an end any more, and no worker
    /// is given up because it is silent.
    Close,
    /// He takes no more: what he was to get is for others, and nothing waits here for him.
    Drain {
        worker: WorkerKey,
    },
    /// Something came from a session: it lives.
    Touch {
        session: SessionKey,
    },
    /// His connection has ended, or his poll has: what he holds stays with his session.
    Detach {
        worker: WorkerKey,
    },
    Heartbeat {
        task: TaskId,
        /// None: what was said last stays.
        details: Option<Payload>,
        reply: R,
    },
    /// Given back unstarted by the session that it was handed to, or by a worker without one (an
    /// empty id): it does not count. Changes nothing where another has it by now.
    Release {
        task: TaskId,
        session: String,
        reply: R,
    },
    /// Was handed over at that time, and never left the process.
    Undelivered {
        task: TaskId,
        handed_at: Timestamp,
    },
    /// A notice has not reached the session that it was for.
    Untold {
        session: SessionKey,
        task: TaskId,
        notice: Notice,
    },
    /// An operator wants an execution to go on that is in quarantine.
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
        /// Those that were left out, because another node owns their execution.
        result: recoup_store::Result<Vec<TaskKey>>,
    },
}

/// A start whose workflow version has been found.
#[derive(Clone, Debug)]
pub struct StartSpec {
    pub start: StartExecution,
    pub plan: Arc<Plan>,
    pub on_running: OnRunning,
    pub on_ended: OnEnded,
    pub request: Option<RequestId>,
    /// Answer when it has ended, not when it has started; [`Input::Await`] in one.
    pub until: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub queues: Vec<QueueName>,
    /// Empty: all.
    pub task_types: Vec<String>,
    pub credit: u32,
    /// Without one, attempts are bound only by their own clocks.
    pub session: Option<Session>,
    pub worker: String,
    /// All that the session holds: what it was handed and is not here is handed out again, and what
    /// else is attached for the session is superseded. None: the worker does not say.
    pub held: Option<Vec<TaskId>>,
    /// Detached by the first tasks that it gets.
    pub once: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub key: SessionKey,
    pub ttl: Duration,
}

/// Workers choose the ids of their sessions: those of one namespace know nothing of another's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionKey {
    pub namespace: Namespace,
    pub id: String,
}

/// How much of a history was read.
#[derive(Clone, Debug)]
pub enum Read {
    /// All of it, folded, and the plan that its execution follows.
    Whole(Box<Execution>, Arc<Plan>),
    /// What came after the transition with the sequence `after`, which the node knew.
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

/// What was read of an execution.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub execution: ExecutionId,
    pub owner: Option<NodeId>,
    /// When its owner is reminded of it, as it is stored.
    pub wake_at: Option<Timestamp>,
    /// The highest format in its history, as its row has it.
    pub format: u16,
    pub state: Result<Read, Unusable>,
    /// The last one, be it in force or released.
    pub quarantine: Option<QuarantineRow>,
}

impl Loaded {
    /// When the last transition that was read was decided, in the store time of the node that did it.
    pub fn decided_at(&self) -> Option<Timestamp> {
        match self.state.as_ref().ok()? {
            Read::Whole(state, _) => Some(state.decided_at),
            Read::After { transitions, .. } => transitions.last().map(|last| last.decided_at),
        }
    }
}

/// What came of a call to read executions.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub found: Vec<Loaded>,
    /// Not read, for want of room in one answer: to be asked for again.
    pub rest: Vec<ExecutionId>,
}

/// Why no node, or not this one, goes on with an execution.
#[derive(Clone, Debug)]
pub enum Unusable {
    /// It is in quarantine already.
    Quarantined(Quarantine),
    /// It must be put there.
    Damaged(Box<Damage>),
    /// A newer binary wrote it. That is no damage: this node leaves it alone.
    Newer(String),
}

/// What is wrong with an execution, and what is known of it all the same.
#[derive(Clone, Debug)]
pub struct Damage {
    pub reason: QuarantineReason,
    pub detail: String,
    pub namespace: Namespace,
    pub subject: Subject,
}

/// What a look for executions without an owner has found.
#[derive(Debug)]
pub struct Adopted {
    /// Those of other nodes, which are open.
    pub leases: Vec<Renewals>,
    /// Owned by this node from now on.
    pub executions: Vec<ExecutionId>,
}

impl Adopted {
    /// Closes what is silent and takes over what has no owner.
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
        /// Leases to close before, unless they are renewed in the meantime.
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
        /// Comes back with the answer.
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
    /// As of right after the command was committed. `is_own`: the request started the execution, now or
    /// when it was first sent; false of a start that was given one which had its key.
    Done {
        outcome: Box<Outcome>,
        is_own: bool,
    },
    /// What a worker said of a task is committed.
    Recorded {
        /// Of the last transition then.
        sequence: u64,
        /// The steps that run are to stop.
        is_stopping: bool,
        /// Of a failed attempt, if this command ended it: what was decided about the next one.
        decision: Option<Decision>,
    },
    Snapshot(Snapshot),
    /// Of a heartbeat.
    Beat {
        cancel_requested: bool,
    },
    /// Of a release.
    Released,
}

/// A committed state, and what the owner knows beside it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub state: Box<Execution>,
    pub plan: Arc<Plan>,
    /// Attempts that are with a worker now.
    pub live: Vec<LiveAttempt>,
    /// The last one; it was released.
    pub quarantine: Option<QuarantineRow>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveAttempt {
    pub task: TaskId,
    pub worker: String,
    pub session: Option<String>,
    pub since: Timestamp,
    /// What its heartbeats said last.
    pub details: Option<Payload>,
}

#[derive(Clone, Debug)]
pub enum WorkerMessage {
    Tasks(Vec<HandedTask>),
    /// The run ends: what the worker still reports within the grace counts.
    CancelRequested(TaskId),
    /// The attempt has been closed: nothing that the worker reports counts.
    Closed(TaskId),
    /// The session's time to live has passed; the worker was detached.
    Detached,
    /// Another has attached for the session and said what it holds; the worker was detached.
    Superseded,
}

/// What a session is told of a task that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The run is ending: a result within the grace still counts.
    CancelRequested,
    /// The attempt has ended: no result counts any more.
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

/// Why a node did not do what it was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error("the request id was used for another start")]
    RequestIdReused,
    #[error("the execution key is held by {execution}, which is {state}")]
    KeyHeld { execution: ExecutionId, state: State },
    /// Nothing was done; try again after the delay.
    #[error("the node has too much to do")]
    Overloaded { retry_after: Duration },
    #[error("the store refuses the data: {0}")]
    Refused(String),
    /// Nobody goes on with it until a person has looked.
    #[error("the execution is quarantined: {0}")]
    Quarantined(Quarantine),
    #[error("the execution is not quarantined")]
    NotQuarantined,
    /// Another node may be able to go on with it.
    #[error("the execution was written by a newer server: {0}")]
    TooNew(String),
    /// The start needs a format of histories that the store may not hold yet. Nothing was done.
    #[error(transparent)]
    NotFinalized(#[from] NotFinalized),
    /// A decision about a start panicked. Nothing was done; the log says what went wrong.
    #[error("the decision failed")]
    Failed,
    /// Nothing was done.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// It is under way to the store, and may be done yet.
    #[error("the store has not said for a while whether it was done")]
    OutcomeUnknown,
    #[error("the node is stopping")]
    Stopping,
}
