//! StreamTasks: one tokio task per stream reads what the worker sends and writes what the engine has for
//! it, gathered into few messages.
//!
//! Everything here is bounded. Unanswered results are counted, tasks are limited by credit, and nothing
//! more is read while a response does not fit into the channel. A worker that accepts nothing for its
//! session's time to live is disconnected. Its session then lives on until its own time to live expires.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use recoup_engine::node::io::{Session, SessionKey};
use recoup_engine::{Refusal, Worker, WorkerLink, WorkerMessage, token};
use recoup_proto::v1::{self, ErrorReason, TaskCancellationReason as Reason};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::delivery::hand_over;
use super::results::{command, heartbeat, heartbeat_details, refusal_for_worker};
use super::sessions::{HELD_MAX, closed, held, queues, task_types, ttl};
use crate::BATCH_BYTES_MAX;
use crate::context::Context;
use crate::convert::{task, text, time};
use crate::status::{Error, Result};

/// The most items in one response.
const ITEMS_MAX: usize = 256;
/// The most results whose answers may be outstanding. Beyond that no more are read.
const IN_FLIGHT_MAX: usize = 10_000;
/// How long a stream may exist without opening a session.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// The time to live of a session that streams and does not choose one.
const STREAM_TTL: Duration = Duration::from_secs(30);
/// The shortest interval between two renewals of a session.
const TOUCH_INTERVAL: Duration = Duration::from_secs(1);
/// The approximate size of an acknowledgement or a cancellation.
const SMALL_BYTES: usize = 128;

type Responses = mpsc::Sender<Result<v1::StreamTasksResponse, Status>>;

/// Serves a stream until its worker leaves, another stream takes over the session, or the server stops.
pub async fn serve(
    context: Arc<Context>,
    inbound: Streaming<v1::StreamTasksRequest>,
    responses: Responses,
) {
    let mut inbound = Inbound { stream: inbound, is_open: true };
    let opened = tokio::time::timeout(OPEN_WITHIN, open(&context, &mut inbound)).await;
    let opened = opened.unwrap_or_else(|_| {
        Err(not_open("the stream did not open a session in time; set `open` in its first message"))
    });
    let (mut stream, first) = match opened {
        Ok(Some(opened)) => opened,
        Ok(None) => return,
        Err(error) => return end(&responses, error, STREAM_TTL).await,
    };
    if let Err(Ended::Because(error)) = stream.run(inbound, first, &responses).await {
        end(&responses, error, stream.ttl).await;
    }
}

async fn end(responses: &Responses, error: Error, within: Duration) {
    // If the worker does not accept the error either, the error is dropped.
    let _ = responses.send_timeout(Err(error.into()), within).await;
}

fn not_open(message: &str) -> Error {
    Error::new(ErrorReason::SessionNotOpen, message)
}

/// The credit after `more` was granted in addition to what was left.
fn credit(more: u32, left: usize) -> Result<usize> {
    let credit = left.saturating_add(more as usize);
    if credit > HELD_MAX {
        let message = format!("must add up to at most {HELD_MAX} tasks, not {credit}");
        return Err(Error::invalid("credit", message));
    }
    Ok(credit)
}

/// Why a stream ends early.
enum Ended {
    Because(Error),
    /// The worker is gone, or accepts nothing.
    Gone,
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Because(error)
    }
}

struct Inbound {
    stream: Streaming<v1::StreamTasksRequest>,
    is_open: bool,
}

impl Inbound {
    /// The next message. `None` if the worker sends no more, or is gone.
    async fn next(&mut self) -> Option<v1::StreamTasksRequest> {
        // An error means that the connection ended, or that a message could not be decoded.
        let message = self.stream.message().await.ok().flatten();
        self.is_open = message.is_some();
        message
    }
}

struct Stream {
    context: Arc<Context>,
    link: WorkerLink,
    session: SessionKey,
    worker: String,
    ttl: Duration,
    /// The credit that the engine has not used yet.
    credit: usize,
    held: HashSet<Bytes>,
    in_flight: usize,
    answers: mpsc::UnboundedSender<Answered>,
    answered: mpsc::UnboundedReceiver<Answered>,
    touched_at: Instant,
    /// Whether the worker wants no more tasks, or the server is about to stop.
    draining: bool,
    out: Outgoing,
}

/// A result with the engine's answer to it.
struct Answered {
    token: Bytes,
    answer: Result<(), Error>,
}

