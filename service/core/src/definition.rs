//! A workflow as its authors wrote it: data, nothing resolved or compiled. [`crate::plan`] makes it
//! executable.

use std::time::Duration;

use crate::id::{StepId, WorkflowName};
use crate::retry::RetryPolicy;

#[derive(Clone, Debug, PartialEq)]
pub struct Workflow {
    pub name: WorkflowName,
    pub description: String,
    pub defaults: Defaults,
    pub steps: Block,
    /// Runs once per execution, after everything else, whatever the ending but a termination.
    pub finally: Block,
    /// For all runs and the waits between them.
    pub timeout: Option<Duration>,
    /// For compensation and `finally` together.
    pub cleanup_timeout: Option<Duration>,
    /// How long a run that ends early waits for each live attempt.
    pub cancel_grace: Option<Duration>,
    /// JSON text whose strings may hold `${ … }`.
    pub output: Option<String>,
}

/// What steps inherit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Defaults {
    pub queue: Option<String>,
    pub retry: Option<RetryPolicy>,
    pub timeouts: Timeouts,
}

/// Steps in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block(pub Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub id: StepId,
    pub description: String,
    pub kind: StepKind,
    /// Bare CEL; the step is skipped, with a null output, where it is false.
    pub when: Option<String>,
    pub retry: Option<RetryPolicy>,
    pub on_error: OnError,
    /// With [`OnError::Ignore`]: the tolerated error leaves no warning.
    pub allow_warning: bool,
    pub compensate: Option<Compensate>,
}

/// Kinds of nodes. Branches, loops, nested `try`, waits and children become further kinds.
#[derive(Clone, Debug, PartialEq)]
pub enum StepKind {
    Task(Task),
}

impl StepKind {
    /// The work for a worker, if it is any.
    pub fn task(&self) -> Option<&Task> {
        match self {
            Self::Task(task) => Some(task),
        }
    }

    pub fn task_mut(&mut self) -> Option<&mut Task> {
        match self {
            Self::Task(task) => Some(task),
        }
    }
}

/// Work that is handed to a worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Task {
    pub task_type: String,
    pub queue: Option<String>,
    /// JSON text whose strings may hold `${ … }`; without it the task gets the execution's input.
    pub input: Option<String>,
    pub timeouts: Timeouts,
    /// Higher goes first; 0 by default.
    pub priority: i32,
    pub delivery: Delivery,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    pub schedule_to_start: Option<Duration>,
    /// Runs from the hand-over; 60 s by default.
    pub start_to_close: Option<Duration>,
    pub schedule_to_close: Option<Duration>,
    /// The clock exists only when set.
    pub heartbeat: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// Handed out again, as the same attempt, when nobody says that he holds it.
    #[default]
    AtLeastOnce,
    /// The start is written before the hand-over; a lost outcome is `recoup.outcome_unknown`.
    AtMostOnce,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    #[default]
    Fail,
    Ignore,
}

/// The step that undoes a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Compensate {
    pub task: Task,
    pub retry: Option<RetryPolicy>,
    /// Opts out of compensating a step whose outcome is unknown.
    pub only_completed: bool,
}
