//! The events that decisions produce. They are named in the past tense, are complete in themselves and are
//! never revised. A transition is the list of events of one decision; the history of an execution is its
//! transitions in order.
//!
//! An event carries every result that is needed to apply it: folding an event evaluates no expression,
//! policy or default, and reads no clock.

use crate::error::TaskError;
use crate::id::{ItemKey, Namespace, StepPath, WorkflowName};
#[cfg(doc)]
use crate::limits::COMPENSATIONS_LISTED_MAX;
use crate::payload::Payload;
use crate::retry::Decision;
use crate::state::{CompensationOutcome, CompensationState, Part, State, TraceContext};
use crate::time::Timestamp;

/// The first history format that omits redundant data: [`Event::StepStarted`] schedules the first attempt
/// itself, and a payload that is passed on from the input of the execution or the output of a step is
/// written as a reference to it.
pub const TERSE: u16 = 2;

/// The first history format with steps that are not tasks, and with handlers. A workflow that has any of
/// them cannot be executed in an earlier format.
pub const BLOCKS: u16 = 3;

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    ExecutionStarted(Box<ExecutionStarted>),
    /// A mutation of this execution carried this request id. `digest` is the digest of the request's body.
    RequestRecorded {
        request_id: String,
        digest: u64,
    },
    /// A step or a compensation began. `input` is the value that its input expressions had at that moment.
    StepStarted {
        path: StepPath,
        generation: u32,
        input: PayloadSource,
        /// None in formats before [`TERSE`], where a separate [`Event::AttemptScheduled`] follows, and for
        /// a step that failed before it had an attempt.
        first: Option<FirstAttempt>,
    },
    /// The step's `when` condition was false.
    StepSkipped {
        path: StepPath,
    },
    /// The attempt may be handed to a worker from `at` on. This event fixes the number of the attempt.
    AttemptScheduled {
        path: StepPath,
        attempt: u32,
        at: Timestamp,
    },
    /// A worker has the attempt or is about to receive it. Recorded for attempts that have been with a
    /// worker for a while, and, for attempts that are delivered at most once, before the hand-over.
    AttemptStarted {
        path: StepPath,
        attempt: u32,
        worker: String,
        session: String,
        at: Timestamp,
    },
    /// The attempt ended without a result. The event also holds the decision that was made about a retry.
    AttemptFailed(Box<AttemptFailed>),
    /// The attempt was taken back before any worker received it.
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
    /// The step failed for good: its error was neither retried, caught nor ignored. The error passes to the
    /// step around it or, if there is none, to the run.
    StepFailed {
        path: StepPath,
        error: TaskError,
    },
    /// The step's error was ignored. With `warning`, the execution records a warning for it.
    StepIgnored {
        path: StepPath,
        error: TaskError,
        warning: bool,
    },
    /// A step that is not a task began. `part` is the list of its steps that begins with it; none for a
    /// step that has no such list, or that takes none of them.
    BlockStarted {
        path: StepPath,
        generation: u32,
        part: Option<Part>,
        /// When the step times out; none without a timeout.
        deadline: Option<Timestamp>,
    },
    /// A `parallel` began. Each of its branches begins with the first of its steps.
    ParallelStarted {
        path: StepPath,
        generation: u32,
        /// The branches that come after no other one.
        ready: Vec<ItemKey>,
        /// How many branches may run at a time; none: all of them.
        concurrency: Option<u32>,
        deadline: Option<Timestamp>,
    },
    BranchCompleted {
        path: StepPath,
        branch: ItemKey,
        output: PayloadSource,
        /// The branches that come after this one, and after no branch that has not completed.
        ready: Vec<ItemKey>,
    },
    /// An error passed out of the branch, which ends it. `origin` is the step in which the error arose.
    BranchFailed {
        path: StepPath,
        branch: ItemKey,
        error: TaskError,
        origin: StepPath,
    },
    /// Every branch of a `parallel` completed. The output of the step is put together from their outputs
    /// where it is read.
    ParallelCompleted {
        path: StepPath,
    },
    /// A `for_each` began. Each of its items begins with the first of its steps.
    LoopStarted {
        path: StepPath,
        generation: u32,
        /// A JSON list or object, of which each value is an item. Those of an object are in the order of their
        /// names.
        items: PayloadSource,
        /// What stands in paths for the items. None if that is the index or, of an object, the name.
        keys: Option<Vec<ItemKey>>,
        /// How many items may run at a time.
        concurrency: u32,
        deadline: Option<Timestamp>,
    },
    ItemCompleted {
        path: StepPath,
        item: ItemKey,
        output: PayloadSource,
    },
    /// An error passed out of the item, which ends it. `origin` is the step in which the error arose.
    ItemFailed {
        path: StepPath,
        item: ItemKey,
        error: TaskError,
        origin: StepPath,
    },
    /// Every item of a `for_each` completed. The output of the step is put together from their outputs where
    /// it is read.
    LoopCompleted {
        path: StepPath,
    },
    /// No further step begins inside the step. Attempts inside it that are still live may run until
    /// `grace_until`; when the last of them has ended, the step fails.
    BlockStopped {
        path: StepPath,
        /// Why; none if the first branch or item that failed is the reason.
        error: Option<TaskError>,
        grace_until: Timestamp,
    },
    /// A step that is not a task completed.
    BlockCompleted {
        path: StepPath,
        output: PayloadSource,
    },
    /// A `return` ended the list of steps in which it stands. `output` is the output of both.
    ScopeReturned {
        path: StepPath,
        output: PayloadSource,
    },
    /// A handler of the step takes the error; `handler` is its index in the step's `catch`. `origin` is the
    /// step in which the error arose: the step itself, or one inside it.
    HandlerStarted {
        path: StepPath,
        handler: u32,
        error: TaskError,
        origin: StepPath,
    },
    /// The handler of the step completed. Its output takes the place of the step's.
    StepCaught {
        path: StepPath,
        output: PayloadSource,
    },
    /// The last step has ended and the run has not failed. Only `finally` remains.
    RunSucceeded {
        output: PayloadSource,
    },
    /// No further step begins. Attempts that are still live may run until `grace_until`.
    RunStopped {
        cause: StopCause,
        error: TaskError,
        step: Option<StepPath>,
        grace_until: Timestamp,
        /// At least one step that took effect, or may have, must be undone.
        compensation_due: bool,
    },
    CancelRequested {
        reason: String,
    },
    /// The compensations that are due, in the order in which they run. One event lists at most
    /// [`COMPENSATIONS_LISTED_MAX`]; once these have been undone or parked, another event of this kind
    /// lists the next ones.
    CompensationStarted {
        due: Vec<DueCompensation>,
        cleanup_deadline: Option<Timestamp>,
    },
    /// A compensation failed for good or never ran: an operator must act.
    CompensationParked {
        path: StepPath,
        error: TaskError,
    },
    /// An operator asked for the compensation to be retried.
    CompensationRetried {
        path: StepPath,
        reason: String,
    },
    /// An operator skipped the compensation and took responsibility for the step's effects.
    CompensationSkipped {
        path: StepPath,
        reason: String,
    },
    /// No compensation is left to run, except those that are parked.
    CompensationEnded {
        state: CompensationState,
    },
    OnFailureStarted {
        cleanup_deadline: Option<Timestamp>,
    },
    FinallyStarted {
        cleanup_deadline: Option<Timestamp>,
    },
    /// A step of `on_failure` or `finally` failed. If the run itself failed, its error remains the error of the execution.
    HandlerFailed {
        path: StepPath,
        error: TaskError,
    },
    ExecutionEnded {
        state: State,
        error: Option<TaskError>,
    },
}

