//! Converts what the steps that run other steps have in common.

use recoup_core::execution::{Node, NodeState, Part};
use recoup_proto::v1;

/// The state of a `parallel` or a `for_each`.
pub fn state(node: &Node) -> v1::BlockState {
    use v1::BlockState as Proto;
    match &node.state {
        NodeState::Running if matches!(node.part, Some(Part::Handler(_))) => Proto::Handling,
        NodeState::Running if node.stopped.is_some() => Proto::Stopping,
        NodeState::Running => Proto::Running,
        NodeState::Joined | NodeState::Completed { .. } => Proto::Completed,
        NodeState::Caught { .. } => Proto::Caught,
        NodeState::Ignored { .. } => Proto::Ignored,
        NodeState::Failed { .. } => Proto::Failed,
        NodeState::Cancelled => Proto::Cancelled,
        // A step that is skipped never begins.
        NodeState::Skipped => Proto::Unspecified,
    }
}
