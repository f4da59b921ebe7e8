//! A workflow version in executable form: defaults are resolved, expressions are compiled, and every task
//! can be found by its path in the [`Tree`]. A plan is made once per version and shared by all its
//! executions.

mod branches;
mod compile;
mod inside;
mod issue;
mod policy;

use std::time::Duration;

use crate::definition::{Delivery, FailureMode, OnError};
use crate::error::TaskError;
use crate::expression::{Condition, Template};
use crate::id::{ItemKey, StepId, StepPath, WorkflowName};
use crate::retry::{MatchOn, RetryPolicy};
use crate::state::Part;
use crate::tree::{PlanNodeId, ScopeId, Tree};

pub use self::issue::{Issue, IssueCode};
pub use self::policy::{PatternError, check_error_type_pattern};

/// Default time limit of one attempt, measured from its hand-over.
pub const START_TO_CLOSE: Duration = Duration::from_secs(60);
/// Default of the time for which a run that ends early waits for its live attempts.
pub const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// Default time limit of compensation, `on_failure` and `finally` together.
pub const CLEANUP_TIMEOUT: Duration = Duration::from_secs(3600);
/// Name of the default queue.
pub const QUEUE: &str = "default";

#[derive(Debug)]
pub struct Plan {
    pub name: WorkflowName,
    pub version: u32,
    /// The places of the steps, and the paths that name them.
    pub tree: Tree,
    /// One plan for each node of the tree, in the same order.
    nodes: Vec<StepPlan>,
    /// Path patterns of the tasks with `schedule_to_close`, compensations included. All attempts of such a
    /// task share that timeout.
    timed: Vec<StepPath>,
    pub timeout: Option<Duration>,
    pub cleanup_timeout: Option<Duration>,
    pub cancel_grace: Duration,
    /// The output templates of the scopes, by the index of the scope.
    outputs: Vec<Option<Template>>,
    /// The lowest history format in which the workflow can be executed.
    pub needs_format: u16,
}

#[derive(Debug)]
pub struct StepPlan {
    pub id: StepId,
    /// The path of the step, with empty brackets for the keys of the items around it.
    pub path: StepPath,
    pub kind: StepKind,
    pub when: Option<Condition>,
    /// Of a step that runs other steps.
    pub timeout: Option<Duration>,
    pub catch: Vec<CatchPlan>,
    pub on_error: OnError,
    pub allow_warning: bool,
    pub compensate: Option<CompensationPlan>,
}

#[derive(Debug)]
pub enum StepKind {
    Task(TaskPlan),
    Set(Template),
    Raise(RaisePlan),
    Rethrow,
    /// Without a template, the output is that of the scope.
    Return(Option<Template>),
    /// The conditions of the cases, in their order.
    Switch(Vec<Condition>),
    Try,
    Parallel(ParallelPlan),
    ForEach(ForEachPlan),
}

impl StepKind {
    /// The work that is handed to a worker, if this kind of step has any.
    pub fn task(&self) -> Option<&TaskPlan> {
        match self {
            Self::Task(task) => Some(task),
            Self::Set(_)
            | Self::Raise(_)
            | Self::Rethrow
            | Self::Return(_)
            | Self::Switch(_)
            | Self::Try
            | Self::Parallel(_)
            | Self::ForEach(_) => None,
        }
    }

    /// What becomes of the other branches or items when one fails; none for other kinds.
    pub fn mode(&self) -> Option<FailureMode> {
        match self {
            Self::Parallel(parallel) => Some(parallel.mode),
            Self::ForEach(each) => Some(each.mode),
            _ => None,
        }
    }
}

/// The branches are scopes of the step; which ones come after which stands in the tree.
#[derive(Debug)]
pub struct ParallelPlan {
    pub mode: FailureMode,
    /// How many branches may run at a time; none: all of them.
    pub concurrency: Option<u32>,
}

/// The items run in a scope of the step.
#[derive(Debug)]
pub struct ForEachPlan {
    /// Renders a list or a map.
    pub items: Template,
    /// The fields that lead from an item to its key.
    pub item_key: Option<Vec<String>>,
    pub concurrency: u32,
    pub mode: FailureMode,
}

