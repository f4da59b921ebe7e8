//! The attempt as its handler sees it, and the signals that ask the handler to stop.

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

/// The largest size of the details of a heartbeat, in bytes.
const HEARTBEAT_BYTES_MAX: usize = 4 * 1024;

/// A task as the service sends it.
pub type RawTask = Task;

/// Why a handler should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// The run is ending. A result that arrives within the workflow's `cancel_grace` still counts. If it is
    /// a success, the step is then compensated.
    Requested,
    /// The attempt has ended, for example by a timeout. Its result no longer counts.
    Closed,
}

/// The attempt that a handler is working on. Cheap to clone.
#[derive(Clone)]
pub struct TaskContext {
    attempt: Arc<Attempt>,
}

/// An attempt that this worker holds.
pub(super) struct Attempt {
    /// The task without its input, which the handler received.
    task: RawTask,
    /// The step that a compensation undoes, with the content of its output. Set only if the output came as
    /// a reference.
    compensation: OnceLock<CompensationTask>,
    /// 0 if the handler should not stop, otherwise the [`CancelReason`] + 1.
    cancel: AtomicU8,
    changed: Notify,
    /// The latest heartbeat that was not sent yet.
    heartbeat: Mutex<Option<Heartbeat>>,
    events: mpsc::UnboundedSender<Event>,
}

#[derive(Default)]
pub(super) struct Heartbeat {
    pub(super) details: Option<Payload>,
}

/// What handlers report to the loop that talks to the service.
pub(super) enum Event {
    /// An attempt ended. `result` is encoded by [`super::message::result`]. It is empty if the attempt is
    /// closed and nothing is to be reported.
    Finished { token: Bytes, result: Bytes },
    /// The attempt has a heartbeat to send.
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
            // Register for changes before reading the current value, so that no change between the two is
            // missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(reason) = self.cancelled().filter(|reason| enough(*reason)) {
                return reason;
            }
            changed.await;
        }
    }

    /// Completes once the attempt has been closed for as long as the grace period.
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
        // The reference is resolved once for each attempt, so the cell is still empty.
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
        // Sending fails only if the worker has been dropped. Then its session has ended too.
        let _ = self.attempt.events.send(Event::Finished { token, result });
    }

    /// The task as the service sent it, without its input. If the output of a compensated step came as a
    /// reference, the task still holds the reference; [`Self::compensation`] has the content.
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

    /// A key for deduplication, equal for all attempts that must take effect only once. Pass it to the
    /// system that performs the effect.
    pub fn idempotency_key(&self) -> &str {
        &self.attempt.task.idempotency_key
    }

    /// For a compensation: the step that it undoes. If the outcome of the step is unknown, the step may
    /// never have taken effect, and undoing it must be safe even then.
    pub fn compensation(&self) -> Option<&CompensationTask> {
        self.attempt.compensation.get().or(self.attempt.task.compensation.as_ref())
    }

    /// The trace that the execution belongs to, for the handler to continue.
    pub fn trace(&self) -> TraceContext {
        let task = &self.attempt.task;
        TraceContext::new(task.traceparent.as_str(), task.tracestate.as_str())
    }

    /// Reports that the handler is still working on the attempt, and how far it is. A step with a
    /// `heartbeat` timeout requires this. The call never waits: the heartbeat is sent with the next
    /// message, and replaces one that was not sent yet. Pass `&()` if there are no details.
    ///
    /// # Errors
    /// [`Error::Payload`] if the details cannot be written as JSON, [`Error::PayloadTooLarge`] if they are
    /// over 4 KiB.
    pub fn heartbeat<T: Serialize + ?Sized>(&self, details: &T) -> Result<(), Error> {
        let payload = to_payload(details)?;
        let size = payload.encoded_len();
        if size > HEARTBEAT_BYTES_MAX {
            return Err(Error::PayloadTooLarge { size });
        }
        let mut waiting = self.attempt.heartbeat.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.replace(Heartbeat { details: Some(payload) }).is_none() {
            let token = self.attempt.token().clone();
            // Sending fails only if the worker has been dropped. Then the handler is about to be dropped as
            // well.
            let _ = self.attempt.events.send(Event::Heartbeat { token });
        }
        Ok(())
    }

    /// Waits until the handler should stop, and returns the reason. May be called repeatedly and from
    /// several tasks.
    pub async fn cancelled(&self) -> CancelReason {
        self.attempt.until(|_| true).await
    }

    /// Returns the reason if the handler should stop, otherwise `None`.
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
    async fn a_cancellation_reaches_current_and_later_waiters() {
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
        assert_eq!(context.cancelled().await, CancelReason::Closed, "the reason Closed is final");
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
        assert!(events.try_recv().is_err(), "three heartbeats make one event");
        let details = attempt.take_heartbeat().and_then(|heartbeat| heartbeat.details);
        assert_eq!(crate::from_payload::<u32>(details.as_ref()).expect("JSON"), 30);

        let error = context.heartbeat(&"x".repeat(5_000)).expect_err("too large");
        assert!(matches!(error, Error::PayloadTooLarge { .. }));
        context.heartbeat(&()).expect("small");
        assert!(
            events.try_recv().is_ok(),
            "a heartbeat after the last one was taken makes another event"
        );
    }
}
