//! A workflow as its authors wrote it: plain data, with nothing resolved or compiled. [`crate::plan`] makes
//! it executable.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{StepId, WorkflowName};
use crate::retry::{MatchOn, RetryPolicy};

#[derive(Clone, Debug, PartialEq)]
pub struct Workflow {
    pub name: WorkflowName,
    pub description: String,
    pub defaults: Defaults,
    /// The steps of a run, and the output of the execution.
    pub steps: Block,
    /// Runs once per execution, after the last run and its compensation, if the run failed or timed out.
    pub on_failure: Vec<Step>,
    /// Runs once per execution, after everything else and whatever its outcome, except after a termination.
    pub finally: Vec<Step>,
    /// Limits all runs together, including the waits between them.
    pub timeout: Option<Duration>,
    /// Limits compensation, `on_failure` and `finally` together; one hour by default.
    pub cleanup_timeout: Option<Duration>,
    /// How long a run that ends early waits for each live attempt; 10 s by default. Zero: do not wait.
    pub cancel_grace: Option<Duration>,
}

/// Values that apply to steps that do not set their own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Defaults {
    pub queue: Option<String>,
    pub retry: Option<RetryPolicy>,
    pub timeouts: Timeouts,
}

/// Steps that run one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    pub steps: Vec<Step>,
    /// JSON text whose strings may contain `${ … }`; by default the output of the last step that completed or
    /// whose error was caught, otherwise null.
    pub output: Option<String>,
}

impl From<Vec<Step>> for Block {
    fn from(steps: Vec<Step>) -> Self {
        Self { steps, output: None }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub id: StepId,
    pub description: String,
    pub kind: StepKind,
    /// A bare CEL expression. If it is false, the step is skipped and its output is null.
    pub when: Option<String>,
    /// Limits a step that runs other steps, from its beginning until the last of these has ended. Handlers of
    /// the step run after it, so they are not included. Tasks have [`Timeouts`] instead.
    pub timeout: Option<Duration>,
    pub retry: Option<RetryPolicy>,
    /// Tried in this order after the retries. The first that matches handles the error.
    pub catch: Vec<Catch>,
    pub on_error: OnError,
    /// With [`OnError::Ignore`]: an ignored error is not recorded as a warning.
    pub allow_warning: bool,
    pub compensate: Option<Compensate>,
}

impl Step {
    /// The blocks inside the step, those of its `catch` last.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.kind.blocks().chain(self.catch.iter().map(|catch| &catch.block))
    }
}

/// The kinds of steps. Repetitions, waits and child executions will be further kinds.
#[derive(Clone, Debug, PartialEq)]
pub enum StepKind {
    Task(Task),
    /// Completes at once with a value: JSON text whose strings may contain `${ … }`.
    Set(String),
    Fail(Fail),
    /// Ends the block in which the step stands, successfully.
    Return {
        /// By default the block's own output.
        output: Option<String>,
    },
    Switch(Switch),
    /// Groups steps, so that one `catch` or `on_error` applies to all of them.
    Try(Block),
    Parallel(Parallel),
    ForEach(ForEach),
}

impl StepKind {
    /// The work that is handed to a worker, if this kind of step has any.
    pub fn task(&self) -> Option<&Task> {
        match self {
            Self::Task(task) => Some(task),
            Self::Set(_)
            | Self::Fail(_)
            | Self::Return { .. }
            | Self::Switch(_)
            | Self::Try(_)
            | Self::Parallel(_)
            | Self::ForEach(_) => None,
        }
    }

    pub fn task_mut(&mut self) -> Option<&mut Task> {
        match self {
            Self::Task(task) => Some(task),
            Self::Set(_)
            | Self::Fail(_)
            | Self::Return { .. }
            | Self::Switch(_)
            | Self::Try(_)
            | Self::Parallel(_)
            | Self::ForEach(_) => None,
        }
    }

    /// Whether steps of this kind run other steps, apart from those of their handlers.
    pub fn has_blocks(&self) -> bool {
        match self {
            Self::Switch(_) | Self::Try(_) | Self::Parallel(_) | Self::ForEach(_) => true,
            Self::Task(_) | Self::Set(_) | Self::Fail(_) | Self::Return { .. } => false,
        }
    }

