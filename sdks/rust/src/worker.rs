//! The worker: runs handlers for the tasks of its queues.

mod context;
mod handler;
mod message;
mod reference;
mod refusal;
mod session;
mod setup;
mod stream;
mod unary;

use std::future::Future;
use std::time::Duration;

use recoup_proto::v1::Payload;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Client, Error, TaskError};

pub use self::context::{CancelReason, RawTask, TaskContext};
pub use self::setup::Transport;

use self::handler::{Handler, Handlers};
use self::setup::Setup;

const SLOTS_MAX: u32 = 10_000;

/// Runs handlers for the tasks of some queues, until it is asked to shut down.
///
/// If the connection breaks, the worker reconnects by itself and keeps the tasks that it holds: running
/// handlers keep running, and a result that the service has not acknowledged is sent again. Delivery is at
/// least once: use [`TaskContext::idempotency_key`] where an effect must happen once.
///
/// The worker itself reports these errors:
///
/// - `rust.panic` if a handler panics;
/// - `recoup.no_such_task` for a task type without a handler;
/// - `recoup.payload_too_large` for an output over 2 MiB;
/// - `rust.result_refused` in place of an error whose type the service refuses. The message repeats the
///   original error, which is also the cause.
///
/// ```no_run
/// use recoup_sdk::{Client, TaskContext, TaskError, Worker};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Deserialize)]
/// struct Charge {
///     order: u64,
///     cents: u64,
/// }
///
/// #[derive(Serialize)]
/// struct Receipt {
///     id: String,
/// }
///
/// async fn charge(context: TaskContext, charge: Charge) -> Result<Receipt, TaskError> {
///     if charge.cents > 100_000 {
///         return Err(TaskError::new("payment.card_declined").message("over the limit"));
///     }
///     Ok(Receipt { id: format!("{}/{}", charge.order, context.idempotency_key()) })
/// }
///
/// # async fn example() -> Result<(), recoup_sdk::Error> {
/// let client = Client::connect("http://127.0.0.1:7430").await?;
/// Worker::builder(client)
///     .queue("payments")
///     .task("payment.charge", charge)
///     .slots(16)
///     .run(async {
///         let _ = tokio::signal::ctrl_c().await;
///     })
///     .await
/// # }
/// ```
pub struct Worker {
    setup: Setup,
}

/// Configures a [`Worker`].
#[must_use = "a worker serves nothing before `run`"]
pub struct WorkerBuilder {
    setup: Setup,
    twice: Option<String>,
}

impl Worker {
    /// Configures a worker in the namespace of `client`.
    pub fn builder(client: Client) -> WorkerBuilder {
        let setup = Setup {
            client,
            queues: Vec::new(),
            handlers: Handlers::default(),
            name: format!("rust-{}", std::process::id()),
            slots: 16,
            session_ttl: None,
            drain_timeout: Duration::from_secs(30),
            closed_grace: Duration::from_secs(5),
            transport: Transport::default(),
        };
        WorkerBuilder { setup, twice: None }
    }

    /// Serves tasks until `shutdown` completes, then drains for at most the drain timeout: the worker
    /// accepts no more tasks, gives back the tasks that it has not started, lets running handlers finish,
    /// and waits until the service has acknowledged their results.
    ///
    /// Dropping the future instead stops all handlers at once. The service then treats their attempts as
    /// lost.
    ///
    /// # Errors
    /// Errors that do not go away by themselves, such as `NAMESPACE_NOT_FOUND` and `FIELD_INVALID`. If the
    /// service cannot be reached, the worker keeps trying and returns no error.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        match self.setup.transport {
            Transport::Stream => stream::run(self.setup, shutdown).await,
            Transport::Unary => unary::run(self.setup, shutdown).await,
        }
    }
}

