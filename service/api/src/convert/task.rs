//! Tasks on their way to workers.

use prost::Message;
use recoup_core::command::TaskId;
use recoup_core::execution::{Execution, NodeState};
use recoup_core::id::StepPath;
use recoup_core::payload::Payload;
use recoup_engine::{HandedTask, token};
use recoup_proto::v1;

use super::inline::{Inline, Place, least_of_payload};
use super::{execution, time};
use crate::BATCH_BYTES_MAX;

/// Bytes of a task's message beside its payloads, at most: names, keys, trace and token at their limits.
const FRAME_BYTES: usize = 8 * 1024;

/// A task, and how many bytes its message has: what exceeds the budget of a message is a reference.
/// None if its attempt is not in its state, which would be a defect of the engine.
pub fn to_proto(handed: &HandedTask) -> Option<(v1::Task, usize)> {
    let HandedTask { id, state, plan, handed_at } = handed;
    let task = state.task(&id.path)?;
    let plan_task = plan.task(&id.path)?;
    let open = task.open.as_ref()?;
    // Both stand in the history before the attempt was scheduled.
    let place = Place { execution: id.execution, sequence: id.sequence };
    let step_output = id.path.compensated().and_then(|step| output(state, &step));
    let least = least_of_payload(&task.input) + step_output.map_or(0, least_of_payload);
    let mut inline = Inline::new(BATCH_BYTES_MAX - FRAME_BYTES - least, Some(place));
    let input = inline.payload(&task.input);
    let (step_path, compensation) = match id.path.compensated() {
        None => (id.path.as_str().to_owned(), None),
        Some(step) => {
            let undone = state.compensation_of(&step)?;
            let compensation = v1::CompensationTask {
                outcome: execution::step_outcome(undone.outcome).into(),
                step_output: step_output.map(|output| inline.payload(output)),
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
        input: Some(input),
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
    let size = task.encoded_len();
    Some((task, size))
}

/// What a step returned, if it completed.
fn output<'a>(state: &'a Execution, step: &StepPath) -> Option<&'a Payload> {
    match &state.node(step)?.state {
        NodeState::Completed { output } => Some(output),
        _ => None,
    }
}

pub fn cancellation(task: &TaskId, reason: v1::TaskCancellationReason) -> v1::TaskCancellation {
    v1::TaskCancellation { task_token: token::encode(task).into(), reason: reason.into() }
}
