//! What is asked of an execution, and why it may be refused.

use crate::error::TaskError;
use crate::id::{ExecutionId, Namespace, StepPath};
use crate::payload::Payload;
use crate::state::{State, TraceContext};
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    StartExecution(Box<StartExecution>),
    CompleteTask {
        task: TaskId,
        output: Payload,
        worker: String,
    },
    FailTask {
        task: TaskId,
        error: TaskError,
        worker: String,
    },
    /// A clock that runs in the memory of the attempt's owner has run out.
    TimeOutTask {
        task: TaskId,
        timeout: AttemptTimeout,
        possibly_started: bool,
        worker: String,
    },
    /// The session that held the attempt has ended.
    LoseWorker {
        task: TaskId,
        worker: String,
    },
    /// An attempt is with a worker, or about to be: a claim from overflow, a delivery at most once, or
    /// one that has lasted long enough to be shown.
    RecordStart {
        task: TaskId,
        worker: String,
        session: String,
        at: Timestamp,
        basis: StartBasis,
    },
    /// The owner took the task out of its queue before anybody had it.
    WithdrawTask {
        task: TaskId,
    },
    CancelExecution {
        reason: String,
    },
    TerminateExecution {
        reason: String,
        /// What the owner took out of its queue before anybody had it.
        unstarted: Vec<TaskId>,
    },
    /// All parked compensations, or that of one step.
    RetryCompensation {
        step: Option<StepPath>,
        reason: String,
    },
    SkipCompensation {
        step: StepPath,
        reason: String,
    },
    /// Look at the deadlines that follow from the state; one of them may have passed.
    Wake,
}

impl Command {
    /// The attempt that it is about, if it is about one.
    pub fn task(&self) -> Option<&TaskId> {
        match self {
            Self::CompleteTask { task, .. }
            | Self::FailTask { task, .. }
            | Self::TimeOutTask { task, .. }
            | Self::LoseWorker { task, .. }
            | Self::RecordStart { task, .. }
            | Self::WithdrawTask { task } => Some(task),
            Self::StartExecution(_)
            | Self::CancelExecution { .. }
            | Self::TerminateExecution { .. }
            | Self::RetryCompensation { .. }
            | Self::SkipCompensation { .. }
            | Self::Wake => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct StartExecution {
    pub id: ExecutionId,
    pub namespace: Namespace,
    pub key: Option<String>,
    pub input: Payload,
    /// Shorter than, or instead of, the workflow's own.
    pub timeout: Option<std::time::Duration>,
    pub trace: TraceContext,
}

/// Names one attempt, so that any node can judge what is said about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    pub execution: ExecutionId,
    pub run: u32,
    pub path: StepPath,
    pub attempt: u32,
    /// Sequence of the transition that scheduled the attempt.
    pub sequence: u64,
}

/// On what ground a start is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartBasis {
    /// A worker has the attempt, or says so.
    Held,
    /// A worker gives the attempt back: what the history says of it is read first, and stays.
    GivenBack,
    /// The attempt is handed over once this is durable. What is delivered at most once is handed over
    /// only if no start is on record, or if the one on record began at `unsent`: its owner knows that
    /// no worker got it then.
    HandOver { unsent: Option<Timestamp> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttemptTimeout {
    ScheduleToStart,
    StartToClose,
    Heartbeat,
}

/// A mutation's identity, remembered by the execution, so that a repeated call changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId {
    pub id: String,
    /// Of the request's body: the same id with another body is an error.
    pub digest: u64,
}

/// A command that does not fit the state. It changes nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Rejection {
    #[error("there is no such execution")]
    NoSuchExecution,
    #[error("the execution exists already")]
    AlreadyStarted,
    #[error("the execution has ended as {0}")]
    ExecutionEnded(State),
    #[error("the attempt is closed: its result, its end or a later attempt has been recorded")]
    AttemptClosed,
    #[error("no attempt of the execution has that token")]
    NoSuchAttempt,
    #[error("no compensation of the step is parked")]
    NotParked,
    #[error("the request id was used with another body")]
    RequestIdReused,
    #[error("no deadline has passed")]
    NothingDue,
    /// What is asked for would only make the history longer. Commands that end something are taken.
    #[error("the history has reached its limit of {events_max} events")]
    HistoryFull { events_max: usize },
}
