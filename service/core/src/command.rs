//! The commands to an execution, and the reasons for rejecting them.

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
    /// One of the attempt's timeouts that the owner keeps in memory has expired.
    TimeOutTask {
        task: TaskId,
        timeout: AttemptTimeout,
        possibly_started: bool,
        worker: String,
    },
    /// The session that held the attempt has ended, or its worker no longer has the task.
    LoseWorker {
        task: TaskId,
        worker: String,
    },
    /// A worker holds the attempt or is about to receive it: after a claim from overflow, for a delivery at
    /// most once, or because the attempt has run long enough for its start to be recorded.
    RecordStart {
        task: TaskId,
        worker: String,
        session: String,
        at: Timestamp,
        basis: StartBasis,
    },
    /// The owner took the task out of its queue before any worker received it.
    WithdrawTask {
        task: TaskId,
    },
    CancelExecution {
        reason: String,
    },
    TerminateExecution {
        reason: String,
        /// The tasks that the owner took out of its queue before any worker received them.
        unstarted: Vec<TaskId>,
    },
    /// Retries all parked compensations, or only that of `step`.
    RetryCompensation {
        step: Option<StepPath>,
        reason: String,
    },
    SkipCompensation {
        step: StepPath,
        reason: String,
    },
    /// Check the deadlines that follow from the state; at least one of them may have passed.
    Wake,
}

impl Command {
    /// The attempt that the command concerns, if it concerns one.
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
    /// The shorter of this timeout and the workflow's own applies.
    pub timeout: Option<std::time::Duration>,
    pub trace: TraceContext,
}

/// Identifies one attempt, precisely enough for any node to judge a report about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    pub execution: ExecutionId,
    pub run: u32,
    pub path: StepPath,
    pub attempt: u32,
    /// Sequence of the transition that scheduled the attempt.
    pub sequence: u64,
}

/// The basis on which a start is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartBasis {
    /// A worker holds the attempt, or claims to.
    Held,
    /// A worker gives the attempt back. The node reads the history first: if another session holds the
    /// attempt according to it, that session keeps the attempt.
    GivenBack,
    /// The attempt will be handed over once this record is durable. An attempt that is delivered at most
    /// once is handed over only if no start is on record, or if the recorded start has the time `unsent`:
    /// its owner knows that no worker received the attempt then.
    HandOver { unsent: Option<Timestamp> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttemptTimeout {
    /// The attempt was not handed to a worker in time.
    ScheduleToStart,
    /// The worker did not report a result in time after the hand-over.
    StartToClose,
    /// The worker sent no heartbeat in time.
    Heartbeat,
}

/// Identifies a mutation. The execution remembers it, so that repeating the call changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId {
    pub id: String,
    /// Digest of the request's body. The same id with another body is an error.
    pub digest: u64,
}

/// The reason why a command does not fit the state. A rejected command changes nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Rejection {
    #[error("there is no such execution")]
    NoSuchExecution,
    #[error("the execution exists already")]
    AlreadyStarted,
    /// The workflow has steps that histories in the format of the start cannot hold.
    #[error(
        "the workflow needs a history of format {needed}, and this one would have format {format}"
    )]
    FormatTooOld { needed: u16, format: u16 },
    #[error("the execution has ended as {0}")]
    ExecutionEnded(State),
    #[error("the attempt is closed: its result, its end or a later attempt has been recorded")]
    AttemptClosed,
    #[error("no attempt of the execution has that token")]
    NoSuchAttempt,
    #[error("no compensation of the step is parked")]
    NotParked,
    #[error("the request id was already used for another request: use a new one")]
    RequestIdReused,
    #[error("no deadline has passed")]
    NothingDue,
    /// The command would only make the history longer. Commands that end something are still accepted.
    #[error("the history has reached its limit of {events_max} events")]
    HistoryFull { events_max: usize },
}
