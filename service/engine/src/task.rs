//! The content of an attempt that a worker receives.

use std::sync::Arc;

use recoup_core::command::TaskId;
use recoup_core::execution::{CompensationOutcome, Execution, Node, Open, TraceContext};
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::payload::Payload;
use recoup_core::plan::Plan;
use recoup_core::time::Timestamp;

/// Taken from the state when the node first learns of the attempt, so that the attempt can be handed over at
/// any time, even while the state is away with a transition. Payloads share their bytes with the state.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskContent {
    pub namespace: Namespace,
    pub workflow: WorkflowName,
    pub version: u32,
    pub key: Option<String>,
    pub trace: TraceContext,
    pub idempotency_key: String,
    pub input: Payload,
    /// How many attempts were made before an operator asked for more.
    pub attempts_before: u32,
    pub first_scheduled_at: Timestamp,
    pub scheduled_at: Timestamp,
    /// For a compensation: the step that it undoes.
    pub undone: Option<Undone>,
}

/// The step that a compensation undoes.
#[derive(Clone, Debug, PartialEq)]
pub struct Undone {
    pub outcome: CompensationOutcome,
    /// The output of the step, if it completed.
    pub output: Option<Payload>,
}

impl TaskContent {
    pub fn of(state: &Execution, open: &Open<'_>) -> Self {
        let undone = open.path.compensated().and_then(|step| {
            let output = state.node(&step).and_then(Node::own_output).cloned();
            Some(Undone { outcome: state.compensation_of(&step)?.outcome, output })
        });
        Self {
            namespace: state.namespace.clone(),
            workflow: state.workflow.clone(),
            version: state.version,
            key: state.key.clone(),
            trace: state.trace.clone(),
            idempotency_key: state.idempotency_key(&open.path),
            input: open.task.input.clone(),
            attempts_before: open.task.attempts_before,
            first_scheduled_at: open.task.first_scheduled_at,
            scheduled_at: open.attempt.scheduled_at,
            undone,
        }
    }
}

/// An attempt on its way to a worker.
#[derive(Clone, Debug)]
pub struct HandedTask {
    pub id: TaskId,
    pub content: Arc<TaskContent>,
    pub plan: Arc<Plan>,
    pub handed_at: Timestamp,
}
