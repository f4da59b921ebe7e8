//! A workflow version made executable: defaults resolved, expressions compiled, every task found by
//! its path. Made once per version, shared by all its executions.

use std::collections::HashMap;
use std::time::Duration;

use crate::definition::{Delivery, OnError};
use crate::expression::{Condition, Template};
use crate::id::{StepId, StepPath, WorkflowName};
use crate::retry::RetryPolicy;

pub const START_TO_CLOSE: Duration = Duration::from_secs(60);
pub const CANCEL_GRACE: Duration = Duration::from_secs(10);
pub const QUEUE: &str = "default";

#[derive(Debug)]
pub struct Plan {
    pub name: WorkflowName,
    pub version: u32,
    pub steps: Vec<StepPlan>,
    pub finally: Vec<StepPlan>,
    pub timeout: Option<Duration>,
    pub cleanup_timeout: Option<Duration>,
    pub cancel_grace: Duration,
    /// Without it the output is that of the last step that was not skipped.
    pub output: Option<Template>,
    /// Where each step stands: in `steps` or, with `true`, in `finally`.
    pub(crate) places: HashMap<StepPath, (bool, usize)>,
}

#[derive(Debug)]
pub struct StepPlan {
    pub id: StepId,
    pub path: StepPath,
    pub kind: StepKind,
    pub when: Option<Condition>,
    pub on_error: OnError,
    pub allow_warning: bool,
    pub compensate: Option<CompensationPlan>,
}

#[derive(Debug)]
pub enum StepKind {
    Task(TaskPlan),
}

#[derive(Debug)]
pub struct TaskPlan {
    pub task_type: String,
    pub queue: String,
    /// Without it the task gets the execution's input; a compensation gets its step's input.
    pub input: Option<Template>,
    pub schedule_to_start: Option<Duration>,
    pub start_to_close: Duration,
    pub schedule_to_close: Option<Duration>,
    pub heartbeat: Option<Duration>,
    pub priority: i32,
    pub delivery: Delivery,
    pub retry: RetryPolicy,
}

#[derive(Debug)]
pub struct CompensationPlan {
    pub task: TaskPlan,
    pub only_completed: bool,
}

impl Plan {
    pub fn step(&self, path: &StepPath) -> Option<&StepPlan> {
        let (is_finally, index) = *self.places.get(path)?;
        if is_finally { self.finally.get(index) } else { self.steps.get(index) }
    }

    /// Whether the path is one of `finally`.
    pub fn is_finally(&self, path: &StepPath) -> bool {
        self.places.get(path).is_some_and(|(is_finally, _)| *is_finally)
    }

    /// The task at a path, be it a step's or a compensation's.
    pub fn task(&self, path: &StepPath) -> Option<&TaskPlan> {
        match path.compensated() {
            Some(step) => Some(&self.step(&step)?.compensate.as_ref()?.task),
            None => match &self.step(path)?.kind {
                StepKind::Task(task) => Some(task),
            },
        }
    }
}
