//! The state of an execution: the fold of its events. It does not depend on the definition. It is a tree of
//! nodes, and tasks are one kind of node.
//!
//! Values that every decision needs are kept up to date by the fold, beside the nodes: counters per scope,
//! open attempts in the orders in which they are needed, the ledger of effects, and the weight. No decision
//! walks all nodes.

mod lanes;
mod ledger;
mod loops;
mod nodes;
mod open;
mod parallel;
#[cfg(test)]
mod walk;
mod weight;

use std::collections::VecDeque;

pub use self::lanes::Lanes;
pub use self::loops::{Items, Loop};
pub use self::nodes::{Counters, NodeId, Scope};
pub use self::parallel::Parallel;
pub use crate::state::{CompensationOutcome, CompensationState, Part, State, TraceContext};

pub(crate) use self::lanes::BlockWork;
pub(crate) use self::ledger::Ledger;
pub(crate) use self::nodes::Nodes;
pub(crate) use self::open::{OpenIndex, TaskRef};
pub(crate) use self::weight::{BASE_BYTES, error_bytes};

use crate::command::TaskId;
use crate::error::TaskError;
use crate::event::{PayloadSource, StopCause};
use crate::id::{ExecutionId, ItemKey, Namespace, StepPath, WorkflowName};
use crate::payload::Payload;
use crate::retry::DecidedBy;
use crate::time::Timestamp;

/// How many request ids of mutations an execution remembers; the oldest ones are dropped.
pub const REQUESTS_MAX: usize = 32;

#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    pub id: ExecutionId,
    /// Sequence of the last transition folded; the next transition is appended at `sequence + 1`.
    pub sequence: u64,
    /// Number of events folded so far, which counts against the limit of a history.
    pub event_count: u32,
    /// When the last transition was decided. A later transition never has an earlier time.
    pub decided_at: Timestamp,

    pub namespace: Namespace,
    pub workflow: WorkflowName,
    pub version: u32,
    pub key: Option<String>,
    pub input: Payload,
    pub trace: TraceContext,
    /// The format of the execution's history. It is fixed at the start and never changes, and every event
    /// is written as this format defines. The store lists the formats.
    pub format: u16,
    pub started_at: Timestamp,
    /// When the run times out; none without a timeout.
    pub deadline: Option<Timestamp>,

    pub state: State,
    pub phase: Phase,
    pub compensation: CompensationState,
    /// Number of the current run, from 1.
    pub run: u32,
    pub(crate) nodes: Nodes,
    pub(crate) ledger: Ledger,
    pub(crate) open: OpenIndex,

    pub output: Option<Payload>,
    /// Why the run stopped, if it did not succeed.
    pub stop: Option<Stop>,
    /// The error of a termination that needs more than one transition; unset again by the last of them.
    pub termination: Option<TaskError>,
    /// The reason given by the first request to cancel.
    pub cancel_reason: Option<String>,
    /// When the cleanup times out. Set when its first part begins: compensation, `on_failure` or `finally`.
    pub cleanup_deadline: Option<Timestamp>,
    pub warnings: Vec<Warning>,
    pub ended_at: Option<Timestamp>,
    /// The error with which the execution ended, if it did not succeed.
    pub error: Option<TaskError>,

    /// The request ids of the latest mutations, oldest first, each with the digest of its request.
    pub requests: VecDeque<(String, u64)>,
    /// Approximate bytes of memory; see [`Execution::weight`].
    pub(crate) weight: usize,
}

/// The part of an execution that is running.
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
    /// How long live attempts are waited for.
    pub grace_until: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Warning {
    pub path: StepPath,
    pub kind: WarningKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarningKind {
    /// The error of a step was ignored.
    ErrorIgnored,
    /// An attempt was retried under a policy with `warning_on_retry`.
    Retried,
    /// A step of `on_failure` or `finally` failed.
    HandlerFailed,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub path: StepPath,
    /// The scope in which the step stands, which follows from its path.
    pub scope: Scope,
    /// How many times the step was begun afresh after it had been undone. Always 0 so far.
    pub generation: u32,
    pub kind: NodeKind,
    pub state: NodeState,
    /// The list of steps inside the step that runs, or that ran last. Only one of them runs at a time, except
    /// that the branches of a `parallel` share this value.
    pub part: Option<Part>,
    /// When the step times out, if it runs other steps.
    pub deadline: Option<Timestamp>,
    /// Set while the step is being stopped: nothing inside it begins, and live attempts inside it are waited
    /// for.
    pub stopped: Option<Box<BlockStop>>,
    /// The error that a handler of the step took.
    pub handled: Option<Box<Handled>>,
    /// The node's place in the order in which steps completed or ended with an unknown outcome.
    /// Compensation runs in the reverse of this order.
    pub closing: Option<u32>,
}

/// Why and for how long a step is being stopped.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockStop {
    /// None if the first branch that failed is the reason.
    pub error: Option<TaskError>,
    /// How long live attempts are waited for.
    pub grace_until: Timestamp,
}