/// A payload, or a reference to a payload that the history already holds. In formats before [`TERSE`] it is
/// always [`PayloadSource::Inline`].
#[derive(Clone, Debug, PartialEq)]
pub enum PayloadSource {
    Inline(Payload),
    /// The input of the execution.
    Input,
    /// The output of the latest step with this path; null if that step did not complete.
    Output(StepPath),
}

impl PayloadSource {
    /// The payload, if the source holds it itself rather than refers to another one.
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

/// The first attempt of a step or compensation, scheduled by the event that begins it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstAttempt {
    /// 1, except for a compensation that an operator retries: its attempts keep counting.
    pub number: u32,
    /// When the attempt may first be handed out, as in [`Event::AttemptScheduled`].
    pub at: Timestamp,
}

impl Event {
    /// The attempt that this event schedules: its path, its number, and the time from which it may be
    /// handed to a worker.
    pub fn scheduled(&self) -> Option<(&StepPath, u32, Timestamp)> {
        match self {
            Self::AttemptScheduled { path, attempt, at } => Some((path, *attempt, *at)),
            Self::StepStarted { path, first: Some(first), .. } => {
                Some((path, first.number, first.at))
            }
            _ => None,
        }
    }

    /// The path of the step or compensation whose attempt this event opens or closes, or whose holder it
    /// records. None for all other events.
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
            | Self::BlockStarted { .. }
            | Self::ParallelStarted { .. }
            | Self::BranchCompleted { .. }
            | Self::BranchFailed { .. }
            | Self::ParallelCompleted { .. }
            | Self::LoopStarted { .. }
            | Self::ItemCompleted { .. }
            | Self::ItemFailed { .. }
            | Self::LoopCompleted { .. }
            | Self::BlockStopped { .. }
            | Self::BlockCompleted { .. }
            | Self::ScopeReturned { .. }
            | Self::HandlerStarted { .. }
            | Self::StepCaught { .. }
            | Self::RunSucceeded { .. }
            | Self::RunStopped { .. }
            | Self::CancelRequested { .. }
            | Self::CompensationStarted { .. }
            | Self::CompensationParked { .. }
            | Self::CompensationRetried { .. }
            | Self::CompensationSkipped { .. }
            | Self::CompensationEnded { .. }
            | Self::OnFailureStarted { .. }
            | Self::FinallyStarted { .. }
            | Self::HandlerFailed { .. }
            | Self::ExecutionEnded { .. } => None,
        }
    }

    /// The approximate number of bytes that the event takes in a history.
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
                Self::BlockCompleted { path, output }
                | Self::ScopeReturned { path, output }
                | Self::StepCaught { path, output } => path.as_str().len() + output.size(),
                Self::LoopStarted { path, items, keys, .. } => {
                    let keys = keys.iter().flatten().map(|key| key.as_str().len() + 8);
                    path.as_str().len() + items.size() + keys.sum::<usize>()
                }
                Self::ItemCompleted { path, item, output } => {
                    path.as_str().len() + item.as_str().len() + output.size()
                }
                Self::ParallelStarted { path, ready, .. } => {
                    path.as_str().len() + ready.iter().map(|key| key.as_str().len()).sum::<usize>()
                }
                Self::BranchCompleted { path, branch, output, ready } => {
                    let ready = ready.iter().map(|key| key.as_str().len()).sum::<usize>();
                    path.as_str().len() + branch.as_str().len() + output.size() + ready
                }
                Self::BlockStopped { path, error, .. } => {
                    path.as_str().len() + error.as_ref().map_or(0, TaskError::size)
                }
                Self::BranchFailed { path, error, origin, .. }
                | Self::ItemFailed { path, error, origin, .. }
                | Self::HandlerStarted { path, error, origin, .. } => {
                    path.as_str().len() + origin.as_str().len() + error.size()
                }
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
                | Self::BlockStarted { path, .. }
                | Self::ParallelCompleted { path }
                | Self::LoopCompleted { path }
                | Self::AttemptScheduled { path, .. }
                | Self::AttemptWithdrawn { path, .. } => path.as_str().len(),
                Self::CompensationEnded { .. }
                | Self::OnFailureStarted { .. }
                | Self::FinallyStarted { .. } => 0,
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
    /// The earlier of the timeouts of the start and of the workflow, as a point in time.
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
    /// Name of the worker that held the attempt; empty if none did.
    pub worker: String,
    /// The retry policy asks for a WARNING if the execution succeeds after this retry.
    pub warning: bool,
}

/// What is known about the effects of an attempt that did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// A worker reported the error, so the attempt ended there.
    Known,
    /// The attempt may have taken effect: it timed out, was lost, or was cancelled while it ran.
    Unknown,
    /// No worker ever received the attempt.
    NotStarted,
}

/// Why no further step begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    Failed,
    TimedOut,
    Cancelled,
    /// The execution was terminated: live attempts are not waited for, and nothing is undone. Recorded only
    /// when the termination does not fit into one transition; the following transitions continue from it.
    Terminated,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DueCompensation {
    /// The step to undo.
    pub step: StepPath,
    pub generation: u32,
    pub outcome: CompensationOutcome,
}
