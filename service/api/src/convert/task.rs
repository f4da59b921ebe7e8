//! Converts tasks for workers.

use prost::Message;
use recoup_core::command::TaskId;
use recoup_engine::{HandedTask, token};
use recoup_proto::v1;

use super::inline::{Inline, Place, least_of_payload};
use super::{execution, time};
use crate::BATCH_BYTES_MAX;

/// The most bytes of a task's message besides its payloads: names, keys, trace and token at their limits.
const FRAME_BYTES: usize = 8 * 1024;

/// Converts a task. Also returns the size of its message; payloads beyond the size limit of a message
/// become references. `None` if the plan does not have the task, which would be a defect of the engine.
pub fn to_proto(handed: &HandedTask) -> Option<(v1::Task, usize)> {
    let HandedTask { id, content, plan, handed_at } = handed;
    let plan_task = plan.task(&id.path)?;
    // The history contained both payloads by the time the attempt was scheduled.
    let place = Place { execution: id.execution, sequence: id.sequence };
    let step_output = content.undone.as_ref().and_then(|undone| undone.output.as_ref());
    let least = least_of_payload(&content.input) + step_output.map_or(0, least_of_payload);
    let mut inline = Inline::new(BATCH_BYTES_MAX - FRAME_BYTES - least, Some(place));
    let input = inline.payload(&content.input);
    let compensation = content.undone.as_ref().map(|undone| v1::CompensationTask {
        outcome: execution::step_outcome(undone.outcome).into(),
        step_output: step_output.map(|output| inline.payload(output)),
    });
    let step = id.path.compensated();
    let closes_at = *handed_at + plan_task.start_to_close;
    let last_at = plan_task.schedule_to_close.map(|budget| content.first_scheduled_at + budget);
    let deadline = last_at.map_or(closes_at, |last| last.min(closes_at));
    let task = v1::Task {
        task_token: token::encode(id).into(),
        execution_id: id.execution.to_string(),
        workflow: content.workflow.as_str().to_owned(),
        step_path: step.as_ref().unwrap_or(&id.path).as_str().to_owned(),
        attempt: id.attempt,
        r#type: plan_task.task_type.clone(),
        input: Some(input),
        idempotency_key: content.idempotency_key.clone(),
        run: id.run,
        workflow_version: content.version,
        max_attempts: execution::max_attempts(plan, &id.path, content.attempts_before),
        start_to_close: Some(time::duration(plan_task.start_to_close)),
        heartbeat_timeout: plan_task.heartbeat.map(time::duration),
        compensation,
        traceparent: content.trace.traceparent.clone(),
        tracestate: content.trace.tracestate.clone(),
        scheduled_at: Some(time::timestamp(content.scheduled_at)),
        deadline: Some(time::timestamp(deadline)),
        namespace: content.namespace.as_str().to_owned(),
        queue: plan_task.queue.clone(),
        execution_key: content.key.clone().unwrap_or_default(),
    };
    let size = task.encoded_len();
    Some((task, size))
}

pub fn cancellation(task: &TaskId, reason: v1::TaskCancellationReason) -> v1::TaskCancellation {
    v1::TaskCancellation { task_token: token::encode(task).into(), reason: reason.into() }
}
