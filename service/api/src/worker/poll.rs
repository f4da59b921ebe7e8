//! PollTasks: waits until there are tasks or notices for a worker, and answers with as many as fit into one
//! message.

use std::time::Duration;

use recoup_engine::node::io::{Notice, Session, SessionKey};
use recoup_engine::{HandedTask, Worker, WorkerLink, WorkerMessage};
use recoup_proto::v1::{self, ErrorReason, TaskCancellationReason as Reason};
use tokio::time::Instant;

use super::delivery::{Undelivered, hand_over};
use super::sessions::{closed, held, queue, task_types, ttl};
use crate::BATCH_BYTES_MAX;
use crate::context::Context;
use crate::convert::{task, text};
use crate::status::{Error, Result};

/// The most tasks in one answer to a poll.
const POLL_TASKS_MAX: u32 = 1_000;
/// The time to live of a session that polls and does not choose one.
const POLL_TTL: Duration = Duration::from_secs(90);

/// Returns the answer, and the tasks and notices that must be taken back if it does not arrive.
pub async fn poll(
    context: &Context,
    request: v1::PollTasksRequest,
    wait: Duration,
) -> Result<(v1::PollTasksResponse, Undelivered)> {
    let wait = if request.draining { Duration::ZERO } else { wait };
    let deadline = Instant::now() + wait;
    let namespace = text::namespace(&request.namespace, "namespace")?;
    context.check_namespace(&namespace).await?;
    let max_tasks = match request.max_tasks {
        0 => 1,
        max if max <= POLL_TASKS_MAX => max,
        max => {
            let message = format!("must be from 1 to {POLL_TASKS_MAX}, not {max}");
            return Err(Error::invalid("max_tasks", message));
        }
    };
    let field = "session_id";
    let session_id = text::optional(request.session_id, field, text::SESSION_BYTES_MAX)?;
    let ttl = ttl(request.session_ttl, "session_ttl", POLL_TTL)?;
    let has_session = !session_id.is_empty();
    let tokens = request.held.filter(|_| has_session).map(|held| held.task_tokens);
    let (held, garbage) = match tokens {
        Some(tokens) => {
            let (held, garbage) = held(&tokens, "held.task_tokens")?;
            (Some(held), garbage)
        }
        None => (None, Vec::new()),
    };
    let key = SessionKey { namespace: namespace.clone(), id: session_id };
    let offer = Worker {
        queues: vec![queue(&namespace, request.queue, "queue")?],
        task_types: task_types(request.task_types, "task_types")?,
        credit: if request.draining { 0 } else { max_tasks },
        session: has_session.then_some(Session { key: key.clone(), ttl }),
        worker: text::optional(request.worker, "worker", text::LABEL_BYTES_MAX)?,
        held,
        once: true,
    };
    let engine = &context.engine;
    let lists_tasks = offer.held.as_ref().is_some_and(|held| !held.is_empty());
    let session = has_session.then_some(key);
    let undelivered = Undelivered::new(engine.clone(), session.clone());
    let mut poll = Poll { link: engine.attach(offer).await?, undelivered };
    let mut answer = PollAnswer::default();
    while answer.is_empty() {
        let message = tokio::select! {
            biased;
            message = poll.link.messages.recv() => message,
            () = tokio::time::sleep_until(deadline) => break,
            () = context.stopping() => break,
        };
        match message {
            Some(WorkerMessage::Superseded) => {
                let message = "a later poll of the same session has replaced this one";
                return Err(Error::new(ErrorReason::SessionSuperseded, message));
            }
            Some(WorkerMessage::Detached) | None => break,
            Some(message) => answer.take(message, &mut poll.undelivered),
        }
    }
    // Include the tasks that were handed over while the wait was ending.
    poll.link.messages.close();
    while let Ok(message) = poll.link.messages.try_recv() {
        answer.take(message, &mut poll.undelivered);
    }
    if answer.is_empty()
        && let Some(session) = session.filter(|_| lists_tasks)
    {
        // Notices that an earlier poll of the session has delivered. The worker may not have received them.
        let told = engine.told_closed(session).await;
        let told = told.iter().map(|task| task::cancellation(task, Reason::AttemptClosed));
        answer.cancellations.extend(told);
    }
    // A token that identifies no task ends no poll early, because the worker may list it again and again.
    answer.cancellations.extend(garbage.into_iter().map(closed));
    let PollAnswer { tasks, cancellations, .. } = answer;
    Ok((v1::PollTasksResponse { tasks, cancellations }, poll.into_undelivered()))
}

/// A poll in progress. If it is dropped because its caller is gone, its tasks and notices are taken back.
struct Poll {
    link: WorkerLink,
    undelivered: Undelivered,
}

impl Poll {
    /// Ends a poll whose answer is complete. From here on the caller must take back what does not arrive.
    fn into_undelivered(mut self) -> Undelivered {
        self.undelivered.take()
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        self.link.messages.close();
        while let Ok(message) = self.link.messages.try_recv() {
            match message {
                WorkerMessage::Tasks(handed) => {
                    handed.into_iter().for_each(|handed| self.undelivered.task(hand_over(handed)));
                }
                WorkerMessage::CancelRequested(task) => {
                    self.undelivered.notice(task, Notice::CancelRequested);
                }
                WorkerMessage::Closed(task) => self.undelivered.notice(task, Notice::Closed),
                WorkerMessage::Superseded | WorkerMessage::Detached => {}
            }
        }
    }
}

/// The answer to a poll while it is being built.
#[derive(Default)]
struct PollAnswer {
    tasks: Vec<v1::Task>,
    cancellations: Vec<v1::TaskCancellation>,
    bytes: usize,
}

impl PollAnswer {
    fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.cancellations.is_empty()
    }

    fn take(&mut self, message: WorkerMessage, undelivered: &mut Undelivered) {
        match message {
            WorkerMessage::Tasks(handed) => self.collect(handed, undelivered),
            WorkerMessage::CancelRequested(task) => {
                self.cancellations.push(task::cancellation(&task, Reason::CancelRequested));
                undelivered.notice(task, Notice::CancelRequested);
            }
            WorkerMessage::Closed(task) => {
                self.cancellations.push(task::cancellation(&task, Reason::AttemptClosed));
                undelivered.notice(task, Notice::Closed);
            }
            WorkerMessage::Superseded | WorkerMessage::Detached => {}
        }
    }

    /// Adds as many tasks as fit into one message, but at least one. The others are given back.
    fn collect(&mut self, handed: Vec<HandedTask>, undelivered: &mut Undelivered) {
        let mut rest = Vec::new();
        for handed in handed {
            match task::to_proto(&handed) {
                Some((task, size))
                    if self.tasks.is_empty() || self.bytes + size <= BATCH_BYTES_MAX =>
                {
                    self.bytes += size;
                    self.tasks.push(task);
                    undelivered.task(hand_over(handed));
                }
                _ => rest.push(hand_over(handed)),
            }
        }
        undelivered.engine().undelivered(rest);
    }
}
