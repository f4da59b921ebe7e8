//! What goes into a node and what comes out.

use std::sync::Arc;
use std::time::Duration;

use recoup_core::command::{Command, Rejection, RequestId, StartExecution, TaskId};
use recoup_core::execution::{Execution, State};
use recoup_core::id::ExecutionId;
use recoup_core::key::{OnEnded, OnRunning};
use recoup_core::plan::Plan;
use recoup_core::time::Timestamp;
use recoup_store::{
    Batch, Head, KeySettled, KeyedStart, Lease, NodeId, OverflowTask, QueueName, Settled, TaskKey,
};

/// How a caller is answered: a closure over a channel in the driver, a number in the simulation.
pub type WorkerKey = u64;

#[derive(Debug)]
pub enum Input<R> {
    /// The node has begun a life, or a new one after its lease was lost.
    Joined(recoup_store::Result<Lease>),
    Renewed(recoup_store::Result<Lease>),
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
    /// Something came from a session: it lives.
    Touch {
        session: String,
    },
    /// His connection has ended, or his poll has: what he holds stays with his session.
    Detach {
        worker: WorkerKey,
    },
    Heartbeat {
        task: TaskId,
        reply: R,
    },
    /// Given back unstarted: it does not count.
    Release {
        task: TaskId,
    },
    Committed(recoup_store::Result<Vec<Settled>>),
    KeyedStarted(recoup_store::Result<Vec<KeySettled>>),
    Loaded {
        asked: Vec<ExecutionId>,
        loaded: Result<Vec<Loaded>, String>,
    },
    Adopted(recoup_store::Result<Vec<ExecutionId>>),
    Heads(recoup_store::Result<Vec<Head>>),
    Due(recoup_store::Result<Vec<ExecutionId>>),
    Claimed(recoup_store::Result<Vec<OverflowTask>>),
    Overflowed {
        tasks: Vec<OverflowTask>,
        result: recoup_store::Result<()>,
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
    /// What the worker says that he holds.
    pub held: Vec<TaskId>,
    /// Detached by the first tasks that it gets.
    pub once: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub id: String,
    pub ttl: Duration,
}

/// A history, folded, and the plan that its execution follows.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub execution: ExecutionId,
    pub owner: Option<NodeId>,
    pub state: Result<(Arc<Execution>, Arc<Plan>), String>,
}

#[derive(Debug)]
pub enum Output<R> {
    Join,
    Renew(NodeId),
    Commit(NodeId, Arc<Batch>),
    StartKeyed(NodeId, Arc<Vec<KeyedStart>>),
    Load(NodeId, Vec<ExecutionId>),
    Adopt(NodeId, usize),
    Heads(Vec<ExecutionId>),
    Due(NodeId, Timestamp, usize),
    Claim {
        node: NodeId,
        queues: Vec<QueueName>,
        limit: usize,
        lease: Duration,
    },
    Overflow(NodeId, Vec<OverflowTask>),
    WithdrawOverflow(Vec<TaskKey>),
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
    /// The state right after the command was committed. `is_new` is false where a start found that
    /// its request id, or its key's policy, already had an execution; the state is that one's.
    Done {
        state: Arc<Execution>,
        is_new: bool,
    },
    Snapshot(Snapshot),
    /// Of a heartbeat.
    Beat {
        cancel_requested: bool,
    },
}

/// A committed state, and what the owner knows beside it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub state: Arc<Execution>,
    pub plan: Arc<Plan>,
    /// Attempts that are with a worker now.
    pub live: Vec<LiveAttempt>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveAttempt {
    pub task: TaskId,
    pub worker: String,
    pub session: Option<String>,
    pub since: Timestamp,
}

#[derive(Clone, Debug)]
pub enum WorkerMessage {
    Tasks(Vec<HandedTask>),
    /// The run ends: what the worker still reports within the grace counts.
    CancelRequested(TaskId),
    /// The attempt has been closed: nothing that the worker reports counts.
    Closed(TaskId),
    /// A worker that attached `once` has got nothing and was detached.
    Detached,
}

/// One attempt on its way to a worker.
#[derive(Clone, Debug)]
pub struct HandedTask {
    pub id: TaskId,
    /// A state in which the attempt is open.
    pub state: Arc<Execution>,
    pub plan: Arc<Plan>,
    pub handed_at: Timestamp,
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
    /// The history does not fold, or a decision failed: a person must look at it.
    #[error("the execution is quarantined: {0}")]
    Quarantined(String),
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    #[error("the node is stopping")]
    Stopping,
}
