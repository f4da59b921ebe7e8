//! The loop that serves a session by stream. A single loop reads messages, starts handlers, collects their
//! results and writes messages. Only handlers are spawned.

use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use recoup_proto::v1::{OpenSession, StreamTasksResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::Streaming;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, GrpcMethod, Request, Status};

use super::context::{Attempt, Event, RawTask, TaskContext};
use super::handler::{self, Handler};
use super::message::{self, Outgoing, StreamCodec};
use super::reference;
use super::session::{Admission, WorkerSession};
use super::setup::Setup;
use crate::Error;
use crate::backoff::{Backoff, passes};
use crate::client::MESSAGE_BYTES_MAX;

/// How long the opening of a stream may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a drained worker waits for the service to end the stream. Tasks may still be on their way to
/// the worker.
const FAREWELL: Duration = Duration::from_secs(2);
/// How many events of handlers are taken from the channel at a time.
const EVENTS_MAX: usize = 1_024;

struct Stream {
    outgoing: mpsc::Sender<Outgoing>,
    incoming: Streaming<StreamTasksResponse>,
}

struct Loop {
    setup: Arc<Setup>,
    session: WorkerSession,
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    ttl: Duration,
    /// When draining must have finished. `None` while the worker is not draining.
    drain_until: Option<Instant>,
}

pub(super) async fn run(setup: Setup, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let ttl = setup.session_ttl();
    let open = OpenSession {
        namespace: setup.client.namespace().to_owned(),
        queues: setup.queues(),
        task_types: setup.task_types(),
        session_id: uuid::Uuid::new_v4().to_string(),
        worker: setup.name.clone(),
        held_task_tokens: Vec::new(),
        session_ttl: Some(ttl.into()),
    };
    let (sender, events) = mpsc::unbounded_channel();
    let session = WorkerSession::new(open, setup.slots);
    let mut state =
        Loop { setup: Arc::new(setup), session, events, sender, ttl, drain_until: None };
    let mut shutdown = std::pin::pin!(shutdown);
    let backoff = Backoff::default();
    let mut retry = 0;
    loop {
        let opened_at = Instant::now();
        let error = match state.serve(shutdown.as_mut()).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !passes(&error) {
            return Err(error);
        }
        // A stream that lived longer than the session TTL was a good one, so this is the first failure of a
        // new series.
        retry = if opened_at.elapsed() > ttl { 1 } else { retry + 1 };
        let wait = backoff.next(retry, error.retry_after());
        tracing::info!(%error, wait_ms = wait.as_millis() as u64, "the worker's stream broke");
        if state.pause(wait, shutdown.as_mut()).await.is_break() {
            return Ok(());
        }
    }
}

fn lost(message: &str) -> Error {
    Error::Unavailable { code: Code::Unavailable, message: message.to_owned() }
}

