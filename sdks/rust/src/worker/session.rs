//! The worker's side of a session, without I/O: the tasks that it holds, the messages to send, and the
//! results that are not acknowledged yet. A session outlives the streams that serve it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use recoup_proto::v1::{
    ErrorReason, OpenSession, ResultAck, StreamTasksRequest, TaskCancellation,
    TaskCancellationReason, TaskHeartbeat, TaskReleased, task_result,
};
use tokio::task::AbortHandle;

use super::context::{Attempt, CancelReason};
use super::message::{self, Outgoing};
use super::refusal;

/// A message has at most 4 MiB, and a batch ends well before that. The limits of a single result keep it
/// below 4 MiB.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
const BATCH_RESULTS_MAX: usize = 1_000;
/// How long to wait before a result is sent again that the service could not store.
const RESEND_AFTER: Duration = Duration::from_millis(200);
/// How long a worker stays on the stream of a service that is stopping, so that handlers can finish.
const STAY: Duration = Duration::from_secs(1);

pub(super) struct WorkerSession {
    open: OpenSession,
    slots: u32,
    running: HashMap<Bytes, Running>,
    unacked: HashMap<Bytes, Unacked>,
    /// Tokens of the results to send, oldest first. A result may have been settled since its token was
    /// queued.
    queue: VecDeque<Bytes>,
    /// Tokens of the results that could not be stored, with the time at which to send them again.
    later: VecDeque<(Instant, Bytes)>,
    heartbeats: HashSet<Bytes>,
    /// How many tasks the service may still send on this stream.
    outstanding: u32,
    opened: bool,
    draining: bool,
    drain_sent: bool,
    /// When this stream first reported that the service is stopping.
    server_draining: Option<Instant>,
}

struct Running {
    attempt: Arc<Attempt>,
    abort: AbortHandle,
}

struct Unacked {
    encoded: Bytes,
    /// True if this replaces a result that was refused. If it is refused too, there is nothing left to
    /// report.
    last_resort: bool,
}

/// How to treat a task that the service sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Start it.
    Start,
    /// Do not start it: a handler is working on it, its result is on the way, or it was given back.
    Known,
}

impl WorkerSession {
    pub(super) fn new(open: OpenSession, slots: u32) -> Self {
        Self {
            open,
            slots,
            running: HashMap::new(),
            unacked: HashMap::new(),
            queue: VecDeque::new(),
            later: VecDeque::new(),
            heartbeats: HashSet::new(),
            outstanding: 0,
            opened: false,
            draining: false,
            drain_sent: false,
            server_draining: None,
        }
    }

    /// The first message of a new stream. It lists everything that is not settled as held; results that are
    /// not acknowledged are queued again.
    pub(super) fn open_message(&mut self) -> Outgoing {
        self.opened = false;
        self.drain_sent = self.draining;
        self.server_draining = None;
        self.later.clear();
        self.queue = self.unacked.keys().cloned().collect();
        self.outstanding = self.grant(0);
        let held = self.running.keys().chain(self.unacked.keys()).cloned().collect();
        let open = OpenSession { held_task_tokens: held, ..self.open.clone() };
        let head = StreamTasksRequest {
            open: Some(open),
            credit: self.outstanding,
            draining: self.draining,
            ..StreamTasksRequest::default()
        };
        Outgoing { head, results: Vec::new() }
    }

    /// The service has opened the session. The attempts of the listed tokens, which this worker held, are
    /// closed.
    pub(super) fn opened(&mut self, closed: &[Bytes]) {
        self.opened = true;
        for token in closed {
            self.close(token);
        }
    }

    pub(super) fn admit(&mut self, token: &Bytes) -> Admission {
        self.outstanding = self.outstanding.saturating_sub(1);
        if self.running.contains_key(token) {
            return Admission::Known;
        }
        if self.unacked.contains_key(token) {
            self.queue.push_back(token.clone());
            return Admission::Known;
        }
        if self.draining {
            let released = task_result::Result::Released(TaskReleased {});
            self.finish(token.clone(), message::result(token.clone(), released));
            return Admission::Known;
        }
        Admission::Start
    }

    pub(super) fn started(&mut self, attempt: Arc<Attempt>, abort: AbortHandle) {
        self.running.insert(attempt.token().clone(), Running { attempt, abort });
    }

    /// The handler of an attempt has ended. Its encoded result goes out with the next message.
    pub(super) fn finish(&mut self, token: Bytes, encoded: Bytes) {
        self.running.remove(&token);
        self.heartbeats.remove(&token);
        self.queue.push_back(token.clone());
        self.unacked.insert(token, Unacked { encoded, last_resort: false });
    }

    /// A handler was stopped because its attempt is closed. There is nothing to report.
    pub(super) fn abandon(&mut self, token: &Bytes) {
        self.running.remove(token);
        self.heartbeats.remove(token);
    }

    pub(super) fn heartbeat(&mut self, token: Bytes) {
        if self.running.contains_key(&token) {
            self.heartbeats.insert(token);
        }
    }

    pub(super) fn cancel(&mut self, cancellation: &TaskCancellation) {
        match cancellation.reason() {
            TaskCancellationReason::AttemptClosed => self.close(&cancellation.task_token),
            TaskCancellationReason::Unspecified | TaskCancellationReason::CancelRequested => {
                if let Some(running) = self.running.get(&cancellation.task_token) {
                    running.attempt.cancel(CancelReason::Requested);
                }
            }
        }
    }

    fn close(&mut self, token: &Bytes) {
        self.unacked.remove(token);
        if let Some(running) = self.running.get(token) {
            running.attempt.cancel(CancelReason::Closed);
        }
    }

