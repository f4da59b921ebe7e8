//! Tasks on their way to workers.

use recoup_core::command::TaskId;
use recoup_engine::{HandedTask, token};
use recoup_proto::v1;

use super::{execution, payload, time};

/// Bytes of a task's message beside its payloads.
const FRAME_BYTES: usize = 768;

/// A task, and about how many bytes its message has. None if its attempt is not in its state, which
/// would be a defect of the engine.
pub fn to_proto(handed: &HandedTask) -> Option<(v1::Task, usize)> {
    let HandedTask { id, state, plan, handed_at } = handed;
    let task = state.task(&id.path)?;
    let plan_task = plan.task(&id.path)?;
    let open = task.open.as_ref()?;
    let mut size = FRAME_BYTES + payload::size(&task.input);
    let (step_path, compensation) = match id.path.compensated() {
        None => (id.path.as_str().to_owned(), None),
        Some(step) => {
            let undone = state.compensation_of(&step)?;
            let output = match state.node(&step).map(|node| &node.state) {
                Some(recoup_core::execution::NodeState::Completed { output }) => Some(output),
                _ => None,
            };
            size += output.map_or(0, payload::size);
            let compensation = v1::CompensationTask {
                outcome: execution::step_outcome(undone.outcome).into(),
                step_output: output.map(payload::to_proto),
            };
            (step.as_str().to_owned(), Some(compensation))
        }
    };
    let closes_at = *handed_at + plan_task.start_to_close;
    let last_at = plan_task.schedule_to_close.map(|budget| task.first_scheduled_at + budget);
    let deadline = last_at.map_or(closes_at, |last| last.min(closes_at));
    let task = v1::Task {
        task_token: token::encode(id).into(),
        execution_id: id.execution.to_string(),
        workflow: state.workflow.as_str().to_owned(),
        step_path,
        attempt: id.attempt,
        r#type: plan_task.task_type.clone(),
        input: Some(payload::to_proto(&task.input)),
        idempotency_key: state.idempotency_key(&id.path),
        run: id.run,
        workflow_version: state.version,
        max_attempts: execution::max_attempts(plan, &id.path, task.attempts_before),
        start_to_close: Some(time::duration(plan_task.start_to_close)),
        heartbeat_timeout: plan_task.heartbeat.map(time::duration),
        compensation,
        traceparent: state.trace.traceparent.clone(),
        tracestate: state.trace.tracestate.clone(),
        scheduled_at: Some(time::timestamp(open.scheduled_at)),
        deadline: Some(time::timestamp(deadline)),
        namespace: state.namespace.as_str().to_owned(),
        queue: plan_task.queue.clone(),
        execution_key: state.key.clone().unwrap_or_default(),
    };
    Some((task, size))
}

pub fn cancellation(task: &TaskId, reason: v1::TaskCancellationReason) -> v1::TaskCancellation {
    v1::TaskCancellation { task_token: token::encode(task).into(), reason: reason.into() }
}