/// An error that a step raises.
#[derive(Debug)]
pub struct RaisePlan {
    pub error_type: String,
    /// Renders a JSON string.
    pub message: Template,
    pub details: Option<Template>,
    pub non_retryable: bool,
}

/// A handler of a step's error. Its steps are a scope of the step.
#[derive(Debug)]
pub struct CatchPlan {
    error_types: Vec<String>,
    match_on: MatchOn,
    pub when: Option<Condition>,
}

impl CatchPlan {
    /// Whether the handler is for errors of this type; `when` is a further condition.
    pub fn takes_type_of(&self, error: &TaskError) -> bool {
        self.error_types.is_empty() || self.match_on.takes(&self.error_types, error)
    }
}

#[derive(Debug)]
pub struct TaskPlan {
    pub task_type: String,
    pub queue: String,
    /// Without it, a task gets the execution's input, and a compensation gets the input of its step.
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
    pub fn node(&self, node: PlanNodeId) -> &StepPlan {
        &self.nodes[node.index()]
    }

    /// Path patterns of the tasks with `schedule_to_close`, compensations included.
    pub(crate) fn timed(&self) -> &[StepPath] {
        &self.timed
    }

    /// The steps of a scope in the order in which they run.
    pub fn children(&self, scope: ScopeId) -> impl ExactSizeIterator<Item = &StepPlan> {
        self.tree.children(scope).iter().map(|node| self.node(*node))
    }

    /// The steps of `on_failure`.
    pub fn on_failure(&self) -> impl ExactSizeIterator<Item = &StepPlan> {
        self.children(ScopeId::ON_FAILURE)
    }

    /// The steps of `finally`.
    pub fn finally(&self) -> impl ExactSizeIterator<Item = &StepPlan> {
        self.children(ScopeId::FINALLY)
    }

    /// The step at a position of a scope, counted from 0; none after the last one.
    pub fn step_at(&self, scope: ScopeId, position: usize) -> Option<&StepPlan> {
        self.tree.children(scope).get(position).map(|node| self.node(*node))
    }

    pub fn step(&self, path: &StepPath) -> Option<&StepPlan> {
        self.tree.resolve(path).map(|(node, _)| self.node(node))
    }

    /// The list of steps that is this part of the step at a path; `key` is the id of the branch, if it is
    /// one.
    pub(crate) fn part(
        &self,
        path: &StepPath,
        part: Part,
        key: Option<&ItemKey>,
    ) -> Option<ScopeId> {
        let (node, _) = self.tree.resolve(path)?;
        self.tree.part(node, part, key)
    }

    /// The branches of the step at a path, in the order of their ids.
    pub(crate) fn branches(&self, path: &StepPath) -> impl Iterator<Item = ScopeId> {
        let node = self.tree.resolve(path).map(|(node, _)| node);
        let parts = node.map_or(&[][..], |node| self.tree.parts(node));
        parts.iter().filter(|(part, _)| *part == Part::Branch).map(|(_, scope)| *scope)
    }

    /// Whether the path names a step of `on_failure` or `finally`, or one inside such a step.
    pub fn is_cleanup(&self, path: &StepPath) -> bool {
        self.tree.resolve(path).is_some_and(|(node, _)| self.tree.is_cleanup(node))
    }

    /// The output template of a scope. Without one, its output is that of the last step that completed or
    /// whose error was caught.
    pub(crate) fn output(&self, scope: ScopeId) -> Option<&Template> {
        self.outputs.get(scope.index())?.as_ref()
    }

    /// The task at a path, which may be the path of a step or of a compensation.
    pub fn task(&self, path: &StepPath) -> Option<&TaskPlan> {
        match path.compensated() {
            Some(step) => Some(&self.step(&step)?.compensate.as_ref()?.task),
            None => self.step(path)?.kind.task(),
        }
    }

    pub fn is_at_most_once(&self, path: &StepPath) -> bool {
        self.task(path).is_some_and(|task| task.delivery == Delivery::AtMostOnce)
    }
}

#[cfg(test)]
mod tests;
