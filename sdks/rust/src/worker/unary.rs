//! The loops that serve queues by unary calls: one long poll at a time for each queue, and one call per
//! result.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::try_join_all;
use recoup_proto::v1::worker_service_client::WorkerServiceClient;
use recoup_proto::v1::{
    CompleteTaskRequest, ErrorReason, FailTaskRequest, HeartbeatTaskRequest, HeldTasks, Payload,
    PollTasksRequest, TaskCancellationReason, task_result,
};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tonic::Code;

use super::context::{Attempt, CancelReason, Event, RawTask, TaskContext};
use super::handler::{self, Outcome};
use super::message;
use super::refusal;
use super::setup::Setup;
use crate::Error;
use crate::backoff::{Backoff, passes};
use crate::client::{CallOptions, rpc};

/// The most tasks that one poll may return.
const POLL_TASKS_MAX: u32 = 1_000;

/// How many results may be in the course of being reported, per slot. Beyond that, the worker asks for no
/// more tasks.
const REPORTS_PER_SLOT: usize = 4;

/// The tokens that the worker holds, with the attempts through which it signals their handlers.
type Held = Arc<Mutex<HashMap<Bytes, Arc<Attempt>>>>;

pub(super) async fn run(setup: Setup, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let queues = setup.queues();
    let setup = Arc::new(setup);
    let (stop, stopped) = watch::channel(false);
    let pollers = queues.into_iter().map(|queue| {
        let poller = Poller {
            setup: setup.clone(),
            queue,
            // Each queue has a session of its own. A poll lists the tasks that its session holds, and the
            // service hands out again the ones that are missing, so two polls of one session must not
            // overlap.
            session_id: uuid::Uuid::new_v4().to_string(),
            held: Held::default(),
            stopped: stopped.clone(),
        };
        poller.run()
    });
    let mut serving = std::pin::pin!(try_join_all(pollers));
    tokio::select! {
        done = &mut serving => return done.map(drop),
        () = shutdown => {}
    }
    // Every poller holds a receiver. If one has ended with an error, `serving` returns that error below.
    let _ = stop.send(true);
    serving.await.map(drop)
}

struct Poller {
    setup: Arc<Setup>,
    queue: String,
    session_id: String,
    held: Held,
    stopped: watch::Receiver<bool>,
}

