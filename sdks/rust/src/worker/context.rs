//! What a handler knows of its attempt, and how it hears that it should stop.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use recoup_proto::v1::{CompensationTask, Payload, Task};
use serde::Serialize;
use tokio::sync::{Notify, mpsc};

use crate::payload::to_payload;
use crate::{Error, TraceContext};

/// What the details of a heartbeat may take, in bytes.
const HEARTBEAT_BYTES_MAX: usize = 4 * 1024;

/// A task as it comes from the service.
pub type RawTask = Task;

/// Why a handler should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// The run is ending. A result within the workflow's `cancel_grace` still counts; a success is then
    /// compensated.
    Requested,
    /// The attempt has ended, by a timeout say: no result counts any more.
    Closed,
}

/// The attempt that a handler works on. Cheap to clone.
#[derive(Clone)]
pub struct TaskContext {
    attempt: Arc<Attempt>,
}

/// One attempt in the hands of this worker.
pub(super) struct Attempt {
    /// Without its input, which the handler has.
    task: RawTask,
    /// What is undone, with an output that came as a reference.
    compensation: OnceLock<CompensationTask>,
    /// 0, or a [`CancelReason`] + 1.
    cancel: AtomicU8,
    changed: Notify,
    /// The last heartbeat that was not sent.
    heartbeat: Mutex<Option<Heartbeat>>,
    events: mpsc::UnboundedSender<Event>,
}

#[derive(Default)]
pub(super) struct Heartbeat {
    pub(super) details: Option<Payload>,
}

/// What handlers tell the loop that speaks with the service.
pub(super) enum Event {
    /// An attempt ended; `result` is as [`super::message::result`] made it, or empty when its attempt is
    /// closed and nothing is to be said.
    Finished { token: Bytes, result: Bytes },
    /// The attempt has a heartbeat to be taken.
    Heartbeat { token: Bytes },
}

impl Attempt {
    pub(super) fn new(task: RawTask, events: mpsc::UnboundedSender<Event>) -> Arc<Self> {
        Arc::new(Self {
            task,
            compensation: OnceLock::new(),
            cancel: AtomicU8::new(0),
            changed: Notify::new(),
            heartbeat: Mutex::new(None),
            events,
        })
    }

    pub(super) fn cancel(&self, reason: CancelReason) {
        self.cancel.fetch_max(reason as u8 + 1, Ordering::Release);
        self.changed.notify_waiters();
    }

    fn cancelled(&self) -> Option<CancelReason> {
        match self.cancel.load(Ordering::Acquire) {
            0 => None,
            1 => Some(CancelReason::Requested),
            _ => Some(CancelReason::Closed),
        }
    }

    async fn until(&self, enough: impl Fn(CancelReason) -> bool) -> CancelReason {
        loop {
            // Registered before the look, so that no change is missed between the two.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(reason) = self.cancelled().filter(|reason| enough(*reason)) {
                return reason;
            }
            changed.await;
        }
    }

    /// Ends when the attempt was closed and the grace is over.
    pub(super) async fn closed_for(&self, grace: Duration) {
        self.until(|reason| reason == CancelReason::Closed).await;
        tokio::time::sleep(grace).await;
    }

    pub(super) fn take_heartbeat(&self) -> Option<Heartbeat> {
        self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn task(&self) -> &RawTask {
        &self.task
    }

    pub(super) fn set_step_output(&self, output: Payload) {
        let came = self.task.compensation.clone().unwrap_or_default();
        // Read once for each attempt: nothing was set before.
        let _ = self.compensation.set(CompensationTask { step_output: Some(output), ..came });
    }

    pub(super) fn token(&self) -> &Bytes {
        &self.task.task_token
    }
}

impl TaskContext {
    pub(super) fn new(attempt: Arc<Attempt>) -> Self {
        Self { attempt }
    }

    pub(super) fn finished(&self, token: Bytes, result: Bytes) {
        // The worker is gone when nobody listens; then its session is too.
        let _ = self.attempt.events.send(Event::Finished { token, result });
    }

    /// The task as it came, without its input. Where the output of a step is a reference in it,
    /// [`Self::compensation`] has the content.
    pub fn task(&self) -> &RawTask {
        &self.attempt.task
    }