/// An error, with the step in which it arose.
#[derive(Clone, Debug, PartialEq)]
pub struct Handled {
    pub error: TaskError,
    /// The step in which the error arose.
    pub origin: StepPath,
}

/// How a branch or an item ended.
#[derive(Clone, Debug, PartialEq)]
pub enum LaneResult {
    Completed(Payload),
    Failed(Box<Handled>),
}

#[allow(clippy::large_enum_variant, reason = "almost every node is a task")]
#[derive(Clone, Debug, PartialEq)]
pub enum NodeKind {
    /// The step was skipped, so it never had any work.
    Skipped,
    Task(Task),
    /// The step is not a task: the service itself executes it. It has no effects of its own.
    Block,
}

#[derive(Clone, Debug, PartialEq)]
pub enum NodeState {
    Running,
    Skipped,
    Completed {
        output: Payload,
    },
    /// The step is a `parallel` or a `for_each`, and all of its branches or items completed. Its output is put
    /// together from theirs where it is read.
    Joined,
    /// The step failed, and a handler completed in its place. The node keeps the error.
    Caught {
        output: Payload,
    },
    Failed {
        error: TaskError,
    },
    /// The step failed, and its error was ignored.
    Ignored {
        error: TaskError,
    },
    /// The step was ended because the run ended.
    Cancelled,
}

/// The work of one step or compensation, across all its attempts.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    pub input: Payload,
    pub first_scheduled_at: Timestamp,
    /// Attempts made before an operator asked for a retry. They do not count against the retry policy.
    pub attempts_before: u32,
    /// Number of the latest attempt.
    pub attempt: u32,
    /// The latest attempt, while it is open.
    pub open: Option<OpenAttempt>,
    /// How many retries have been decided, for each source of the delay.
    pub decided: Vec<(DecidedBy, u32)>,
    /// The error of the latest attempt that ended, if it ended with one.
    pub last_error: Option<TaskError>,
    /// At least one attempt ended with an unknown outcome, so the task may have taken effect.
    pub unknown: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct OpenAttempt {
    /// Sequence of the transition that scheduled the attempt.
    pub sequence: u64,
    /// The time from which the attempt may be handed out.
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
    /// Set once the compensation has begun.
    pub task: Option<Task>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum CompensationStepState {
    Due,
    Running,
    /// Keeps the output, to tell a repeated report of the same result from a different one.
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
            NodeKind::Skipped | NodeKind::Block => None,
        }
    }

    /// Whether an expression that reads the output of the step finds one.
    pub fn has_output(&self) -> bool {
        self.output().is_some() || self.state == NodeState::Joined
    }

    /// The output of the step, if it completed, or that of the handler that completed in its place. None for
    /// a `parallel` or `for_each` that completed: [`Execution::output`] has its output.
    pub fn output(&self) -> Option<&Payload> {
        match &self.state {
            NodeState::Completed { output } | NodeState::Caught { output } => Some(output),
            _ => None,
        }
    }

    /// The output of the step itself, if it completed.
    pub fn own_output(&self) -> Option<&Payload> {
        match &self.state {
            NodeState::Completed { output } => Some(output),
            _ => None,
        }
    }

    /// The error with which the step failed, whether or not it was caught or ignored.
    pub fn error(&self) -> Option<&TaskError> {
        match &self.state {
            NodeState::Failed { error } | NodeState::Ignored { error } => Some(error),
            NodeState::Caught { .. } => self.handled.as_ref().map(|handled| &handled.error),
            _ => None,
        }
    }

    /// The handler that is running in place of the step, and the error that it took.
    pub fn handling(&self) -> Option<(u32, &Handled)> {
        match (self.part, &self.handled, &self.state) {
            (Some(Part::Handler(handler)), Some(handled), NodeState::Running) => {
                Some((handler, handled))
            }
            _ => None,
        }
    }
}