impl WorkerBuilder {
    /// Adds a queue to take tasks from. Call it again for more queues, 100 at most. Default: `default`.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.setup.queues.push(queue.into());
        self
    }

    /// Sets the async handler of a task type. Input and output are JSON. If the input cannot be read as a
    /// `T`, the attempt fails with the non-retryable type `recoup.input_invalid`.
    pub fn task<T, R, F, H>(self, task_type: impl Into<String>, handler: H) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        R: Serialize,
        F: Future<Output = Result<R, TaskError>> + Send + 'static,
        H: Fn(TaskContext, T) -> F + Send + Sync + 'static,
    {
        self.handler(task_type.into(), Handler::typed(handler))
    }

    /// Sets the async handler of a task type that works on payloads instead of JSON values. The input is
    /// `None` if the task has none.
    pub fn payload_task<F, H>(self, task_type: impl Into<String>, handler: H) -> Self
    where
        F: Future<Output = Result<Payload, TaskError>> + Send + 'static,
        H: Fn(TaskContext, Option<Payload>) -> F + Send + Sync + 'static,
    {
        self.handler(task_type.into(), Handler::of_payloads(handler))
    }

    /// Sets a handler that returns its result at once. The worker calls it between two reads of the stream,
    /// without spawning a tokio task, so it costs next to nothing. It must never block.
    ///
    /// With [`Transport::Unary`], and for a task with a payload that must be read first, it runs in a tokio
    /// task like other handlers.
    pub fn inline_task<H>(self, task_type: impl Into<String>, handler: H) -> Self
    where
        H: Fn(RawTask) -> Result<Payload, TaskError> + Send + Sync + 'static,
    {
        self.handler(task_type.into(), Handler::Inline(Box::new(handler)))
    }

    fn handler(mut self, task_type: String, handler: Handler) -> Self {
        if self.setup.handlers.insert(task_type.clone(), handler).is_some() {
            self.twice = Some(task_type);
        }
        self
    }

    /// How many handlers may run at the same time, from 1 to 10,000. With [`Transport::Unary`] the number
    /// applies to each queue. Default: 16.
    pub fn slots(mut self, slots: u32) -> Self {
        self.setup.slots = slots;
        self
    }

    /// The name of the worker, shown to people. Default: `rust-` and the process id.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.setup.name = name.into();
        self
    }

    /// How long the session survives without a message from the worker, from 1 s to 10 min. A value outside
    /// that range is cut to it. After this time the service treats the session's attempts as lost. The
    /// worker renews the session three times in this period. Default: 30 s, and 90 s with
    /// [`Transport::Unary`].
    pub fn session_ttl(mut self, ttl: Duration) -> Self {
        self.setup.session_ttl = Some(ttl);
        self
    }

    /// How long running handlers may continue after a shutdown was requested. Then they are stopped, and
    /// their attempts are lost. Default: 30 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.setup.drain_timeout = timeout;
        self
    }

    /// How long a handler may continue after the service has closed its attempt, for example because of a
    /// timeout. Then the handler is stopped at its next await, so that one that hangs frees its slot.
    /// Default: 5 s.
    pub fn closed_grace(mut self, grace: Duration) -> Self {
        self.setup.closed_grace = grace;
        self
    }

    /// How the worker talks to the service. Default: [`Transport::Stream`].
    pub fn transport(mut self, transport: Transport) -> Self {
        self.setup.transport = transport;
        self
    }

    /// Makes the worker.
    ///
    /// # Errors
    /// [`Error::Setup`] if there is no handler, a task type has two handlers, there are more than 1,000
    /// task types or 100 queues, or the number of slots is out of range.
    pub fn build(self) -> Result<Worker, Error> {
        let setup = self.setup;
        let wrong = if let Some(task_type) = self.twice {
            format!("the task type `{task_type}` has two handlers")
        } else if setup.handlers.is_empty() {
            "a worker needs at least one handler".to_owned()
        } else if setup.handlers.len() > 1_000 {
            "a worker serves at most 1,000 task types".to_owned()
        } else if setup.queues.len() > 100 {
            "a worker serves at most 100 queues".to_owned()
        } else if !(1..=SLOTS_MAX).contains(&setup.slots) {
            format!("slots must be from 1 to {SLOTS_MAX}, not {}", setup.slots)
        } else {
            return Ok(Worker { setup });
        };
        Err(Error::Setup(wrong))
    }

    /// Makes the worker with [`Self::build`] and runs it with [`Worker::run`].
    ///
    /// # Errors
    /// The errors of both.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        self.build()?.run(shutdown).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> WorkerBuilder {
        Worker::builder(Client::builder("http://127.0.0.1:1").connect_lazy().expect("an address"))
    }

    async fn nothing(_: TaskContext, (): ()) -> Result<(), TaskError> {
        Ok(())
    }

    #[tokio::test]
    async fn an_invalid_worker_set_up_is_rejected() {
        for (builder, expected) in [
            (builder(), "a worker needs at least one handler"),
            (builder().task("a", nothing).task("a", nothing), "the task type `a` has two handlers"),
            (builder().task("a", nothing).slots(0), "slots must be from 1 to 10000, not 0"),
            (
                builder().task("a", nothing).slots(10_001),
                "slots must be from 1 to 10000, not 10001",
            ),
        ] {
            assert_eq!(builder.build().err().expect(expected).to_string(), expected);
        }
        let worker =
            builder().task("b", nothing).task("a", nothing).build().expect("a valid set-up");
        assert_eq!(worker.setup.task_types(), ["a", "b"]);
        assert_eq!(worker.setup.queues(), ["default"]);
    }
}
