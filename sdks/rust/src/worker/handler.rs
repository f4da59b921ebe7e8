//! Handlers, and the conversion of their results to outcomes.

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt;
use recoup_proto::v1::Payload;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::context::{Attempt, RawTask, TaskContext};
use super::reference;
use crate::payload::{from_payload, to_payload};
use crate::{Client, Error, TaskError};

/// How an attempt ended.
pub(super) type Outcome = Result<Payload, TaskError>;
type Running = Pin<Box<dyn Future<Output = Outcome> + Send>>;
type Inline = dyn Fn(RawTask) -> Outcome + Send + Sync;
type Spawned = dyn Fn(TaskContext, Option<Payload>) -> Running + Send + Sync;

pub(super) enum Handler {
    /// Called directly in the loop that reads the stream.
    Inline(Box<Inline>),
    /// Runs in its own tokio task.
    Spawned(Box<Spawned>),
}

pub(super) type Handlers = HashMap<String, Handler>;

impl Handler {
    pub(super) fn typed<T, R, F, H>(handler: H) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        R: Serialize,
        F: Future<Output = Result<R, TaskError>> + Send + 'static,
        H: Fn(TaskContext, T) -> F + Send + Sync + 'static,
    {
        Self::Spawned(Box::new(move |context, input| match from_payload::<T>(input.as_ref()) {
            Ok(input) => {
                let running = handler(context, input);
                Box::pin(async move { written(&running.await?) })
            }
            Err(error) => {
                let invalid = TaskError::new("recoup.input_invalid")
                    .message(error.to_string())
                    .non_retryable();
                Box::pin(std::future::ready(Err(invalid)))
            }
        }))
    }

    pub(super) fn of_payloads<F, H>(handler: H) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
        H: Fn(TaskContext, Option<Payload>) -> F + Send + Sync + 'static,
    {
        Self::Spawned(Box::new(move |context, input| Box::pin(handler(context, input))))
    }
}

fn written<R: Serialize>(output: &R) -> Outcome {
    to_payload(output).map_err(|error| match error {
        Error::PayloadTooLarge { .. } => too_large(&error),
        _ => TaskError::new("rust.output_invalid").message(error.to_string()).non_retryable(),
    })
}

/// The error of an attempt whose output is over the size limit.
pub(super) fn too_large(error: &Error) -> TaskError {
    TaskError::new("recoup.payload_too_large").message(error.to_string()).non_retryable()
}

/// The error of an attempt whose task type has no handler in this worker.
pub(super) fn no_such_task(task_type: &str) -> TaskError {
    TaskError::new("recoup.no_such_task")
        .message(format!("this worker has no handler for `{task_type}`"))
}

pub(super) fn call_inline(handler: &Inline, task: RawTask) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| handler(task))).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// Runs the handler of an attempt and returns its outcome. Payloads that came as references are read first.
pub(super) async fn outcome(
    handlers: &Handlers,
    client: &Client,
    attempt: &Arc<Attempt>,
    input: Option<Payload>,
) -> Outcome {
    let context = TaskContext::new(attempt.clone());
    let Some(handler) = handlers.get(&context.task().r#type) else {
        return Err(no_such_task(&context.task().r#type));
    };
    let input = reference::resolve(client, attempt, input).await?;
    match handler {
        Handler::Spawned(handler) => call(&**handler, context, input).await,
        Handler::Inline(handler) => {
            let compensation = context.compensation().cloned();
            let task = RawTask { input, compensation, ..context.task().clone() };
            call_inline(&**handler, task)
        }
    }
}

pub(super) async fn call(
    handler: &Spawned,
    context: TaskContext,
    input: Option<Payload>,
) -> Outcome {
    // The call of the handler, not only its future, is inside the part that catches panics.
    let running = async move { handler(context, input).await };
    let caught = AssertUnwindSafe(running).catch_unwind().await;
    caught.unwrap_or_else(|panic| Err(panicked(&*panic)))
}

fn panicked(panic: &(dyn Any + Send)) -> TaskError {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("the handler panicked");
    TaskError::new("rust.panic").message(message)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::PAYLOAD_BYTES_MAX;

    async fn outcome(handler: Handler, input: Option<Payload>) -> Outcome {
        let Handler::Spawned(handler) = handler else { panic!("an inline handler") };
        let (events, _) = mpsc::unbounded_channel();
        call(&*handler, TaskContext::new(Attempt::new(RawTask::default(), events)), input).await
    }

    fn error_type(outcome: &Outcome) -> &str {
        outcome.as_ref().expect_err("an error").error_type()
    }

    #[tokio::test]
    async fn typed_handlers_decode_the_input_and_encode_the_output() {
        let doubled = Handler::typed(|_, number: u32| async move { Ok(number * 2) });
        let output = outcome(doubled, to_payload(&21).ok()).await.expect("a success");
        assert_eq!(from_payload::<u32>(Some(&output)).expect("JSON"), 42);
    }

    #[tokio::test]
    async fn an_input_of_the_wrong_type_is_a_non_retryable_error() {
        let handler = Handler::typed(|_, _: u32| async move { Ok(()) });
        let outcome = outcome(handler, to_payload("text").ok()).await;
        assert_eq!(error_type(&outcome), "recoup.input_invalid");
        assert!(outcome.expect_err("an error").is_non_retryable());
    }

    #[tokio::test]
    async fn a_panicking_handler_reports_an_error() {
        let handler = Handler::typed(|_, (): ()| async move {
            if true {
                panic!("at the {}", "disco");
            }
            Ok(())
        });
        let late = outcome(handler, None).await;
        assert_eq!(late.expect_err("it panicked").to_string(), "rust.panic: at the disco");

        let handler = Handler::of_payloads(|_, _| -> std::future::Ready<Outcome> {
            panic!("before the future")
        });
        assert_eq!(error_type(&outcome(handler, None).await), "rust.panic");
        assert_eq!(error_type(&call_inline(&|_| panic!("x"), RawTask::default())), "rust.panic");
    }

    #[tokio::test]
    async fn an_output_over_the_limit_is_an_error() {
        let handler = Handler::typed(|_, (): ()| async { Ok("x".repeat(PAYLOAD_BYTES_MAX)) });
        assert_eq!(error_type(&outcome(handler, None).await), "recoup.payload_too_large");
    }
}
