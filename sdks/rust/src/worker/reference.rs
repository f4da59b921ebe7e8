//! Reads payloads that came as references before the handler runs, so that handlers receive contents.

use std::sync::Arc;

use recoup_proto::v1::{Payload, Task, payload::Content};

use super::context::Attempt;
use crate::backoff::{Backoff, passes};
use crate::{Client, Error, TaskError};

fn id(payload: Option<&Payload>) -> Option<&str> {
    match payload?.content.as_ref()? {
        Content::Reference(reference) => Some(&reference.payload_id),
        Content::Json(_) | Content::Data(_) => None,
    }
}

fn step_output(task: &Task) -> Option<&Payload> {
    task.compensation.as_ref()?.step_output.as_ref()
}

/// Whether a payload of the task is a reference that must be read first.
pub(super) fn is_in(task: &Task) -> bool {
    id(task.input.as_ref()).or(id(step_output(task))).is_some()
}

/// Reads the payloads that came as references. The content of the input is returned. If the task is a
/// compensation, the output of the step that it undoes is set in the attempt.
pub(super) async fn resolve(
    client: &Client,
    attempt: &Arc<Attempt>,
    input: Option<Payload>,
) -> Result<Option<Payload>, TaskError> {
    if let Some(id) = id(step_output(attempt.task())) {
        attempt.set_step_output(read(client, id).await?);
    }
    match id(input.as_ref()) {
        Some(id) => Ok(Some(read(client, id).await?)),
        None => Ok(input),
    }
}

/// Tries until the service has answered. The service decides how long the attempt may take.
async fn read(client: &Client, id: &str) -> Result<Payload, TaskError> {
    let backoff = Backoff::default();
    let mut retry = 0;
    loop {
        match client.read_payload(id).await {
            Ok(payload) => return Ok(payload),
            Err(error) if passes(&error) => {
                retry += 1;
                tokio::time::sleep(backoff.next(retry, error.retry_after())).await;
            }
            Err(error) => return Err(unreadable(&error)),
        }
    }
}

fn unreadable(error: &Error) -> TaskError {
    TaskError::new("rust.payload_unreadable")
        .message(format!("a payload of the task could not be read: {error}"))
}
