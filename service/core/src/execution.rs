//! The state of an execution: what its events fold to. It is independent of the definition, and a
//! tree of nodes, of which a task is one kind. Whatever is asked for at each decision is kept beside the
//! nodes by the fold: counters per scope, open attempts in their orders, the ledger of effects, the
//! weight. No decision walks all nodes.

mod ledger;
mod nodes;
mod open;
#[cfg(test)]
mod walk;
mod weight;

use std::collections::VecDeque;

pub use self::nodes::{Counters, NodeId, Scope};
pub use crate::state::{CompensationOutcome, CompensationState, State, TraceContext};

pub(crate) use self::ledger::Ledger;
pub(crate) use self::nodes::Nodes;
pub(crate) use self::open::{OpenIndex, TaskRef};
pub(crate) use self::weight::{BASE_BYTES, error_bytes};

use crate::command::TaskId;
use crate::error::TaskError;
use crate::event::{PayloadSource, StopCause};
use crate::id::{ExecutionId, Namespace, StepPath, WorkflowName};
use crate::payload::Payload;
use crate::retry::DecidedBy;
use crate::time::Timestamp;

/// How many request ids of mutations an execution remembers.
pub const REQUESTS_MAX: usize = 32;

#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    pub id: ExecutionId,
    /// Of the last transition folded; the next one appends at `sequence + 1`.
    pub sequence: u64,
    /// Events folded, against the limit of a history.
    pub event_count: u32,
    /// When the last transition was decided: event times never go back.
    pub decided_at: Timestamp,

    pub namespace: Namespace,
    pub workflow: WorkflowName,
    pub version: u32,
    pub key: Option<String>,
    pub input: Payload,
    pub trace: TraceContext,
    /// What its history may hold: events are written as this format has them, and stay so to the end. What
    /// formats there are, the store says.
    pub format: u16,
    pub started_at: Timestamp,
    pub deadline: Option<Timestamp>,

    pub state: State,
    pub phase: Phase,
    pub compensation: CompensationState,
    pub run: u32,
    pub(crate) nodes: Nodes,
    pub(crate) ledger: Ledger,
    pub(crate) open: OpenIndex,

    pub output: Option<Payload>,
    /// Why the run stopped, if it did not succeed.
    pub stop: Option<Stop>,
    /// The error of a termination that takes more than one transition, until the last of them.
    pub termination: Option<TaskError>,
    /// The first request to cancel.
    pub cancel_reason: Option<String>,
    pub cleanup_deadline: Option<Timestamp>,
    pub warnings: Vec<Warning>,
    pub ended_at: Option<Timestamp>,
    /// Of an ended execution.
    pub error: Option<TaskError>,

    pub requests: VecDeque<(String, u64)>,
    /// Bytes; see [`Execution::weight`].
    pub(crate) weight: usize,
}

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Steps,
    Compensation,
    OnFailure,
    Finally,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Stop {
    pub cause: StopCause,
    pub error: TaskError,
    /// The step whose failure stopped the run.
    pub step: Option<StepPath>,
    /// Live attempts are waited for until then.
    pub grace_until: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Warning {
    pub path: StepPath,
    pub kind: WarningKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarningKind {
    ErrorIgnored,
    Retried,
    HandlerFailed,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub path: StepPath,
    /// Where it stands, as its path says.
    pub scope: Scope,
    pub generation: u32,
    pub kind: NodeKind,
    pub state: NodeState,
    /// Place in the order of completions and unknown ends; compensation goes in reverse.
    pub closing: Option<u32>,
}

/// Branches, loops, waits and children become further kinds, some of which hold blocks.
#[allow(clippy::large_enum_variant, reason = "almost every node is a task")]
#[derive(Clone, Debug, PartialEq)]
pub enum NodeKind {
    /// Skipped before it was anything else.
    Skipped,
    Task(Task),
}

#[derive(Clone, Debug, PartialEq)]
pub enum NodeState {
    Running,
    Skipped,
    Completed {
        output: Payload,
    },
    Failed {
        error: TaskError,
    },
    /// Failed, and tolerated.
    Ignored {
        error: TaskError,
    },
    /// Ended because the run did.
    Cancelled,
}

/// The work of one step, across its attempts.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    pub input: Payload,
    pub first_scheduled_at: Timestamp,
    /// Attempts made before a person asked for more: they do not count against the policy.
    pub attempts_before: u32,
    /// Number of the latest attempt.
    pub attempt: u32,
    /// The latest attempt, while it is open.
    pub open: Option<OpenAttempt>,
    /// Decisions to retry, by who made them.
    pub decided: Vec<(DecidedBy, u32)>,
    /// Of the latest attempt that ended, if it ended so.
    pub last_error: Option<TaskError>,
    /// An attempt ended with unknown outcome: it may have taken effect.
    pub unknown: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct OpenAttempt {
    /// Of the transition that scheduled it.
    pub sequence: u64,
    /// From then on it may be handed out.
    pub scheduled_at: Timestamp,
    pub started: Option<Started>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    pub worker: String,
    pub session: String,
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Compensation {
    /// The step that is undone.
    pub step: StepPath,
    pub generation: u32,
    pub outcome: CompensationOutcome,
    pub state: CompensationStepState,
    /// Set once it began.
    pub task: Option<Task>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum CompensationStepState {
    Due,
    Running,
    /// The output tells a repeated report from another one.
    Done {
        output: Payload,
    },
    Parked {
        error: TaskError,
    },
    Skipped {
        reason: String,
    },
}

impl Node {
    pub fn task(&self) -> Option<&Task> {
        match &self.kind {
            NodeKind::Task(task) => Some(task),
            NodeKind::Skipped => None,
        }
    }

    /// What the step returned, if it completed.
    pub fn output(&self) -> Option<&Payload> {
        match &self.state {
            NodeState::Completed { output } => Some(output),
            _ => None,
        }
    }

    /// The error that the step failed with, tolerated or not.
    pub fn error(&self) -> Option<&TaskError> {
        match &self.state {
            NodeState::Failed { error } | NodeState::Ignored { error } => Some(error),
            _ => None,
        }
    }
}

/// An attempt that a worker may have or get.
#[derive(Clone, Debug, PartialEq)]
pub struct Open<'a> {
    pub path: StepPath,
    pub task: &'a Task,
    pub attempt: &'a OpenAttempt,
}

impl Execution {
    /// Whether something remains to be done without a person: an ended execution may still be
    /// compensating, because a person asked for it.
    pub fn is_active(&self) -> bool {
        !self.state.is_ended() || self.compensation == CompensationState::Running
    }

    /// Whether the execution takes no further step, only ends those that run.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_some() || self.termination.is_some()
    }

    /// The steps that have begun, those of `finally` excepted, in the order of their start.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &Node> {
        self.nodes.iter().filter(|node| !self.nodes.is_finally(node))
    }

    /// What an event refers to.
    pub fn payload(&self, source: &PayloadSource) -> Payload {
        match source {
            PayloadSource::Inline(payload) => payload.clone(),
            PayloadSource::Input => self.input.clone(),
            PayloadSource::Output(step) => {
                let output = self.node(step).and_then(Node::output);
                output.cloned().unwrap_or_else(Payload::null)
            }
        }
    }

    /// The steps of `finally` that have begun.
    pub fn finally(&self) -> impl DoubleEndedIterator<Item = &Node> {
        self.nodes.iter().filter(|node| self.nodes.is_finally(node))
    }

    /// A node of the steps or of `finally`.
    pub fn node(&self, path: &StepPath) -> Option<&Node> {
        self.nodes.find(path).map(|id| self.nodes.get(id))
    }

    /// How many steps of a scope have begun and run.
    pub fn counters(&self, scope: &Scope) -> Counters {
        self.nodes.counters(scope)
    }

    /// What was found to be due for compensation, in that order.
    pub fn compensations(&self) -> &[Compensation] {
        self.ledger.compensations()
    }

    pub fn compensation_of(&self, step: &StepPath) -> Option<&Compensation> {
        self.ledger.find(step).map(|index| self.ledger.get(index))
    }

    /// The task at a path, be it a step's or a compensation's.
    pub fn task(&self, path: &StepPath) -> Option<&Task> {
        match path.compensated() {
            Some(step) => self.compensation_of(&step)?.task.as_ref(),
            None => self.node(path)?.task(),
        }
    }

    /// Every open attempt, in the order of the tree.
    pub fn open_attempts(&self) -> impl DoubleEndedIterator<Item = Open<'_>> {
        self.open.tasks().filter_map(|task| self.open_attempt(task))
    }

    pub fn open_attempt_count(&self) -> usize {
        self.open.len()
    }

    /// When the first of the open attempts may be handed out.
    pub fn first_scheduled(&self) -> Option<Timestamp> {
        self.open.first_scheduled()
    }

    /// The open attempt of a step or a compensation.
    pub fn open_attempt_of(&self, path: &StepPath) -> Option<Open<'_>> {
        let task = self.task(path)?;
        Some(Open { path: path.clone(), task, attempt: task.open.as_ref()? })
    }

    pub(crate) fn open_attempt(&self, task: TaskRef) -> Option<Open<'_>> {
        let (path, task) = match task {
            TaskRef::Step(id) => {
                let node = self.nodes.get(id);
                (node.path.clone(), node.task()?)
            }
            TaskRef::Compensation(index) => {
                let compensation = self.ledger.get(index);
                (compensation.step.compensation(), compensation.task.as_ref()?)
            }
        };
        Some(Open { path, task, attempt: task.open.as_ref()? })
    }

    /// Who the history says has an open attempt.
    pub fn started(&self, id: &TaskId) -> Option<&Started> {
        let task = self.task(&id.path)?;
        let open = task.open.as_ref()?;
        let is_it = (id.execution, id.run, id.attempt, id.sequence)
            == (self.id, self.run, task.attempt, open.sequence);
        open.started.as_ref().filter(|_| is_it)
    }

    pub fn task_id(&self, open: &Open<'_>) -> TaskId {
        TaskId {
            execution: self.id,
            run: self.run,
            path: open.path.clone(),
            attempt: open.task.attempt,
            sequence: open.attempt.sequence,
        }
    }

    /// The same for every attempt of a step: what a worker hands to those that it calls, so that
    /// effects happen once. Execution, step path and generation; a compensation's is that of its
    /// step and `/compensate`.
    pub fn idempotency_key(&self, path: &StepPath) -> String {
        match path.compensated() {
            Some(step) => {
                let generation = self.compensation_of(&step).map_or(0, |undone| undone.generation);
                format!("{}/{step}/{generation}/compensate", self.id)
            }
            None => {
                let generation = self.node(path).map_or(0, |node| node.generation);
                format!("{}/{path}/{generation}", self.id)
            }
        }
    }
}
