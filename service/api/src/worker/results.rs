//! Results and heartbeats of workers: converts them to commands of the engine, and the engine's answers to
//! replies.

use recoup_core::command::{Command, Rejection, TaskId};
use recoup_core::error::{TaskError, builtin};
use recoup_core::event::Event;
use recoup_core::payload::Payload;
use recoup_engine::{Refusal, token};
use recoup_proto::v1::{self, ErrorReason, TaskCancellationReason as Reason};
use recoup_store::StoredTransition;

use crate::context::Context;
use crate::convert::{decision, error, payload, task};
use crate::status::{Error, Result};

/// The largest details of a heartbeat, in bytes.
const HEARTBEAT_DETAILS_BYTES_MAX: usize = 4 * 1024;

pub async fn complete(context: &Context, request: v1::CompleteTaskRequest) -> Result<()> {
    let task = decode(&request.task_token)?;
    let result = v1::task_result::Result::Completed(request.output.unwrap_or_default());
    let (command, refusal) = command(task.clone(), result, "")?;
    context.engine.report(task.execution, command).await.map_err(refusal_for_worker)?;
    refusal.map_or(Ok(()), Err)
}

pub async fn fail(context: &Context, request: v1::FailTaskRequest) -> Result<v1::FailTaskResponse> {
    let task = decode(&request.task_token)?;
    let error = request.error.ok_or_else(|| Error::required("error"))?;
    let result = v1::task_result::Result::Failed(error);
    let (command, refusal) = command(task.clone(), result, "")?;
    let decision =
        context.engine.report(task.execution, command).await.map_err(refusal_for_worker)?;
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    let decision = match decision {
        Some(decision) => Some(decision::to_proto(&decision)),
        // An earlier call recorded the result, so its decision is in the history.
        None => recorded_decision(context, &task).await,
    };
    Ok(v1::FailTaskResponse { decision })
}

/// Finds the decision that was recorded about an attempt. The decision is durable even if it cannot be read
/// now.
async fn recorded_decision(context: &Context, task: &TaskId) -> Option<v1::RetryDecision> {
    let find = |row: &StoredTransition| {
        let data = row.decode(task.execution);
        let events = data.map(|data| data.events).unwrap_or_default();
        Ok(events.iter().find_map(|event| match event {
            Event::AttemptFailed(failed)
                if failed.path == task.path && failed.attempt == task.attempt =>
            {
                Some(decision::to_proto(&failed.decision))
            }
            _ => None,
        }))
    };
    // The decision comes later in the history than the transition that scheduled the attempt.
    let found = context.find_in_history(task.execution, task.sequence, find).await;
    found.ok().flatten()
}

pub fn decode(token: &[u8]) -> Result<TaskId> {
    token::decode(token).map_err(|error| {
        Error::field(ErrorReason::TaskTokenInvalid, "task_token", error.to_string())
    })
}

/// Converts a refusal for a worker. If an execution is gone or has ended, all its attempts are closed.
pub fn refusal_for_worker(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Rejected(Rejection::NoSuchExecution | Rejection::ExecutionEnded(_)) => {
            Error::new(ErrorReason::AttemptClosed, refusal.to_string())
        }
        other => other.into(),
    }
}

/// The engine's command for a result. Work that was done but is over a limit is recorded as the error
/// `recoup.payload_too_large`; the refusal that is returned with the command is reported once that is
/// durable. Fields are named `output` and `error` as in the unary calls, on streams too: an acknowledgement
/// concerns one result, and a result that is sent again by the other transport must be the same.
pub fn command(
    task: TaskId,
    result: v1::task_result::Result,
    worker: &str,
) -> Result<(Command, Option<Error>)> {
    use v1::task_result::Result as Proto;
    let worker = worker.to_owned();
    let too_large =
        |reason| matches!(reason, ErrorReason::PayloadTooLarge | ErrorReason::ErrorTooLarge);
    let (error, refusal): (TaskError, _) = match result {
        Proto::Completed(output) => match payload::from_proto(output, "output") {
            Ok(output) => return Ok((Command::CompleteTask { task, output, worker }, None)),
            Err(refusal) if too_large(refusal.reason) => {
                let message = format!("the output of the task is too large: {refusal}");
                (TaskError::builtin(builtin::PAYLOAD_TOO_LARGE, message), Some(refusal))
            }
            Err(refusal) => return Err(refusal),
        },
        Proto::Failed(reported) => {
            let told = (reported.r#type.clone(), excerpt(&reported.message));
            match error::from_proto(reported, "error") {
                Ok(error) => (error, None),
                Err(refusal) if too_large(refusal.reason) => {
                    (error::too_large(&told.0, &told.1), Some(refusal))
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Proto::Released(_) => return Err(Error::required("result")),
    };
    Ok((Command::FailTask { task, error, worker }, refusal))
}

fn excerpt(text: &str) -> String {
    text.chars().take(1_024).collect()
}

/// Records that a worker is working on a task. Returns a cancellation if the worker should stop.
pub async fn heartbeat(
    context: &Context,
    task: TaskId,
    details: Option<Payload>,
) -> Option<v1::TaskCancellation> {
    match context.engine.heartbeat(task.clone(), details).await {
        Ok(true) => Some(task::cancellation(&task, Reason::CancelRequested)),
        Err(Refusal::Rejected(_)) => Some(task::cancellation(&task, Reason::AttemptClosed)),
        Ok(false) | Err(_) => None,
    }
}

pub fn heartbeat_details(details: Option<v1::Payload>, field: &str) -> Result<Option<Payload>> {
    let Some(details) = details else {
        return Ok(None);
    };
    let details = payload::from_proto(details, field)?;
    if details.size() > HEARTBEAT_DETAILS_BYTES_MAX {
        return Err(Error::invalid(
            field,
            format!(
                "must have at most {HEARTBEAT_DETAILS_BYTES_MAX} bytes, not {}",
                details.size()
            ),
        ));
    }
    Ok(Some(details))
}