    /// The blocks inside the step, without those of its `catch`.
    fn blocks(&self) -> impl Iterator<Item = &Block> {
        let (cases, default, body, branches) = match self {
            Self::Switch(Switch { cases, default }) => (&cases[..], default.as_ref(), None, None),
            Self::Try(body) => (&[][..], None, Some(body), None),
            Self::ForEach(ForEach { block, .. }) => (&[][..], None, Some(block), None),
            Self::Parallel(parallel) => (&[][..], None, None, Some(&parallel.branches)),
            Self::Task(_) | Self::Set(_) | Self::Fail(_) | Self::Return { .. } => {
                (&[][..], None, None, None)
            }
        };
        let branches = branches.into_iter().flatten().map(|(_, branch)| &branch.block);
        cases.iter().map(|case| &case.block).chain(default).chain(body).chain(branches)
    }
}

/// Raises an error.
#[derive(Clone, Debug, PartialEq)]
pub enum Fail {
    Raise(Raise),
    /// Raises the error again that the innermost handler around the step handles.
    Rethrow,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Raise {
    pub error_type: String,
    /// Text that may contain `${ … }`.
    pub message: String,
    /// JSON text whose strings may contain `${ … }`.
    pub details: Option<String>,
    pub non_retryable: bool,
}

/// Takes the first of several blocks whose condition is true.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Switch {
    pub cases: Vec<Case>,
    /// Runs if no condition is true. Without it, the step then completes with null.
    pub default: Option<Block>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// A bare CEL expression.
    pub when: String,
    pub block: Block,
}

/// Runs several blocks at the same time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parallel {
    /// By their ids, which have the form of step ids. The ids are unique within this step only.
    pub branches: BTreeMap<StepId, Branch>,
    pub mode: FailureMode,
    /// How many branches may run at a time; none: all of them.
    pub concurrency: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Branch {
    pub block: Block,
    /// The branches that must have completed before this one begins. If one of them fails or does not run,
    /// this branch does not run either.
    pub after: Vec<StepId>,
}

/// Runs a block for each item of a list or a map.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ForEach {
    /// A bare CEL expression, whose value is a list or a map. It is evaluated once, when the step begins.
    pub items: String,
    /// `item`, or a field of it such as `item.sku`: a text or a whole number that stands for the item in paths
    /// and idempotency keys. By default, that is the item's index in the list or its key in the map.
    pub item_key: Option<String>,
    /// How many items may run at a time; 1 by default.
    pub concurrency: Option<u32>,
    pub mode: FailureMode,
    pub block: Block,
}

/// What becomes of the other branches or items when one fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailureMode {
    /// They are stopped, and no further ones begin.
    #[default]
    FailFast,
    /// They run to their ends before the step fails.
    WaitAll,
}

/// Handles the error of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catch {
    /// Patterns of error types; none takes every error.
    pub error_types: Vec<String>,
    pub match_on: MatchOn,
    /// A bare CEL expression, which may read the error.
    pub when: Option<String>,
    /// The handler. Its output takes the place of the step's.
    pub block: Block,
}

/// Work that is handed to a worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Task {
    pub task_type: String,
    pub queue: Option<String>,
    /// JSON text whose strings may contain `${ … }`. By default the task gets the execution's input.
    pub input: Option<String>,
    pub timeouts: Timeouts,
    /// Tasks with a higher priority are handed out first; 0 by default.
    pub priority: i32,
    pub delivery: Delivery,
}

/// The timeouts of a task. Those that are unset do not apply, unless a default is given here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the moment when an attempt may be handed out until it is handed out.
    pub schedule_to_start: Option<Duration>,
    /// From the hand-over of an attempt until its result; 60 s by default.
    pub start_to_close: Option<Duration>,
    /// From the beginning of the step until its last result, including all attempts and the waits between
    /// them.
    pub schedule_to_close: Option<Duration>,
    /// The longest time between heartbeats. Without it, heartbeats are not required.
    pub heartbeat: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// If no worker claims to hold an open attempt, it is handed out again as the same attempt.
    #[default]
    AtLeastOnce,
    /// The start is recorded before the hand-over, and no attempt is handed out twice: if its outcome is
    /// unknown, it fails with `recoup.outcome_unknown`.
    AtMostOnce,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// An error that is not retried fails the step and stops the run.
    #[default]
    Fail,
    /// An error that is not retried is ignored, and the next step begins.
    Ignore,
}

/// The task that undoes a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Compensate {
    pub task: Task,
    pub retry: Option<RetryPolicy>,
    /// Do not compensate a step whose outcome is unknown.
    pub only_completed: bool,
}