    /// Id of the execution.
    pub fn execution_id(&self) -> &str {
        &self.attempt.task.execution_id
    }

    /// Path of the step.
    pub fn step_path(&self) -> &str {
        &self.attempt.task.step_path
    }

    /// Number of the attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt.task.attempt
    }

    /// Equal for all attempts that must take effect once: hand it on to whom makes the effect.
    pub fn idempotency_key(&self) -> &str {
        &self.attempt.task.idempotency_key
    }

    /// What is undone, of a compensation. Where the outcome of the step is unknown it must be safe to undo
    /// what never happened.
    pub fn compensation(&self) -> Option<&CompensationTask> {
        self.attempt.compensation.get().or(self.attempt.task.compensation.as_ref())
    }

    /// The trace that the execution belongs to, to be continued.
    pub fn trace(&self) -> TraceContext {
        let task = &self.attempt.task;
        TraceContext::new(task.traceparent.as_str(), task.tracestate.as_str())
    }

    /// Says that the attempt is being worked on, which a step with a `heartbeat` timeout wants, and how
    /// far it is. Never waits: it is sent with what goes next, and only the last one counts. For none,
    /// give `&()`.
    ///
    /// # Errors
    /// [`Error::Payload`] for details without a JSON form, [`Error::PayloadTooLarge`] over 4 KiB.
    pub fn heartbeat<T: Serialize + ?Sized>(&self, details: &T) -> Result<(), Error> {
        let payload = to_payload(details)?;
        let size = payload.encoded_len();
        if size > HEARTBEAT_BYTES_MAX {
            return Err(Error::PayloadTooLarge { size });
        }
        let mut waiting = self.attempt.heartbeat.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.replace(Heartbeat { details: Some(payload) }).is_none() {
            let token = self.attempt.token().clone();
            // The worker is gone when nobody listens; then the handler is about to be dropped.
            let _ = self.attempt.events.send(Event::Heartbeat { token });
        }
        Ok(())
    }

    /// Waits until the handler should stop, and says why. May be called often, and by many.
    pub async fn cancelled(&self) -> CancelReason {
        self.attempt.until(|_| true).await
    }

    /// Whether the handler should stop, and why.
    pub fn is_cancelled(&self) -> Option<CancelReason> {
        self.attempt.cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt() -> (Arc<Attempt>, mpsc::UnboundedReceiver<Event>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Attempt::new(RawTask::default(), sender), receiver)
    }

    #[tokio::test]
    async fn a_cancel_reaches_who_waits_and_who_comes_late() {
        let (attempt, _events) = attempt();
        let context = TaskContext::new(attempt.clone());
        assert_eq!(context.is_cancelled(), None);
        let waiting = tokio::spawn({
            let context = context.clone();
            async move { context.cancelled().await }
        });
        tokio::task::yield_now().await;
        attempt.cancel(CancelReason::Requested);
        assert_eq!(waiting.await.expect("no panic"), CancelReason::Requested);

        attempt.cancel(CancelReason::Closed);
        attempt.cancel(CancelReason::Requested);
        assert_eq!(context.cancelled().await, CancelReason::Closed, "it never goes back");
        attempt.closed_for(Duration::ZERO).await;
    }

    #[tokio::test]
    async fn heartbeats_are_coalesced() {
        let (attempt, mut events) = attempt();
        let context = TaskContext::new(attempt.clone());
        for percent in [10, 20, 30] {
            context.heartbeat(&percent).expect("small");
        }
        assert!(matches!(events.try_recv(), Ok(Event::Heartbeat { .. })));
        assert!(events.try_recv().is_err(), "one event for three");
        let details = attempt.take_heartbeat().and_then(|heartbeat| heartbeat.details);
        assert_eq!(crate::from_payload::<u32>(details.as_ref()).expect("JSON"), 30);

        let error = context.heartbeat(&"x".repeat(5_000)).expect_err("too large");
        assert!(matches!(error, Error::PayloadTooLarge { .. }));
        context.heartbeat(&()).expect("small");
        assert!(events.try_recv().is_ok(), "after it was taken there is another");
    }
}