/// Reads the first message and opens the session that it declares.
async fn open(
    context: &Arc<Context>,
    inbound: &mut Inbound,
) -> Result<Option<(Stream, v1::StreamTasksRequest)>> {
    let Some(mut first) = inbound.next().await else {
        return Ok(None);
    };
    let open = first.open.take().ok_or_else(|| not_open("the first message must set `open`"))?;
    let namespace = text::namespace(&open.namespace, "open.namespace")?;
    let field = "open.session_id";
    let session = text::required(open.session_id, field, text::SESSION_BYTES_MAX)?;
    let ttl = ttl(open.session_ttl, "open.session_ttl", STREAM_TTL)?;
    let worker = text::optional(open.worker, "open.worker", text::LABEL_BYTES_MAX)?;
    let (held, garbage) = held(&open.held_task_tokens, "open.held_task_tokens")?;
    let queues = queues(&namespace, open.queues, "open.queues")?;
    let task_types = task_types(open.task_types, "open.task_types")?;
    context.check_namespace(&namespace).await?;
    let credit = if first.draining { 0 } else { credit(first.credit, 0)? };
    let session = SessionKey { namespace, id: session };
    let offer = Worker {
        queues,
        task_types,
        credit: u32::try_from(credit).unwrap_or(u32::MAX),
        session: Some(Session { key: session.clone(), ttl }),
        worker: worker.clone(),
        held: Some(held.clone()),
        once: false,
    };
    let link = context.engine.attach(offer).await?;
    let (answers, answered) = mpsc::unbounded_channel();
    let mut out = Outgoing::default();
    out.next.opened = Some(v1::SessionOpened {
        session_id: session.id.clone(),
        session_ttl: Some(time::duration(ttl)),
        closed_task_tokens: garbage,
    });
    out.urgent = true;
    first.credit = 0;
    let stream = Stream {
        context: context.clone(),
        link,
        session,
        worker,
        ttl,
        credit,
        held: held.iter().map(|task| token::encode(task).into()).collect(),
        in_flight: 0,
        answers,
        answered,
        touched_at: Instant::now(),
        draining: false,
        out,
    };
    Ok(Some((stream, first)))
}

impl Stream {
    async fn run(
        &mut self,
        mut inbound: Inbound,
        first: v1::StreamTasksRequest,
        responses: &Responses,
    ) -> Result<(), Ended> {
        self.take(first).await?;
        let context = self.context.clone();
        let mut keepalive = tokio::time::interval_at(Instant::now() + self.ttl / 3, self.ttl / 3);
        keepalive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told_draining = false;
        loop {
            self.gather(responses).await?;
            let is_idle = self.in_flight == 0;
            let is_done = !inbound.is_open || (self.draining && self.held.is_empty());
            if is_done && is_idle {
                return Ok(());
            }
            let reads = inbound.is_open && self.in_flight < IN_FLIGHT_MAX;
            tokio::select! {
                message = inbound.next(), if reads => {
                    if let Some(message) = message {
                        if message.open.is_some() {
                            let message =
                                "the session is already open; set `open` only in the first message";
                            return Err(not_open(message).into());
                        }
                        self.take(message).await?;
                    }
                }
                Some(answered) = self.answered.recv() => self.acknowledge(answered),
                message = self.link.messages.recv() => self.pass(message, responses).await?,
                () = context.stopping(), if !told_draining => {
                    told_draining = true;
                    self.drain().await;
                    self.out.next.draining = true;
                    self.out.urgent = true;
                }
                _ = keepalive.tick() => self.out.urgent = true,
                () = responses.closed() => return Err(Ended::Gone),
            }
        }
    }

    /// Collects everything that is available by now into messages, and sends them.
    async fn gather(&mut self, responses: &Responses) -> Result<(), Ended> {
        if self.out.is_empty() {
            return Ok(());
        }
        // Yield first, so that tasks that are about to add something do so: that makes fewer and larger
        // messages.
        tokio::task::yield_now().await;
        loop {
            while let Ok(answered) = self.answered.try_recv() {
                self.acknowledge(answered);
                if self.out.is_full() {
                    break;
                }
            }
            match self.link.messages.try_recv() {
                Ok(message) => self.pass(Some(message), responses).await?,
                Err(_) if self.answered.is_empty() => break,
                Err(_) => {}
            }
            if self.out.is_full() {
                self.send(responses).await?;
            }
        }
        self.send(responses).await
    }

