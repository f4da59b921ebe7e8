//! The worker: serves tasks with handlers.

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

/// Serves the tasks of some queues with handlers, until it is told to stop.
///
/// The worker connects again by itself, with what it holds: a result that was not acknowledged is sent
/// again, a handler that runs goes on. Delivery is at least once: use
/// [`TaskContext::idempotency_key`] where an effect must happen once. A handler that panics fails its
/// attempt with the type `rust.panic`; a task type without a handler fails with `recoup.no_such_task`;
/// an output over 2 MiB fails with `recoup.payload_too_large`. An error whose type the service refuses is
/// reported as `rust.result_refused`, with the original in its message and as its cause.
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

/// Sets up a [`Worker`].
#[must_use = "a worker serves nothing before `run`"]
pub struct WorkerBuilder {
    setup: Setup,
    twice: Option<String>,
}

impl Worker {
    /// Sets up a worker in the namespace of `client`.
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

    /// Serves tasks until `shutdown` ends; then drains: takes no more tasks, gives back what it had not
    /// started, finishes what runs, waits for the acknowledgements, for at most the drain timeout.
    /// Dropping the future instead stops all handlers at once; their attempts are then lost ones.
    ///
    /// # Errors
    /// What does not pass by itself: `NAMESPACE_NOT_FOUND`, `FIELD_INVALID`. A service that is away is no
    /// error: the worker tries on.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        match self.setup.transport {
            Transport::Stream => stream::run(self.setup, shutdown).await,
            Transport::Unary => unary::run(self.setup, shutdown).await,
        }
    }
}

impl WorkerBuilder {
    /// Takes tasks from this queue; call it again for more, 100 at most. Default: `default`.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.setup.queues.push(queue.into());
        self
    }

    /// Serves a task type with an async handler: input and output are JSON. An input that is no `T` fails
    /// the attempt with the non-retryable type `recoup.input_invalid`.
    pub fn task<T, R, F, H>(self, task_type: impl Into<String>, handler: H) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        R: Serialize,
        F: Future<Output = Result<R, TaskError>> + Send + 'static,
        H: Fn(TaskContext, T) -> F + Send + Sync + 'static,
    {
        self.handler(task_type.into(), Handler::typed(handler))
    }

    /// Serves a task type with an async handler of payloads as they are: `None` is no value.
    pub fn payload_task<F, H>(self, task_type: impl Into<String>, handler: H) -> Self
    where
        F: Future<Output = Result<Payload, TaskError>> + Send + 'static,
        H: Fn(TaskContext, Option<Payload>) -> F + Send + Sync + 'static,
    {
        self.handler(task_type.into(), Handler::of_payloads(handler))
    }

    /// Serves a task type with a function that answers at once: it is called between two reads of the
    /// stream, without a task of its own, so it costs next to nothing, and must never block.
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

    /// How many handlers may run at once, from 1 to 10,000; by unary calls per queue. Default: 16.
    pub fn slots(mut self, slots: u32) -> Self {
        self.setup.slots = slots;
        self
    }

    /// The worker's name, for people. Default: `rust-` and the process id.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.setup.name = name.into();
        self
    }

    /// How long the session lives without a message, from 1 s to 10 min; then its attempts are lost. The
    /// worker renews it by itself, each third of this time. Default: 30 s, by unary calls 90 s.
    pub fn session_ttl(mut self, ttl: Duration) -> Self {
        self.setup.session_ttl = Some(ttl);
        self
    }

    /// How long handlers may go on after a shutdown; then they are stopped and their attempts are lost.
    /// Default: 30 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.setup.drain_timeout = timeout;
        self
    }

    /// How long a handler may go on after its attempt was closed by the service (a timeout, say); then it
    /// is stopped at its next await, so that a hanging one frees its slot. Default: 5 s.
    pub fn closed_grace(mut self, grace: Duration) -> Self {
        self.setup.closed_grace = grace;
        self
    }

    /// How to speak with the service. Default: [`Transport::Stream`].
    pub fn transport(mut self, transport: Transport) -> Self {
        self.setup.transport = transport;
        self
    }

    /// The worker.
    ///
    /// # Errors
    /// [`Error::Setup`]: no handler, two for one type, over 1,000 types or 100 queues, slots out of range.
    pub fn build(self) -> Result<Worker, Error> {
        let setup = self.setup;
        let wrong = if let Some(task_type) = self.twice {
            format!("the task type `{task_type}` has two handlers")
        } else if setup.handlers.is_empty() {
            "a worker needs a handler".to_owned()
        } else if setup.handlers.len() > 1_000 {
            "a worker serves at most 1,000 task types".to_owned()
        } else if setup.queues.len() > 100 {
            "a worker serves at most 100 queues".to_owned()
        } else if !(1..=SLOTS_MAX).contains(&setup.slots) {
            format!("slots are from 1 to {SLOTS_MAX}, not {}", setup.slots)
        } else {
            return Ok(Worker { setup });
        };
        Err(Error::Setup(wrong))
    }

    /// [`Self::build`] and [`Worker::run`].
    ///
    /// # Errors
    /// Those of both.
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
    async fn a_set_up_that_cannot_work_is_refused() {
        for (builder, expected) in [
            (builder(), "a worker needs a handler"),
            (builder().task("a", nothing).task("a", nothing), "the task type `a` has two handlers"),
            (builder().task("a", nothing).slots(0), "slots are from 1 to 10000, not 0"),
            (builder().task("a", nothing).slots(10_001), "slots are from 1 to 10000, not 10001"),
        ] {
            assert_eq!(builder.build().err().expect(expected).to_string(), expected);
        }
        let worker = builder().task("b", nothing).task("a", nothing).build().expect("it can work");
        assert_eq!(worker.setup.task_types(), ["a", "b"]);
        assert_eq!(worker.setup.queues(), ["default"]);
    }
}
