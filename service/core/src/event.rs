//! What has been decided: past tense, complete, never revised. A transition is the events of one
//! decision; an execution's history is its transitions in order.
//!
//! An event holds every result that it needs: folding one evaluates no expression, policy, default
//! or clock.

use crate::error::TaskError;
use crate::id::{Namespace, StepPath, WorkflowName};
#[cfg(doc)]
use crate::limits::COMPENSATIONS_LISTED_MAX;
use crate::payload::Payload;
use crate::retry::Decision;
use crate::state::{CompensationOutcome, CompensationState, State, TraceContext};
use crate::time::Timestamp;

/// From this format on, a history leaves out what is said already: a step that begins schedules its first
/// attempt itself, and payloads that are those of the execution or of the last step are not repeated.
pub const TERSE: u16 = 2;

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    ExecutionStarted(Box<ExecutionStarted>),
    /// A mutation of this execution carried this request id.
    RequestRecorded {
        request_id: String,
        digest: u64,
    },
    /// A step began: its input is what its expressions gave then. Also that of a compensation.
    StepStarted {
        path: StepPath,
        generation: u32,
        input: PayloadSource,
        /// None: in histories before [`TERSE`], where an event of its own follows, and where the step fails
        /// before it has an attempt.
        first: Option<FirstAttempt>,
    },
    /// Its `when` was false.
    StepSkipped {
        path: StepPath,
    },
    /// From `at` on, the attempt may be handed to a worker. This transition fixes its number.
    AttemptScheduled {
        path: StepPath,
        attempt: u32,
        at: Timestamp,
    },
    /// Recorded for attempts that have been with a worker for a while, and before the hand-over of
    /// those that are delivered at most once.
    AttemptStarted {
        path: StepPath,
        attempt: u32,
        worker: String,
        session: String,
        at: Timestamp,
    },
    /// The attempt ended without a result, and this was decided.
    AttemptFailed(Box<AttemptFailed>),
    /// The attempt was taken back before any worker had it.
    AttemptWithdrawn {
        path: StepPath,
        attempt: u32,
    },
    StepCompleted {
        path: StepPath,
        attempt: u32,
        output: Payload,
        worker: String,
    },
    /// No retry took the step's error.
    StepFailed {
        path: StepPath,
        error: TaskError,
    },
    /// The step's error was tolerated.
    StepIgnored {
        path: StepPath,
        error: TaskError,
        warning: bool,
    },
    /// The last step is done; what remains is `finally`.
    RunSucceeded {
        output: PayloadSource,
    },
    /// No further step begins. Live attempts have until `grace_until`.
    RunStopped {
        cause: StopCause,
        error: TaskError,
        step: Option<StepPath>,
        grace_until: Timestamp,
        /// Something that completed so far must be undone.
        compensation_due: bool,
    },
    CancelRequested {
        reason: String,
    },
    /// What must be undone, in this order. At most [`COMPENSATIONS_LISTED_MAX`] at a time: what is due
    /// besides is listed by another such event when these have been undone or parked.
    CompensationStarted {
        due: Vec<DueCompensation>,
        cleanup_deadline: Option<Timestamp>,
    },
    /// A compensation failed for good or never ran: a person must act.
    CompensationParked {
        path: StepPath,
        error: TaskError,
    },
    /// A person wants it tried again.
    CompensationRetried {
        path: StepPath,
        reason: String,
    },
    /// A person took it on himself.
    CompensationSkipped {
        path: StepPath,
        reason: String,
    },
    /// Nothing is left to undo but what is parked.
    CompensationEnded {
        state: CompensationState,
    },
    FinallyStarted {
        cleanup_deadline: Option<Timestamp>,
    },
    /// `finally` failed; the original error, if any, stays the error.
    HandlerFailed {
        path: StepPath,
        error: TaskError,
    },
    ExecutionEnded {
        state: State,
        error: Option<TaskError>,
    },
}

/// A payload, or where in the history it is already. Before [`TERSE`] it is always the payload.
#[derive(Clone, Debug, PartialEq)]
pub enum PayloadSource {
    Inline(Payload),
    /// The input of the execution.
    Input,
    /// What the latest step with this path returned; null if it did not complete.
    Output(StepPath),
}

impl PayloadSource {
    /// The payload, if it is one of its own.
    pub fn inline(&self) -> Option<&Payload> {
        match self {
            Self::Inline(payload) => Some(payload),
            Self::Input | Self::Output(_) => None,
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Inline(payload) => payload.size(),
            Self::Input => 0,
            Self::Output(step) => step.as_str().len(),
        }
    }
}

/// The first attempt of what has begun, scheduled with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstAttempt {
    /// 1, but for a compensation that a person wants tried again.
    pub number: u32,
    /// As in [`Event::AttemptScheduled`].
    pub at: Timestamp,
}