    async fn send(&mut self, responses: &Responses) -> Result<(), Ended> {
        if self.out.is_empty() {
            return Ok(());
        }
        let response = self.out.take();
        responses.send_timeout(Ok(response), self.ttl).await.map_err(|_| Ended::Gone)
    }

    /// Stops the engine from handing out more tasks to this worker.
    async fn drain(&mut self) {
        if !std::mem::replace(&mut self.draining, true) {
            self.link.drain().await;
        }
    }

    /// Handles a message of the worker.
    async fn take(&mut self, message: v1::StreamTasksRequest) -> Result<(), Ended> {
        if self.touched_at.elapsed() >= TOUCH_INTERVAL {
            self.touched_at = Instant::now();
            self.context.engine.touch(self.session.clone()).await;
        }
        if message.draining {
            self.drain().await;
        }
        for result in message.results {
            self.result(result).await;
        }
        if !message.heartbeats.is_empty() {
            self.beats(message.heartbeats).await;
        }
        if message.credit > 0 && !self.draining {
            self.credit = credit(message.credit, self.credit)?;
            self.link.add_credit(message.credit).await;
        }
        Ok(())
    }

    async fn result(&mut self, result: v1::TaskResult) {
        use v1::task_result::Result as Proto;
        let token = result.task_token;
        let Ok(task) = token::decode(&token) else {
            let error = Error::new(ErrorReason::TaskTokenInvalid, "the task token is malformed");
            return self.acknowledge_now(Answered { token, answer: Err(error) });
        };
        let result = match result.result {
            Some(Proto::Released(_)) => {
                let answer = self.context.engine.release(task, self.session.id.clone()).await;
                let answer = answer.map_err(refusal_for_worker);
                return self.acknowledge_now(Answered { token, answer });
            }
            Some(result) => result,
            None => {
                let answer = Err(Error::required("result"));
                return self.acknowledge_now(Answered { token, answer });
            }
        };
        let execution = task.execution;
        match command(task, result, &self.worker) {
            Ok((command, refusal)) => {
                self.in_flight += 1;
                let answers = self.answers.clone();
                let reply = Box::new(move |answer: Result<_, Refusal>| {
                    let answer = match (answer, refusal) {
                        (Err(refused), _) => Err(refusal_for_worker(refused)),
                        (Ok(_), Some(refusal)) => Err(refusal),
                        (Ok(_), None) => Ok(()),
                    };
                    // The stream may be gone by now. The result is durable regardless.
                    let _ = answers.send(Answered { token, answer });
                });
                self.context.engine.submit(execution, command, reply).await;
            }
            Err(error) => self.acknowledge_now(Answered { token, answer: Err(error) }),
        }
    }

    async fn beats(&mut self, beats: Vec<v1::TaskHeartbeat>) {
        let mut asked = Vec::with_capacity(beats.len());
        for own in beats {
            match token::decode(&own.task_token) {
                // Details that are too long are dropped, but the heartbeat still counts.
                Ok(task) => {
                    let details = heartbeat_details(own.details, "heartbeats.details");
                    let details = details.unwrap_or_else(|error| {
                        tracing::debug!(%error, "the details of a heartbeat were dropped");
                        None
                    });
                    asked.push((task, details));
                }
                Err(_) => self.out.cancel(closed(own.task_token)),
            }
        }
        let heartbeat = |(task, details)| heartbeat(&self.context, task, details);
        let answers: Vec<_> = asked.into_iter().map(heartbeat).collect();
        for cancellation in in_turn(answers).await {
            if cancellation.reason() == Reason::AttemptClosed {
                self.held.remove(&cancellation.task_token);
            }
            self.out.cancel(cancellation);
        }
    }

