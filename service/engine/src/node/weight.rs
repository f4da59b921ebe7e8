//! About how much memory a state takes.

use recoup_core::error::Error;
use recoup_core::execution::{Block, Execution, NodeKind, NodeState, Task};

/// Of an execution, of each of its nodes and of each link of an error, besides what has a length of its
/// own.
const BASE_BYTES: usize = 1_024;
const NODE_BYTES: usize = 256;
const ERROR_BYTES: usize = 128;

pub(super) fn bytes(state: &Execution) -> usize {
    let output = state.output.as_ref().map_or(0, |output| output.data.len());
    let undone = state
        .compensations
        .iter()
        .map(|compensation| NODE_BYTES + compensation.task.as_ref().map_or(0, task));
    BASE_BYTES
        + state.input.data.len()
        + output
        + block(&state.steps)
        + block(&state.finally)
        + undone.sum::<usize>()
        + state.stop.as_ref().map_or(0, |stop| error(&stop.error))
        + state.error.as_ref().map_or(0, error)
}

fn block(block: &Block) -> usize {
    let nodes = block.nodes.iter().map(|node| {
        let work = match &node.kind {
            NodeKind::Task(own) => task(own),
            NodeKind::Skipped => 0,
        };
        let result = match &node.state {
            NodeState::Completed { output } => output.data.len(),
            NodeState::Failed { error: own } | NodeState::Ignored { error: own } => error(own),
            NodeState::Running | NodeState::Skipped | NodeState::Cancelled => 0,
        };
        NODE_BYTES + work + result
    });
    nodes.sum()
}

fn task(task: &Task) -> usize {
    task.input.data.len() + task.last_error.as_ref().map_or(0, error)
}

fn error(error: &Error) -> usize {
    let links = error.chain().map(|link| {
        let details = link.details.as_ref().map_or(0, |own| own.data.len());
        ERROR_BYTES + link.message.len() + link.stack_trace.len() + details
    });
    links.sum()
}