impl Event {
    /// The attempt that it schedules: of what, its number, and from when on it may be handed to a worker.
    pub fn scheduled(&self) -> Option<(&StepPath, u32, Timestamp)> {
        match self {
            Self::AttemptScheduled { path, attempt, at } => Some((path, *attempt, *at)),
            Self::StepStarted { path, first: Some(first), .. } => {
                Some((path, first.number, first.at))
            }
            _ => None,
        }
    }

    /// The step or the compensation of which it opens or closes an attempt, or says who has it.
    pub fn attempt_path(&self) -> Option<&StepPath> {
        match self {
            Self::AttemptScheduled { path, .. }
            | Self::AttemptStarted { path, .. }
            | Self::AttemptWithdrawn { path, .. }
            | Self::StepCompleted { path, .. } => Some(path),
            Self::StepStarted { path, first, .. } => first.as_ref().map(|_| path),
            Self::AttemptFailed(failed) => Some(&failed.path),
            Self::ExecutionStarted(_)
            | Self::RequestRecorded { .. }
            | Self::StepSkipped { .. }
            | Self::StepFailed { .. }
            | Self::StepIgnored { .. }
            | Self::RunSucceeded { .. }
            | Self::RunStopped { .. }
            | Self::CancelRequested { .. }
            | Self::CompensationStarted { .. }
            | Self::CompensationParked { .. }
            | Self::CompensationRetried { .. }
            | Self::CompensationSkipped { .. }
            | Self::CompensationEnded { .. }
            | Self::FinallyStarted { .. }
            | Self::HandlerFailed { .. }
            | Self::ExecutionEnded { .. } => None,
        }
    }

    /// About how many bytes it takes in a history.
    pub fn size(&self) -> usize {
        const FIXED: usize = 64;
        FIXED
            + match self {
                Self::ExecutionStarted(started) => {
                    started.input.size() + started.key.as_ref().map_or(0, String::len)
                }
                Self::StepStarted { path, input, .. } => path.as_str().len() + input.size(),
                Self::StepCompleted { path, output, .. } => path.as_str().len() + output.size(),
                Self::RunSucceeded { output } => output.size(),
                Self::AttemptFailed(failed) => failed.path.as_str().len() + failed.error.size(),
                Self::StepFailed { path, error }
                | Self::StepIgnored { path, error, .. }
                | Self::CompensationParked { path, error }
                | Self::HandlerFailed { path, error } => path.as_str().len() + error.size(),
                Self::RunStopped { error, .. } => error.size(),
                Self::ExecutionEnded { error, .. } => error.as_ref().map_or(0, TaskError::size),
                Self::CompensationStarted { due, .. } => {
                    due.iter().map(|due| FIXED + due.step.as_str().len()).sum()
                }
                Self::CompensationRetried { path, reason }
                | Self::CompensationSkipped { path, reason } => path.as_str().len() + reason.len(),
                Self::CancelRequested { reason } => reason.len(),
                Self::AttemptStarted { path, worker, session, .. } => {
                    path.as_str().len() + worker.len() + session.len()
                }
                Self::RequestRecorded { request_id, .. } => request_id.len(),
                Self::StepSkipped { path }
                | Self::AttemptScheduled { path, .. }
                | Self::AttemptWithdrawn { path, .. } => path.as_str().len(),
                Self::CompensationEnded { .. } | Self::FinallyStarted { .. } => 0,
            }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct ExecutionStarted {
    pub namespace: Namespace,
    pub workflow: WorkflowName,
    pub version: u32,
    pub key: Option<String>,
    pub input: Payload,
    /// The workflow's timeout, as a point in time.
    pub deadline: Option<Timestamp>,
    pub trace: TraceContext,
    /// [`Execution::format`](crate::execution::Execution::format).
    pub format: u16,
}

#[derive(Clone, Debug, PartialEq)]
pub struct AttemptFailed {
    pub path: StepPath,
    pub attempt: u32,
    pub error: TaskError,
    pub outcome: AttemptOutcome,
    pub decision: Decision,
    /// Name of the worker that had it; empty if none did.
    pub worker: String,
    /// The policy wants a success after this retry to be shown as WARNING.
    pub warning: bool,
}

/// What is known of the effects of an attempt that did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// A worker reported the error.
    Known,
    /// It may have taken effect: it timed out, was lost, or was cancelled while it ran.
    Unknown,
    /// No worker ever had it.
    NotStarted,
}

/// Why no further step begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    Failed,
    TimedOut,
    Cancelled,
    /// Nothing is waited for or undone. Recorded only where the termination does not fit into one
    /// transition: it is what the following ones go on from.
    Terminated,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DueCompensation {
    /// The step to undo.
    pub step: StepPath,
    pub generation: u32,
    pub outcome: CompensationOutcome,
}