    pub(super) fn acknowledge(&mut self, ack: ResultAck, now: Instant) {
        let token = &ack.task_token;
        match ack.reason() {
            ErrorReason::Unspecified if ack.reason == 0 => {
                self.unacked.remove(token);
            }
            ErrorReason::StoreUnavailable
            | ErrorReason::OutcomeUnknown
            | ErrorReason::Overloaded
            | ErrorReason::ExecutionTooNew
            | ErrorReason::ShuttingDown => {
                if self.unacked.contains_key(token) {
                    self.later.push_back((now + RESEND_AFTER, token.clone()));
                }
            }
            reason @ (ErrorReason::AttemptClosed | ErrorReason::TaskTokenInvalid) => {
                tracing::debug!(?reason, message = ack.message, "a result came too late");
                self.unacked.remove(token);
            }
            ErrorReason::ExecutionQuarantined => {
                // Report no error in its place: once the execution is released, the attempt is handed out
                // again.
                tracing::warn!(
                    message = ack.message,
                    "a result was not recorded: its execution is quarantined"
                );
                self.unacked.remove(token);
            }
            reason => self.refused(ack, reason),
        }
    }

    /// Replaces a result that the service refused. The attempt is still open and needs a result that the
    /// service accepts.
    fn refused(&mut self, ack: ResultAck, reason: ErrorReason) {
        let Some(unacked) = self.unacked.get_mut(&ack.task_token) else { return };
        tracing::warn!(?reason, message = ack.message, "the service refused a result");
        if unacked.last_resort {
            self.unacked.remove(&ack.task_token);
            return;
        }
        let refused = message::decoded(&unacked.encoded);
        let error = refusal::in_place_of(refused, reason, &ack.message);
        let failed = task_result::Result::Failed(error);
        unacked.encoded = message::result(ack.task_token.clone(), failed);
        unacked.last_resort = true;
        self.queue.push_back(ack.task_token);
    }

    /// Moves the results whose wait is over into the queue.
    pub(super) fn tick(&mut self, now: Instant) {
        while self.later.front().is_some_and(|(due, _)| *due <= now) {
            self.queue.extend(self.later.pop_front().map(|(_, token)| token));
        }
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    pub(super) fn server_drains(&mut self, now: Instant) {
        self.server_draining.get_or_insert(now);
    }

    /// Whether the worker can leave the stream of a service that is stopping: the service has acknowledged
    /// every result, and no handler is running or the worker has stayed long enough. The worker does not
    /// wait for handlers that keep running. Their results go out on the next stream, whichever server it
    /// leads to.
    pub(super) fn may_leave(&self, now: Instant) -> bool {
        let Some(since) = self.server_draining else { return false };
        self.unacked.is_empty() && (self.running.is_empty() || now.duration_since(since) >= STAY)
    }

    /// No handler is running and no result waits for an acknowledgement.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.unacked.is_empty()
    }

    /// The worker is draining, has said so to the service, and is idle.
    pub(super) fn is_drained(&self) -> bool {
        self.draining && self.drain_sent && self.is_idle()
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether there is a reason to send a message now.
    pub(super) fn has_message(&self) -> bool {
        self.opened
            && (!self.queue.is_empty()
                || !self.heartbeats.is_empty()
                || (self.draining && !self.drain_sent)
                || self.wants_credit())
    }

    /// Credit alone is sent only once it covers half the slots, or once the service has no credit left.
    fn wants_credit(&self) -> bool {
        let grant = self.grant(self.outstanding);
        grant > 0 && (self.outstanding == 0 || grant >= self.slots.div_ceil(2))
    }

    fn grant(&self, outstanding: u32) -> u32 {
        // A service that does not acknowledge results gets no further credit, which bounds the number of
        // results that wait here.
        let unacked_max = 4 * (self.slots as usize).max(BATCH_RESULTS_MAX);
        if self.draining || self.server_draining.is_some() || self.unacked.len() >= unacked_max {
            return 0;
        }
        let busy = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        self.slots.saturating_sub(busy.saturating_add(outstanding))
    }

    /// The next message: everything that has accumulated, up to the limits of a batch. The message is empty
    /// if there is nothing to send; an empty message still renews the session.
    pub(super) fn next_message(&mut self) -> Outgoing {
        let mut results = Vec::with_capacity(self.queue.len().min(BATCH_RESULTS_MAX));
        let mut bytes = 0;
        while let Some(token) = self.queue.front() {
            let Some(unacked) = self.unacked.get(token) else {
                self.queue.pop_front();
                continue;
            };
            bytes += unacked.encoded.len();
            if !results.is_empty()
                && (bytes > BATCH_BYTES_MAX || results.len() == BATCH_RESULTS_MAX)
            {
                break;
            }
            results.push(unacked.encoded.clone());
            self.queue.pop_front();
        }
        let credit = self.grant(self.outstanding);
        self.outstanding += credit;
        self.drain_sent = self.draining;
        let head = StreamTasksRequest {
            credit,
            heartbeats: self.take_heartbeats(),
            draining: self.draining,
            ..StreamTasksRequest::default()
        };
        Outgoing { head, results }
    }

    fn take_heartbeats(&mut self) -> Vec<TaskHeartbeat> {
        let running = &self.running;
        let heartbeat = |token: Bytes| {
            let heartbeat = running.get(&token)?.attempt.take_heartbeat()?;
            Some(TaskHeartbeat { task_token: token, details: heartbeat.details })
        };
        // At most 100 heartbeats of 4 KiB, together with a batch of results, stay below the limit of a
        // message.
        let tokens: Vec<_> = self.heartbeats.iter().take(100).cloned().collect();
        for token in &tokens {
            self.heartbeats.remove(token);
        }
        tokens.into_iter().filter_map(heartbeat).collect()
    }
}

impl Drop for WorkerSession {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.abort.abort();
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