impl Loop {
    /// Serves one stream. Returns `Ok` when the worker is done.
    async fn serve(
        &mut self,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Error> {
        let opening = tokio::time::timeout(OPEN_TIMEOUT, self.open()).await;
        let mut stream = opening.map_err(|_| lost("the stream did not open"))??;
        let mut gathered = Vec::with_capacity(EVENTS_MAX);
        let mut heard_at = Instant::now();
        let mut said_at = heard_at;
        // One coarse clock serves everything that waits: cheaper than a timer for each.
        let mut ticks = tokio::time::interval((self.ttl / 12).min(Duration::from_millis(250)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut idle_since = None;
        loop {
            tokio::select! {
                biased;
                message = stream.incoming.message() => match message {
                    Ok(Some(message)) => {
                        heard_at = Instant::now();
                        self.receive(message, heard_at);
                    }
                    // The service ends the stream of a drained session.
                    Ok(None) if self.session.is_drained() => return Ok(()),
                    Ok(None) => return Err(lost("the service ended the stream")),
                    Err(_) if self.session.is_drained() => return Ok(()),
                    Err(status) => return Err(status.into()),
                },
                _ = self.events.recv_many(&mut gathered, EVENTS_MAX) => {
                    self.gather(&mut gathered);
                    // Yield, so that handlers that are about to end do so and their results go into the
                    // same message.
                    tokio::task::yield_now().await;
                    while let Ok(event) = self.events.try_recv() {
                        gathered.push(event);
                    }
                    self.gather(&mut gathered);
                }
                permit = stream.outgoing.reserve(), if self.session.has_message() => {
                    let permit = permit.map_err(|_| lost("the stream was closed"))?;
                    permit.send(self.session.next_message());
                    said_at = Instant::now();
                }
                () = shutdown.as_mut(), if !self.session.is_draining() => self.drain(),
                _ = ticks.tick() => {
                    let now = Instant::now();
                    self.session.tick(now);
                    if now - heard_at > self.ttl {
                        return Err(lost("the service sent nothing in time"));
                    }
                    if now - said_at > self.ttl / 3
                        && let Ok(permit) = stream.outgoing.try_reserve()
                    {
                        permit.send(self.session.next_message());
                        said_at = now;
                    }
                    if self.is_overdue(now) {
                        return Ok(());
                    }
                    if self.session.is_drained() {
                        let since = *idle_since.get_or_insert(now);
                        if now - since > FAREWELL {
                            return Ok(());
                        }
                    } else {
                        idle_since = None;
                    }
                }
            }
            // A drained worker does not reconnect; it returns above.
            if self.session.may_leave(Instant::now()) && !self.session.is_drained() {
                return Err(lost("the service is draining"));
            }
        }
    }

    async fn open(&mut self) -> Result<Stream, Error> {
        // One message waits while another is being written. Whatever accumulates meanwhile makes the next
        // batch.
        let (outgoing, messages) = mpsc::channel(1);
        let first = outgoing.try_send(self.session.open_message());
        first.map_err(|_| lost("the stream was closed"))?;
        let mut service = tonic::client::Grpc::new(self.setup.client.channel())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let unready = |error: tonic::transport::Error| Status::from_error(Box::new(error));
        service.ready().await.map_err(unready)?;
        let mut request = Request::new(ReceiverStream::new(messages));
        request.extensions_mut().insert(GrpcMethod::new("recoup.v1.WorkerService", "StreamTasks"));
        let path = PathAndQuery::from_static("/recoup.v1.WorkerService/StreamTasks");
        let response = service.streaming(request, path, StreamCodec::default()).await?;
        Ok(Stream { outgoing, incoming: response.into_inner() })
    }

    fn receive(&mut self, message: StreamTasksResponse, now: Instant) {
        if let Some(opened) = message.opened {
            self.session.opened(&opened.closed_task_tokens);
            // The service may have shortened the TTL.
            if let Some(ttl) = opened.session_ttl.and_then(|ttl| Duration::try_from(ttl).ok())
                && !ttl.is_zero()
            {
                self.ttl = ttl;
            }
        }
        if message.draining {
            self.session.server_drains(now);
        }
        for ack in message.acks {
            self.session.acknowledge(ack, now);
        }
        for cancellation in &message.cancellations {
            self.session.cancel(cancellation);
        }
        for task in message.tasks {
            if self.session.admit(&task.task_token) == Admission::Start {
                self.start(task);
            }
        }
    }

    fn start(&mut self, mut task: RawTask) {
        let token = task.task_token.clone();
        let outcome = match self.setup.handlers.get(&task.r#type) {
            // An inline handler must not wait, so a task with a reference to read runs in its own tokio
            // task.
            Some(handler) if matches!(handler, Handler::Spawned(_)) || reference::is_in(&task) => {
                let input = task.input.take();
                let attempt = Attempt::new(task, self.sender.clone());
                let running = run_handler(self.setup.clone(), attempt.clone(), input);
                let abort = tokio::spawn(running).abort_handle();
                self.session.started(attempt, abort);
                return;
            }
            Some(Handler::Inline(handler)) => handler::call_inline(&**handler, task),
            Some(Handler::Spawned(_)) => unreachable!("taken above"),
            None => Err(handler::no_such_task(&task.r#type)),
        };
        let result = message::result(token.clone(), message::proto_result(outcome));
        self.session.finish(token, result);
    }

    fn gather(&mut self, events: &mut Vec<Event>) {
        for event in events.drain(..) {
            match event {
                Event::Finished { token, result } if result.is_empty() => {
                    self.session.abandon(&token)
                }
                Event::Finished { token, result } => self.session.finish(token, result),
                Event::Heartbeat { token } => self.session.heartbeat(token),
            }
        }
    }

    fn drain(&mut self) {
        self.session.drain();
        self.drain_until = Some(Instant::now() + self.setup.drain_timeout);
        tracing::info!(running = self.session.running(), "the worker is draining");
    }

    fn is_overdue(&self, now: Instant) -> bool {
        let overdue = self.drain_until.is_some_and(|until| now >= until);
        if overdue {
            let running = self.session.running();
            tracing::warn!(
                running,
                "the drain timeout is over; tasks that are still running are stopped"
            );
        }
        overdue
    }

    /// Waits before the next stream is opened. Handlers keep running; their results wait in the channel,
    /// which is bounded by the number of handlers. Returns `Break` when the worker is done.
    async fn pause(
        &mut self,
        wait: Duration,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> ControlFlow<()> {
        let until = Instant::now() + wait;
        while !self.session.is_draining() {
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => return ControlFlow::Continue(()),
                () = shutdown.as_mut() => self.drain(),
            }
        }
        while let Ok(event) = self.events.try_recv() {
            self.gather(&mut vec![event]);
        }
        // There is no stream on which the worker could report that it holds nothing.
        if self.session.is_idle() || self.is_overdue(until) {
            return ControlFlow::Break(());
        }
        tokio::time::sleep_until(until.into()).await;
        ControlFlow::Continue(())
    }
}

/// Runs one attempt, from its input to its result.
async fn run_handler(
    setup: Arc<Setup>,
    attempt: Arc<Attempt>,
    input: Option<recoup_proto::v1::Payload>,
) {
    let context = TaskContext::new(attempt.clone());
    let token = attempt.token().clone();
    let result = tokio::select! {
        biased;
        outcome = handler::outcome(&setup.handlers, &setup.client, &attempt, input) => {
            message::result(token.clone(), message::proto_result(outcome))
        }
        // The attempt is closed, so its result is not wanted. An empty result tells the loop so.
        () = attempt.closed_for(setup.closed_grace) => bytes::Bytes::new(),
    };
    context.finished(token, result);
}