/// The output of a step.
#[derive(Clone, Copy, Debug)]
pub enum Output<'a> {
    Whole(&'a Payload),
    /// That of a `parallel`: a JSON object with the outputs of its branches.
    Branches(&'a Parallel),
    /// That of a `for_each`: a JSON list with the outputs of its items.
    Items(&'a Loop),
}

impl Output<'_> {
    /// The approximate number of bytes of the output.
    pub fn size(self) -> usize {
        let of = |output: Option<&Payload>| output.map_or(4, |output| output.data.len()) + 1;
        match self {
            Self::Whole(output) => output.data.len(),
            Self::Branches(parallel) => {
                let outputs = parallel.outputs();
                let each = outputs.map(|(id, output)| id.as_str().len() + 3 + of(Some(output)));
                each.sum::<usize>() + 2
            }
            Self::Items(items) => items.outputs().map(of).sum::<usize>() + 2,
        }
    }

    /// The branch or item whose output has no place in JSON.
    pub fn first_not_json(self) -> Option<ItemKey> {
        match self {
            Self::Whole(_) => None,
            Self::Branches(parallel) => {
                parallel.outputs().find(|(_, output)| !output.is_json()).map(|(id, _)| id.clone())
            }
            Self::Items(items) => {
                let mut outputs = items.outputs().zip(0..);
                let found = outputs.find(|(output, _)| output.is_some_and(|own| !own.is_json()));
                found.map(|(_, index)| items.key(index))
            }
        }
    }

    /// The output as one payload, where the output of a branch or an item that is not JSON is null.
    pub fn to_payload(self) -> Payload {
        let mut json = Vec::new();
        match self {
            Self::Whole(output) => return output.clone(),
            Self::Branches(parallel) => {
                json.push(b'{');
                for (id, output) in parallel.outputs() {
                    if json.len() > 1 {
                        json.push(b',');
                    }
                    json.extend(serde_json::Value::from(id.as_str()).to_string().as_bytes());
                    json.push(b':');
                    json.extend_from_slice(json_of(Some(output)));
                }
                json.push(b'}');
            }
            Self::Items(items) => {
                json.push(b'[');
                for (output, index) in items.outputs().zip(0_u32..) {
                    if index > 0 {
                        json.push(b',');
                    }
                    json.extend_from_slice(json_of(output));
                }
                json.push(b']');
            }
        }
        Payload::json(json)
    }
}

fn json_of(output: Option<&Payload>) -> &[u8] {
    match output.filter(|output| output.is_json() && !output.data.is_empty()) {
        Some(output) => &output.data,
        None => b"null",
    }
}

/// An attempt that a worker holds or may be given.
#[derive(Clone, Debug, PartialEq)]
pub struct Open<'a> {
    pub path: StepPath,
    pub task: &'a Task,
    pub attempt: &'a OpenAttempt,
}

impl Execution {
    /// Whether work remains that needs no operator. This may be true of an ended execution: it compensates
    /// again after an operator has retried a parked compensation.
    pub fn is_active(&self) -> bool {
        !self.state.is_ended() || self.compensation == CompensationState::Running
    }