    /// Handles a message of the engine for the worker.
    async fn pass(
        &mut self,
        message: Option<WorkerMessage>,
        responses: &Responses,
    ) -> Result<(), Ended> {
        match message {
            Some(WorkerMessage::Tasks(handed)) => {
                self.credit = self.credit.saturating_sub(handed.len());
                for handed in handed {
                    let converted = task::to_proto(&handed).filter(|_| !self.draining);
                    let Some((task, bytes)) = converted else {
                        self.context.engine.undelivered(vec![hand_over(handed)]);
                        continue;
                    };
                    if !self.out.has_room(bytes) {
                        self.send(responses).await?;
                    }
                    self.held.insert(task.task_token.clone());
                    self.out.task(task, bytes);
                }
            }
            Some(WorkerMessage::CancelRequested(task)) => {
                self.out.cancel(task::cancellation(&task, Reason::CancelRequested));
            }
            Some(WorkerMessage::Closed(task)) => {
                let cancellation = task::cancellation(&task, Reason::AttemptClosed);
                self.held.remove(&cancellation.task_token);
                self.out.cancel(cancellation);
            }
            Some(WorkerMessage::Superseded) => {
                let message = "another stream or poll of the same session has replaced this stream";
                return Err(Error::new(ErrorReason::SessionSuperseded, message).into());
            }
            Some(WorkerMessage::Detached) => {
                return Err(not_open("the session's time to live has passed").into());
            }
            None => return Err(Error::from(Refusal::Stopping).into()),
        }
        Ok(())
    }

    fn acknowledge(&mut self, answered: Answered) {
        self.in_flight -= 1;
        self.acknowledge_now(answered);
    }

    fn acknowledge_now(&mut self, answered: Answered) {
        let Answered { token, answer } = answered;
        let (reason, message) = match answer {
            Ok(()) => (ErrorReason::Unspecified, String::new()),
            Err(error) => (ack_reason(error.reason), error.message),
        };
        if !is_again(reason) {
            self.held.remove(&token);
        }
        self.out.ack(v1::ResultAck { task_token: token, reason: reason.into(), message });
    }
}

/// If the server is overloaded or stopping, the worker is told to send the result again.
fn ack_reason(reason: ErrorReason) -> ErrorReason {
    match reason {
        ErrorReason::Overloaded | ErrorReason::ShuttingDown => ErrorReason::StoreUnavailable,
        other => other,
    }
}

fn is_again(reason: ErrorReason) -> bool {
    matches!(reason, ErrorReason::StoreUnavailable | ErrorReason::OutcomeUnknown)
}

async fn in_turn<F: Future<Output = Option<T>>, T>(asked: Vec<F>) -> Vec<T> {
    join_all(asked).await.into_iter().flatten().collect()
}

/// The response that is being built.
#[derive(Default)]
struct Outgoing {
    next: v1::StreamTasksResponse,
    items: usize,
    bytes: usize,
    /// Whether the response must be sent even if it has no items.
    urgent: bool,
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        self.items == 0 && !self.urgent
    }

    fn is_full(&self) -> bool {
        self.items >= ITEMS_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    /// Whether another item fits. A message without items has room for any task, however large.
    fn has_room(&self, bytes: usize) -> bool {
        self.items == 0 || (self.items < ITEMS_MAX && self.bytes + bytes <= BATCH_BYTES_MAX)
    }

    fn task(&mut self, task: v1::Task, bytes: usize) {
        self.add(bytes);
        self.next.tasks.push(task);
    }

    fn ack(&mut self, ack: v1::ResultAck) {
        self.add(SMALL_BYTES + ack.message.len());
        self.next.acks.push(ack);
    }

    fn cancel(&mut self, cancellation: v1::TaskCancellation) {
        self.add(SMALL_BYTES);
        self.next.cancellations.push(cancellation);
    }

    fn add(&mut self, bytes: usize) {
        self.items += 1;
        self.bytes += bytes;
    }

    fn take(&mut self) -> v1::StreamTasksResponse {
        std::mem::take(self).next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_limited_by_bytes_and_items_but_takes_one_item_of_any_size() {
        let mut out = Outgoing::default();
        assert!(out.is_empty() && out.has_room(BATCH_BYTES_MAX * 2));
        out.task(v1::Task::default(), BATCH_BYTES_MAX - 10);
        assert!(out.has_room(10) && !out.has_room(11) && !out.is_full());
        assert_eq!(out.take().tasks.len(), 1);
        assert!(out.is_empty());
        for _ in 0..ITEMS_MAX {
            assert!(out.has_room(1) && !out.is_full());
            out.ack(v1::ResultAck::default());
        }
        assert!(out.is_full() && !out.has_room(1));
    }

    #[test]
    fn result_must_be_resent_after_overload_shutdown_or_unknown_outcome() {
        assert!(is_again(ack_reason(ErrorReason::Overloaded)));
        assert!(is_again(ack_reason(ErrorReason::ShuttingDown)));
        assert!(is_again(ack_reason(ErrorReason::OutcomeUnknown)));
        assert!(!is_again(ack_reason(ErrorReason::AttemptClosed)));
    }
}