fn locked(held: &Held) -> MutexGuard<'_, HashMap<Bytes, Arc<Attempt>>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Poller {
    async fn run(mut self) -> Result<(), Error> {
        let ttl = self.setup.session_ttl();
        let (sender, mut events) = mpsc::unbounded_channel();
        let (mut handling, mut reporting) = (JoinSet::new(), JoinSet::new());
        let slots = self.setup.slots as usize;
        let mut renewals = tokio::time::interval(ttl / 3);
        let backoff = Backoff::default();
        let mut retry = 0;
        let mut poll_at = Instant::now();
        let mut stopped = self.stopped.clone();
        while !*self.stopped.borrow_and_update() {
            // Tasks that were handed out together usually end together. Yield, so that one poll asks for
            // all their slots.
            tokio::task::yield_now().await;
            while let Some(done) = handling.try_join_next() {
                self.report(done, &mut reporting);
            }
            while reporting.try_join_next().is_some() {}
            let free = match reporting.len() < REPORTS_PER_SLOT * slots {
                true => slots - handling.len(),
                false => 0,
            };
            let due_at = poll_at;
            let poll = async {
                tokio::time::sleep_until(due_at.into()).await;
                self.poll(free, ttl).await
            };
            // Only the poll may be dropped half-way. Tasks that the service handed out to a dropped poll
            // are missing from the list of held tasks in the next poll or the farewell, so the service
            // hands them out again.
            let mut poll = std::pin::pin!(poll);
            let polled = loop {
                tokio::select! {
                    polled = &mut poll, if free > 0 => break Some(polled),
                    Some(done) = handling.join_next() => {
                        self.report(done, &mut reporting);
                        if free == 0 { break None }
                    }
                    Some(_) = reporting.join_next() => if free == 0 { break None },
                    _ = renewals.tick() => self.renew(),
                    Some(event) = events.recv() => self.heartbeat(event),
                    _ = stopped.changed() => break None,
                }
            };
            match polled {
                None => {}
                Some(Ok(tasks)) => {
                    retry = 0;
                    for task in tasks {
                        self.start(task, &sender, &mut handling);
                    }
                }
                Some(Err(error)) if passes(&error) => {
                    retry += 1;
                    let wait = backoff.next(retry, error.retry_after());
                    tracing::info!(%error, queue = self.queue, "the poll failed");
                    poll_at = Instant::now() + wait;
                }
                Some(Err(error)) => return Err(error),
            }
        }
        let finish = async {
            let mut farewell = std::pin::pin!(self.say_farewell(ttl));
            let mut said = false;
            while !said || !handling.is_empty() || !reporting.is_empty() {
                tokio::select! {
                    () = &mut farewell, if !said => said = true,
                    Some(done) = handling.join_next() => self.report(done, &mut reporting),
                    Some(_) = reporting.join_next() => {}
                    _ = renewals.tick() => self.renew(),
                    Some(event) = events.recv() => self.heartbeat(event),
                }
            }
        };
        if tokio::time::timeout(self.setup.drain_timeout, finish).await.is_err() {
            tracing::warn!("the drain timeout is over; tasks that are still running are stopped");
        }
        Ok(())
    }

    async fn poll(&self, free: usize, ttl: Duration) -> Result<Vec<RawTask>, Error> {
        let wait = ttl / 3;
        let request = PollTasksRequest {
            max_tasks: u32::try_from(free).unwrap_or(u32::MAX).min(POLL_TASKS_MAX),
            wait: Some(wait.into()),
            ..self.request(ttl)
        };
        let options = CallOptions { wait, trace: None };
        let response =
            rpc!(self.setup.client, WorkerServiceClient.poll_tasks(request), options).await?;
        for cancellation in &response.cancellations {
            if let Some(attempt) = locked(&self.held).get(&cancellation.task_token) {
                attempt.cancel(match cancellation.reason() {
                    TaskCancellationReason::AttemptClosed => CancelReason::Closed,
                    TaskCancellationReason::Unspecified
                    | TaskCancellationReason::CancelRequested => CancelReason::Requested,
                });
            }
        }
        Ok(response.tasks)
    }

    /// The last poll takes no tasks. If the previous poll was dropped while tasks were on their way to it,
    /// the service can hand them to other workers at once.
    async fn say_farewell(&self, ttl: Duration) {
        let request = PollTasksRequest { draining: true, ..self.request(ttl) };
        if let Err(error) = rpc!(self.setup.client, WorkerServiceClient.poll_tasks(request)).await {
            tracing::debug!(%error, queue = self.queue, "the last poll of a queue failed");
        }
    }

    /// A poll that lists every task that is held. The list is complete because there is only one poll at a
    /// time.
    fn request(&self, ttl: Duration) -> PollTasksRequest {
        let task_tokens = locked(&self.held).keys().cloned().collect();
        PollTasksRequest {
            namespace: self.setup.client.namespace().to_owned(),
            queue: self.queue.clone(),
            task_types: self.setup.task_types(),
            session_id: self.session_id.clone(),
            worker: self.setup.name.clone(),
            held: Some(HeldTasks { task_tokens }),
            session_ttl: Some(ttl.into()),
            ..PollTasksRequest::default()
        }
    }

    fn start(
        &self,
        mut task: RawTask,
        sender: &mpsc::UnboundedSender<Event>,
        handling: &mut JoinSet<Handled>,
    ) {
        let input = task.input.take();
        let attempt = Attempt::new(task, sender.clone());
        let token = attempt.token().clone();
        if locked(&self.held).insert(token, attempt.clone()).is_none() {
            handling.spawn(handle(self.setup.clone(), attempt, input));
        }
    }

    /// Reports the outcome of a task in the background. The slot of the task is already free.
    fn report(&self, done: Result<Handled, JoinError>, reporting: &mut JoinSet<()>) {
        match done {
            Ok((attempt, outcome)) => {
                reporting.spawn(settle(self.setup.clone(), attempt, outcome, self.held.clone()));
            }
            // Panics of handlers are outcomes, and no task of this set is aborted.
            Err(error) => tracing::error!(%error, "a handler ended without an outcome"),
        }
    }

    /// Renews the session with a heartbeat for any one of the tasks: every message about a task renews it.
    /// Polls do the same while there are free slots.
    fn renew(&self) {
        let attempt = locked(&self.held).values().next().cloned();
        if let Some(attempt) = attempt {
            tokio::spawn(beat(self.setup.clone(), attempt, None));
        }
    }

    fn heartbeat(&self, event: Event) {
        let Event::Heartbeat { token } = event else { return };
        let attempt = locked(&self.held).get(&token).cloned();
        if let Some(attempt) = attempt {
            let details = attempt.take_heartbeat().and_then(|heartbeat| heartbeat.details);
            tokio::spawn(beat(self.setup.clone(), attempt, details));
        }
    }
}

