//! The approximate memory that a state takes, and the functions that change nodes and compensations. Every
//! change of a node or compensation goes through these functions, so that the weight and the index of open
//! attempts stay in step with it.

use super::nodes::NodeId;
use super::open::{OpenFacts, TaskRef};
use super::{Compensation, Execution, LaneResult, Lanes, Node, NodeKind, NodeState, Task};
use crate::error::{Suppressed, TaskError};
use crate::id::{ItemKey, StepPath};

/// The fixed cost of an execution. The constants below are the fixed costs of a node, of the result of a branch or an item
/// and of one error in a chain of causes. Payloads and texts are counted separately, by their length.
pub(crate) const BASE_BYTES: usize = 1_024;
const NODE_BYTES: usize = 750;
const LANE_BYTES: usize = 200;
const ERROR_BYTES: usize = 128;

impl Execution {
    /// The approximate number of bytes of memory that the state takes.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// The same number, computed by a walk over everything.
    #[cfg(test)]
    pub(crate) fn weight_by_walk(&self) -> usize {
        let stop = self.stop.as_ref().map_or(0, |stop| error_bytes(&stop.error));
        BASE_BYTES
            + self.input.data.len()
            + self.output.as_ref().map_or(0, |output| output.data.len())
            + self.nodes.iter().map(node_bytes).sum::<usize>()
            + self.nodes.all_lanes().map(lanes_bytes).sum::<usize>()
            + self.compensations().iter().map(compensation_bytes).sum::<usize>()
            + stop
            + self.error.as_ref().map_or(0, error_bytes)
    }

    pub(crate) fn add_node(&mut self, node: Node) -> NodeId {
        self.weight += node_bytes(&node);
        let open = node.task().and_then(open_facts).map(|open| (step_of(&node.path), open));
        let id = self.nodes.push(node);
        if let Some((step, open)) = open {
            self.reindex(TaskRef::Step(id), step, None, Some(open));
        }
        id
    }

    pub(crate) fn change_node(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        let facts = |node: &Node| (node_bytes(node), node.task().and_then(open_facts));
        let before = facts(self.nodes.get(id));
        self.nodes.change(id, change);
        let node = self.nodes.get(id);
        let after = facts(node);
        self.weight = self.weight - before.0 + after.0;
        if before.1 != after.1 {
            let step = step_of(&node.path);
            self.reindex(TaskRef::Step(id), step, before.1, after.1);
        }
    }

    /// Adds the branches or items of a step that has just begun.
    pub(crate) fn start_lanes(&mut self, id: NodeId, lanes: Lanes) {
        self.weight += match &lanes {
            Lanes::Branches(_) => 0,
            Lanes::Items(items) => items.bytes(),
        };
        self.nodes.start_lanes(id, lanes);
    }

    /// Ends a branch or an item; `ready` are the branches that may begin now.
    pub(crate) fn end_lane(
        &mut self,
        id: NodeId,
        key: &ItemKey,
        result: LaneResult,
        ready: &[ItemKey],
    ) -> Result<(), &'static str> {
        let bytes = lane_bytes(&result);
        self.nodes.end_lane(id, key, result, ready)?;
        self.weight += bytes;
        Ok(())
    }

    pub(crate) fn add_compensation(&mut self, compensation: Compensation) {
        self.weight += compensation_bytes(&compensation);
        let closing = self.node(&compensation.step).and_then(|node| node.closing);
        self.ledger.list(compensation, closing);
    }

    pub(crate) fn change_compensation(
        &mut self,
        index: u32,
        change: impl FnOnce(&mut Compensation),
    ) {
        let facts =
            |one: &Compensation| (compensation_bytes(one), one.task.as_ref().and_then(open_facts));
        let before = facts(self.ledger.get(index));
        self.ledger.change(index, change);
        let compensation = self.ledger.get(index);
        let after = facts(compensation);
        self.weight = self.weight - before.0 + after.0;
        if before.1 != after.1 {
            let step = step_of(&compensation.step.compensation());
            self.reindex(TaskRef::Compensation(index), step, before.1, after.1);
        }
    }

    fn reindex(
        &mut self,
        task: TaskRef,
        step: StepPath,
        before: Option<OpenFacts>,
        after: Option<OpenFacts>,
    ) {
        if let Some(facts) = before {
            self.open.remove(task, step.clone(), facts);
        }
        if let Some(facts) = after {
            self.open.add(task, step, facts);
        }
    }
}

/// The step of the definition to which a path belongs, as a path without item keys.
fn step_of(path: &StepPath) -> StepPath {
    match path.pattern() {
        std::borrow::Cow::Borrowed(_) => path.clone(),
        std::borrow::Cow::Owned(pattern) => pattern.into(),
    }
}

fn open_facts(task: &Task) -> Option<OpenFacts> {
    let scheduled_at = task.open.as_ref()?.scheduled_at;
    Some(OpenFacts { scheduled_at, first_scheduled_at: task.first_scheduled_at })
}

fn node_bytes(node: &Node) -> usize {
    let work = match &node.kind {
        NodeKind::Task(task) => task_bytes(task),
        NodeKind::Skipped | NodeKind::Block => 0,
    };
    let handled = node.handled.as_ref().map_or(0, |handled| error_bytes(&handled.error));
    let result = match &node.state {
        NodeState::Completed { output } | NodeState::Caught { output } => output.data.len(),
        NodeState::Failed { error } | NodeState::Ignored { error } => error_bytes(error),
        NodeState::Running | NodeState::Skipped | NodeState::Joined | NodeState::Cancelled => 0,
    };
    let stopped = node.stopped.as_ref().and_then(|stopped| stopped.error.as_ref());
    let stopped = stopped.map_or(0, error_bytes);
    NODE_BYTES + node.path.as_str().len() + work + handled + stopped + result
}

#[cfg(test)]
fn lanes_bytes(lanes: &Lanes) -> usize {
    match lanes {
        Lanes::Branches(parallel) => parallel.results().map(|(_, result)| lane_bytes(result)).sum(),
        Lanes::Items(items) => {
            items.bytes() + items.results().map(|(_, result)| lane_bytes(result)).sum::<usize>()
        }
    }
}

fn lane_bytes(result: &LaneResult) -> usize {
    LANE_BYTES
        + match result {
            LaneResult::Completed(output) => output.data.len(),
            LaneResult::Failed(failed) => error_bytes(&failed.error),
        }
}

fn compensation_bytes(compensation: &Compensation) -> usize {
    use super::CompensationStepState as State;
    let result = match &compensation.state {
        State::Done { output } => output.data.len(),
        State::Parked { error } => error_bytes(error),
        State::Skipped { reason } => reason.len(),
        State::Due | State::Running => 0,
    };
    NODE_BYTES + compensation.task.as_ref().map_or(0, task_bytes) + result
}

fn task_bytes(task: &Task) -> usize {
    task.input.data.len() + task.last_error.as_ref().map_or(0, error_bytes)
}

pub(crate) fn error_bytes(error: &TaskError) -> usize {
    let links = error.chain().map(|link| {
        let details = link.details.as_ref().map_or(0, |own| own.data.len());
        let suppressed = link.suppressed.iter().map(Suppressed::size).sum::<usize>();
        ERROR_BYTES + link.message.len() + link.stack_trace.len() + details + suppressed
    });
    links.sum()
}
