//! A workflow version made executable: defaults resolved, expressions compiled, every task found by
//! its path in the [`Tree`]. Made once per version, shared by all its executions.

mod compile;
mod policy;

use std::time::Duration;

use crate::definition::{self, Delivery, OnError};
use crate::expression::{Condition, Template, Trust};
use crate::id::{StepId, StepPath, WorkflowName};
use crate::retry::RetryPolicy;
use crate::tree::{PlanNodeId, ScopeId, Tree};

pub use self::policy::{PatternError, check_error_type_pattern};

/// Time of one attempt from its hand-over, where nothing else is said.
pub const START_TO_CLOSE: Duration = Duration::from_secs(60);
pub const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// For compensation and `finally` together.
pub const CLEANUP_TIMEOUT: Duration = Duration::from_secs(3600);
pub const QUEUE: &str = "default";

/// One thing that is wrong with a definition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field_path}: {message}")]
pub struct Issue {
    /// Where, by the names of the API: `steps[2].retry.max_attempts`.
    pub field_path: String,
    pub code: IssueCode,
    pub message: String,
}

/// Kinds of issues. Their names are part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IssueCode {
    Required,
    /// A value of an enum that this binary does not know.
    ValueUnknown,
    TooLong,
    TooMany,
    NameInvalid,
    StepIdInvalid,
    StepIdReserved,
    StepIdTaken,
    DurationInvalid,
    TimeoutsContradict,
    PriorityOutOfRange,
    AllowWarningWithoutIgnore,
    CompensateInFinally,
    RetryPolicyInvalid,
    ExpressionInvalid,
}

impl IssueCode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "REQUIRED",
            Self::ValueUnknown => "VALUE_UNKNOWN",
            Self::TooLong => "TOO_LONG",
            Self::TooMany => "TOO_MANY",
            Self::NameInvalid => "NAME_INVALID",
            Self::StepIdInvalid => "STEP_ID_INVALID",
            Self::StepIdReserved => "STEP_ID_RESERVED",
            Self::StepIdTaken => "STEP_ID_TAKEN",
            Self::DurationInvalid => "DURATION_INVALID",
            Self::TimeoutsContradict => "TIMEOUTS_CONTRADICT",
            Self::PriorityOutOfRange => "PRIORITY_OUT_OF_RANGE",
            Self::AllowWarningWithoutIgnore => "ALLOW_WARNING_WITHOUT_IGNORE",
            Self::CompensateInFinally => "COMPENSATE_IN_FINALLY",
            Self::RetryPolicyInvalid => "RETRY_POLICY_INVALID",
            Self::ExpressionInvalid => "EXPRESSION_INVALID",
        }
    }
}

#[derive(Debug)]
pub struct Plan {
    pub name: WorkflowName,
    pub version: u32,
    /// Where the steps stand, and how paths name them.
    pub tree: Tree,
    /// One for each node of the tree, in the same order.
    nodes: Vec<StepPlan>,
    /// Patterns of the tasks, compensations included, whose attempts have a common timeout.
    timed: Vec<StepPath>,
    pub timeout: Option<Duration>,
    pub cleanup_timeout: Option<Duration>,
    pub cancel_grace: Duration,
    /// Without it the output is that of the last step that completed.
    pub output: Option<Template>,
}

#[derive(Debug)]
pub struct StepPlan {
    pub id: StepId,
    /// Of a step that stands in no loop.
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
    /// Resolves defaults, compiles expressions and checks everything that can be checked before an
    /// execution: what is unset at a step is that of the workflow's defaults, else the built-in value.
    ///
    /// # Errors
    /// All issues, in the order of the definition.
    pub fn compile(definition: &definition::Workflow, version: u32) -> Result<Self, Vec<Issue>> {
        compile::compile(definition, version, Trust::Unchecked)
    }

    /// The plan of a definition that was accepted when it was registered, by this binary or by one with
    /// other rules. None of the rules is applied again: a version that is stricter than the one before
    /// must not stop executions that are under way.
    ///
    /// # Errors
    /// Only what leaves no plan to follow: a template or an expression that cannot be parsed.
    pub fn of_accepted(
        definition: &definition::Workflow,
        version: u32,
    ) -> Result<Self, Vec<Issue>> {
        compile::compile(definition, version, Trust::Accepted)
    }

    pub fn node(&self, node: PlanNodeId) -> &StepPlan {
        &self.nodes[node.index()]
    }

    /// The patterns of the paths of tasks with `schedule_to_close`, compensations included.
    pub(crate) fn timed(&self) -> &[StepPath] {
        &self.timed
    }

    /// The steps of a scope in the order in which they run.
    pub fn children(&self, scope: ScopeId) -> impl ExactSizeIterator<Item = &StepPlan> {
        self.tree.children(scope).iter().map(|node| self.node(*node))
    }

    /// The steps of `finally`.
    pub fn finally(&self) -> impl ExactSizeIterator<Item = &StepPlan> {
        self.children(ScopeId::FINALLY)
    }

    /// The step of a scope at a position, from 0; none behind the last one.
    pub fn step_at(&self, scope: ScopeId, position: usize) -> Option<&StepPlan> {
        self.tree.children(scope).get(position).map(|node| self.node(*node))
    }

    pub fn step(&self, path: &StepPath) -> Option<&StepPlan> {
        self.tree.resolve(path).map(|(node, _)| self.node(node))
    }

    /// Whether the path is one of `finally`.
    pub fn is_finally(&self, path: &StepPath) -> bool {
        self.tree
            .resolve(path)
            .is_some_and(|(node, _)| self.tree.place(node).scope == ScopeId::FINALLY)
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

    pub fn is_at_most_once(&self, path: &StepPath) -> bool {
        self.task(path).is_some_and(|task| task.delivery == Delivery::AtMostOnce)
    }
}

#[cfg(test)]
mod tests;