    /// Whether the execution begins no further step and only ends the steps that are running.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_some() || self.termination.is_some()
    }

    /// The steps that have begun, in the order of their start, without those of `on_failure` and `finally`.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &Node> {
        self.nodes.iter().filter(|node| !self.nodes.is_cleanup(node))
    }

    /// Resolves the payload that an event holds or refers to.
    pub fn payload(&self, source: &PayloadSource) -> Payload {
        match source {
            PayloadSource::Inline(payload) => payload.clone(),
            PayloadSource::Input => self.input.clone(),
            PayloadSource::Output(step) => match self.output(step) {
                Some(output) => output.to_payload(),
                None => Payload::null(),
            },
        }
    }

    /// The output of a step that completed or whose error was caught. Of a `parallel` or `for_each` that did
    /// not complete, the outputs of those of its branches or items that did.
    pub fn output(&self, step: &StepPath) -> Option<Output<'_>> {
        let id = self.nodes.find(step)?;
        let node = self.nodes.get(id);
        match (&node.state, self.nodes.lanes(id)) {
            (NodeState::Ignored { .. }, _) => None,
            (NodeState::Caught { output }, _) => Some(Output::Whole(output)),
            (_, Some(Lanes::Branches(parallel))) => Some(Output::Branches(parallel)),
            (_, Some(Lanes::Items(items))) => Some(Output::Items(items)),
            (_, None) => node.output().map(Output::Whole),
        }
    }

    /// The branches of a `parallel`, or the items of a `for_each`, that has begun.
    pub fn lanes(&self, step: &StepPath) -> Option<&Lanes> {
        self.nodes.lanes(self.nodes.find(step)?)
    }

    /// The branches of a `parallel` that has begun.
    pub fn parallel(&self, step: &StepPath) -> Option<&Parallel> {
        match self.lanes(step)? {
            Lanes::Branches(parallel) => Some(parallel),
            Lanes::Items(_) => None,
        }
    }

    /// The items around a scope, outermost first: the loop of each, and the key of the item.
    pub fn items_around<'a>(&'a self, scope: &'a Scope) -> Vec<(&'a Loop, &'a ItemKey)> {
        let mut items = Vec::new();
        let mut scope = scope;
        while let Scope::Inside { node, item, .. } = scope {
            if let (Some(Lanes::Items(of)), Some(key)) = (self.nodes.lanes(*node), item) {
                items.push((&**of, key));
            }
            scope = &self.nodes.get(*node).scope;
        }
        items.reverse();
        items
    }

    /// Whether an attempt is told to end, because the run or a step around it is being stopped. Attempts of
    /// compensations, `on_failure` and `finally` do not end with the run.
    pub fn is_ending(&self, path: &StepPath) -> bool {
        if path.compensated().is_some() {
            return false;
        }
        let stops_run = self.is_stopping() && self.phase == Phase::Steps;
        stops_run || self.nodes.find(path).is_some_and(|id| self.nodes.is_being_stopped(id))
    }

    /// The steps with an open attempt inside steps that are being stopped.
    pub fn steps_being_stopped(&self) -> impl Iterator<Item = &StepPath> {
        let live = self.nodes.stopped_blocks().flat_map(|(id, _)| self.nodes.live_inside(id));
        live.map(|id| &self.nodes.get(id).path)
    }

    /// The steps of `on_failure` and `finally` that have begun.
    pub fn cleanup_steps(&self) -> impl DoubleEndedIterator<Item = &Node> {
        self.nodes.iter().filter(|node| self.nodes.is_cleanup(node))
    }

    /// The node of a step, including the steps of `on_failure` and `finally`.
    pub fn node(&self, path: &StepPath) -> Option<&Node> {
        self.nodes.find(path).map(|id| self.nodes.get(id))
    }

    /// The error that the innermost handler around the steps of a scope took; none outside handlers.
    pub fn handled_in(&self, scope: &Scope) -> Option<&Handled> {
        let mut scope = scope;
        while let Scope::Inside { node, part, .. } = scope {
            let owner = self.nodes.get(*node);
            if let Part::Handler(_) = part {
                return owner.handled.as_deref();
            }
            scope = &owner.scope;
        }
        None
    }

    /// What is known about a scope without looking at its steps.
    pub fn counters(&self, scope: &Scope) -> Counters {
        self.nodes.counters(scope)
    }

    /// The compensations that have been listed as due, in the order in which they run.
    pub fn compensations(&self) -> &[Compensation] {
        self.ledger.compensations()
    }

    pub fn compensation_of(&self, step: &StepPath) -> Option<&Compensation> {
        self.ledger.find(step).map(|index| self.ledger.get(index))
    }

    /// The task at a path, which may be the path of a step or of a compensation.
    pub fn task(&self, path: &StepPath) -> Option<&Task> {
        match path.compensated() {
            Some(step) => self.compensation_of(&step)?.task.as_ref(),
            None => self.node(path)?.task(),
        }
    }

    /// Every open attempt: first those of steps in the order of their start, then those of compensations.
    pub fn open_attempts(&self) -> impl DoubleEndedIterator<Item = Open<'_>> {
        self.open.tasks().filter_map(|task| self.open_attempt(task))
    }

    pub fn open_attempt_count(&self) -> usize {
        self.open.len()
    }

    /// The earliest time at which one of the open attempts may be handed out.
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

    /// The worker that holds an open attempt according to the history.
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

    /// The idempotency key of a step or compensation, which is the same for all its attempts. A worker
    /// passes it to the services that it calls, so that they can deduplicate side effects.
    ///
    /// The key has the form `<execution>/<step path>/<generation>`. For a compensation it is the key of the
    /// step followed by `/compensate`.
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