async fn beat(setup: Arc<Setup>, attempt: Arc<Attempt>, details: Option<Payload>) {
    let request = HeartbeatTaskRequest { task_token: attempt.token().clone(), details };
    match rpc!(setup.client, WorkerServiceClient.heartbeat_task(request)).await {
        Ok(response) if response.cancel_requested => attempt.cancel(CancelReason::Requested),
        Ok(_) => {}
        Err(error) if error.reason() == ErrorReason::AttemptClosed => {
            attempt.cancel(CancelReason::Closed);
        }
        // The next heartbeat carries the same information.
        Err(error) => tracing::debug!(%error, "a heartbeat was not accepted"),
    }
}

/// An attempt whose handler has ended, without an outcome if the attempt was closed in the meantime.
type Handled = (Arc<Attempt>, Option<Outcome>);

async fn handle(setup: Arc<Setup>, attempt: Arc<Attempt>, input: Option<Payload>) -> Handled {
    let outcome = tokio::select! {
        biased;
        outcome = handler::outcome(&setup.handlers, &setup.client, &attempt, input) => Some(outcome),
        // The attempt is closed, so its result is not wanted.
        () = attempt.closed_for(setup.closed_grace) => None,
    };
    (attempt, outcome)
}

async fn settle(setup: Arc<Setup>, attempt: Arc<Attempt>, outcome: Option<Outcome>, held: Held) {
    if let Some(outcome) = outcome
        && let Err(error) = report(&setup, attempt.token(), outcome).await
    {
        let step_path = TaskContext::new(attempt.clone()).step_path().to_owned();
        tracing::warn!(%error, step_path, "a result was not accepted");
    }
    locked(&held).remove(attempt.token());
}

/// Reports a result until the service has answered. The work is done, so it must not be thrown away because
/// the service is away for longer than a call is retried.
async fn report(setup: &Setup, token: &Bytes, outcome: Outcome) -> Result<(), Error> {
    let result = message::proto_result(outcome);
    let backoff = Backoff::default();
    let mut retry = 0;
    loop {
        match report_once(setup, token, result.clone()).await {
            Err(error) if passes(&error) => {
                retry += 1;
                let wait = backoff.next(retry, error.retry_after());
                tracing::info!(%error, retry, "a result is reported again");
                tokio::time::sleep(wait).await;
            }
            answered => return answered,
        }
    }
}

/// Reports a result. If the service refuses it, reports an error in its place.
async fn report_once(
    setup: &Setup,
    token: &Bytes,
    result: task_result::Result,
) -> Result<(), Error> {
    let Err(refused) = send(setup, token, result.clone()).await else { return Ok(()) };
    let reason = match (refused.reason(), &refused) {
        (reason @ (ErrorReason::FieldInvalid | ErrorReason::PayloadInvalid), _) => reason,
        // The transport, on this side or the other, refuses a message that is over the size limit.
        (ErrorReason::PayloadTooLarge, _)
        | (_, Error::MessageTooLarge { .. } | Error::Service { code: Code::OutOfRange, .. }) => {
            ErrorReason::PayloadTooLarge
        }
        _ => return Err(refused),
    };
    tracing::warn!(%refused, "the service refused a result");
    let error = refusal::in_place_of(Some(result), reason, &refused.to_string());
    send(setup, token, task_result::Result::Failed(error)).await
}

async fn send(setup: &Setup, token: &Bytes, result: task_result::Result) -> Result<(), Error> {
    match result {
        task_result::Result::Completed(output) => {
            let request = CompleteTaskRequest { task_token: token.clone(), output: Some(output) };
            rpc!(setup.client, WorkerServiceClient.complete_task(request)).await?;
        }
        task_result::Result::Failed(error) => {
            let request = FailTaskRequest { task_token: token.clone(), error: Some(error) };
            rpc!(setup.client, WorkerServiceClient.fail_task(request)).await?;
        }
        task_result::Result::Released(_) => {}
    }
    Ok(())
}

#[cfg(test)]
#[path = "unary_tests.rs"]
mod tests;
