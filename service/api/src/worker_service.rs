//! WorkerService: the unary calls; [`crate::task_stream`] has the stream.

use std::sync::Arc;
use std::time::Duration;

use recoup_core::command::{Command, Rejection, TaskId};
use recoup_core::error::{Error as AttemptError, builtin};
use recoup_core::event::Event;
use recoup_core::id::Namespace;
use recoup_core::limits::{QUEUE_BYTES_MAX, TASK_TYPE_BYTES_MAX};
use recoup_core::payload::Payload;
use recoup_core::plan::QUEUE;
use recoup_core::time::Timestamp;
use recoup_engine::node::io::{Notice, Session, SessionKey};
use recoup_engine::{HandedTask, Refusal, Worker, WorkerLink, WorkerMessage, token};
use recoup_proto as proto;
use recoup_proto::v1::worker_service_server::WorkerService;
use recoup_proto::v1::{self, ErrorReason, TaskCancellationReason as Reason};
use recoup_store::{QueueName, StoredTransition};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::context::Context;
use crate::convert::{decision, error, payload, task, text, time};
use crate::delivery::{Contents, Parcel};
use crate::status::{Error, Result};
use crate::{BATCH_BYTES_MAX, metadata, task_stream};

/// Queues of one session.
const QUEUES_MAX: usize = 100;
/// Task types of one session.
const TASK_TYPES_MAX: usize = 1_000;
/// Tokens that a session may say it holds, and credit that it may have.
pub const HELD_MAX: usize = 10_000;
/// Tasks in one answer to a poll.
const POLL_TASKS_MAX: u32 = 1_000;
const POLL_TTL: Duration = Duration::from_secs(90);
pub const SESSION_TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(600);
/// Bytes of what a heartbeat says.
pub const BEAT_BYTES_MAX: usize = 4 * 1024;
/// Responses on their way to one stream; a reader that takes none stops its stream here.
const RESPONSES_MAX: usize = 2;

pub struct Service {
    context: Arc<Context>,
}

impl Service {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// The answer, and what must be taken back if it does not arrive.
    async fn poll(
        &self,
        request: v1::PollTasksRequest,
        wait: Duration,
    ) -> Result<(v1::PollTasksResponse, Contents)> {
        let wait = if request.draining { Duration::ZERO } else { wait };
        let deadline = Instant::now() + wait;
        let namespace = text::namespace(&request.namespace, "namespace")?;
        self.context.check_namespace(&namespace).await?;
        let max_tasks = match request.max_tasks {
            0 => 1,
            max if max <= POLL_TASKS_MAX => max,
            max => {
                let message = format!("{max} is not from 1 to {POLL_TASKS_MAX}");
                return Err(Error::invalid("max_tasks", message));
            }
        };
        let field = "session_id";
        let session_id = text::optional(request.session_id, field, text::SESSION_BYTES_MAX)?;
        let ttl =
            time::duration_between(request.session_ttl, "session_ttl", POLL_TTL, SESSION_TTL)?;
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
        let engine = &self.context.engine;
        let session = has_session.then_some(key);
        let contents = Contents::new(engine.clone(), session);
        let mut poll = Poll { link: engine.attach(offer).await?, contents };
        let mut answer = PollAnswer::default();
        answer.cancellations.extend(garbage.into_iter().map(closed));
        while answer.is_empty() {
            let message = tokio::select! {
                biased;
                message = poll.link.messages.recv() => message,
                () = tokio::time::sleep_until(deadline) => break,
                () = self.context.stopping() => break,
            };
            match message {
                Some(WorkerMessage::Superseded) => {
                    let message = "another poll says what the session holds";
                    return Err(Error::new(ErrorReason::SessionSuperseded, message));
                }
                Some(WorkerMessage::Detached) | None => break,
                Some(message) => answer.take(message, &mut poll.contents),
            }
        }
        // What was handed over while the wait ended is answered as well.
        poll.link.messages.close();
        while let Ok(message) = poll.link.messages.try_recv() {
            answer.take(message, &mut poll.contents);
        }
        let PollAnswer { tasks, cancellations, .. } = answer;
        Ok((v1::PollTasksResponse { tasks, cancellations }, poll.into_contents()))
    }

    async fn complete(&self, request: v1::CompleteTaskRequest) -> Result<()> {
        let task = decode(&request.task_token)?;
        let result = v1::task_result::Result::Completed(request.output.unwrap_or_default());
        let (command, refusal) = command(task.clone(), result, "")?;
        self.context.engine.report(task.execution, command).await.map_err(of_worker)?;
        refusal.map_or(Ok(()), Err)
    }

    async fn fail(&self, request: v1::FailTaskRequest) -> Result<v1::FailTaskResponse> {
        let task = decode(&request.task_token)?;
        let error = request.error.ok_or_else(|| Error::required("error"))?;
        let result = v1::task_result::Result::Failed(error);
        let (command, refusal) = command(task.clone(), result, "")?;
        let decision =
            self.context.engine.report(task.execution, command).await.map_err(of_worker)?;
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let decision = match decision {
            Some(decision) => Some(decision::to_proto(&decision)),
            // Recorded by an earlier call.
            None => self.decision(&task).await,
        };
        Ok(v1::FailTaskResponse { decision })
    }

    /// What was decided about an attempt. It is durable whether or not it can be read now.
    async fn decision(&self, task: &TaskId) -> Option<v1::RetryDecision> {
        let find = |row: &StoredTransition| {
            let data = row.decode(task.execution);
            let events = data.map(|data| data.events).unwrap_or_default();
            Ok(events.iter().find_map(|event| match event {
                Event::AttemptFailed(failed)
                    if failed.path == task.path && failed.attempt == task.attempt =>
                {
                    Some(decision::to_proto(&failed.decision))
                }
                _ => None,
            }))
        };
        // It stands behind what scheduled the attempt.
        let found = self.context.find_in_history(task.execution, task.sequence, find).await;
        found.ok().flatten()
    }
}

/// A poll that is going on. If it is dropped with its caller, what it was told is taken back.
struct Poll {
    link: WorkerLink,
    contents: Contents,
}

impl Poll {
    /// The answer is complete.
    fn into_contents(mut self) -> Contents {
        self.contents.take()
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        self.link.messages.close();
        while let Ok(message) = self.link.messages.try_recv() {
            match message {
                WorkerMessage::Tasks(handed) => {
                    handed.into_iter().for_each(|handed| self.contents.task(hand_over(handed)));
                }
                WorkerMessage::CancelRequested(task) => {
                    self.contents.notice(task, Notice::CancelRequested);
                }
                WorkerMessage::Closed(task) => self.contents.notice(task, Notice::Closed),
                WorkerMessage::Superseded | WorkerMessage::Detached => {}
            }
        }
    }
}

/// The answer to a poll that is being made.
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

    fn take(&mut self, message: WorkerMessage, contents: &mut Contents) {
        match message {
            WorkerMessage::Tasks(handed) => self.collect(handed, contents),
            WorkerMessage::CancelRequested(task) => {
                self.cancellations.push(task::cancellation(&task, Reason::CancelRequested));
                contents.notice(task, Notice::CancelRequested);
            }
            WorkerMessage::Closed(task) => {
                self.cancellations.push(task::cancellation(&task, Reason::AttemptClosed));
                contents.notice(task, Notice::Closed);
            }
            WorkerMessage::Superseded | WorkerMessage::Detached => {}
        }
    }

    /// Takes as many tasks as fit into one message, at least one; the others go back.
    fn collect(&mut self, handed: Vec<HandedTask>, contents: &mut Contents) {
        let mut rest = Vec::new();
        for handed in handed {
            match task::to_proto(&handed) {
                Some((task, size))
                    if self.tasks.is_empty() || self.bytes + size <= BATCH_BYTES_MAX =>
                {
                    self.bytes += size;
                    self.tasks.push(task);
                    contents.task(hand_over(handed));
                }
                _ => rest.push(hand_over(handed)),
            }
        }
        contents.engine().undelivered(rest);
    }
}

/// What names a hand-over.
pub fn hand_over(handed: HandedTask) -> (TaskId, Timestamp) {
    (handed.id, handed.handed_at)
}

/// Says that a task is worked on. Answers with what its worker should know, if anything.
pub async fn beat(
    context: &Context,
    task: TaskId,
    details: Option<Payload>,
) -> Option<v1::TaskCancellation> {
    match context.engine.heartbeat(task.clone(), details).await {
        Ok(true) => Some(task::cancellation(&task, Reason::CancelRequested)),
        Err(Refusal::Rejected(_)) => Some(task::cancellation(&task, Reason::AttemptClosed)),
        Ok(false) | Err(_) => None,
    }
}

pub fn decode(token: &[u8]) -> Result<TaskId> {
    token::decode(token).map_err(|error| {
        Error::field(ErrorReason::TaskTokenInvalid, "task_token", error.to_string())
    })
}

/// A refusal, told to a worker: an execution that is gone has closed all its attempts.
pub fn of_worker(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Rejected(Rejection::NoSuchExecution | Rejection::ExecutionEnded(_)) => {
            Error::new(ErrorReason::AttemptClosed, refusal.to_string())
        }
        other => other.into(),
    }
}

pub fn closed(token: bytes::Bytes) -> v1::TaskCancellation {
    v1::TaskCancellation { task_token: token, reason: Reason::AttemptClosed.into() }
}

/// What a result asks of the engine. Work that was done but is over a limit is recorded as the error
/// `recoup.payload_too_large`; the refusal that comes with it is told once that is durable. Fields are
/// named as in the unary calls, `output` and `error`, on streams too: an acknowledgement is about one
/// result, and a result that is sent again by the other transport must be the same.
pub fn command(
    task: TaskId,
    result: v1::task_result::Result,
    worker: &str,
) -> Result<(Command, Option<Error>)> {
    use v1::task_result::Result as Proto;
    let worker = worker.to_owned();
    let too_large =
        |reason| matches!(reason, ErrorReason::PayloadTooLarge | ErrorReason::ErrorTooLarge);
    let (error, refusal): (AttemptError, _) = match result {
        Proto::Completed(output) => match payload::from_proto(output, "output") {
            Ok(output) => return Ok((Command::CompleteTask { task, output, worker }, None)),
            Err(refusal) if too_large(refusal.reason) => {
                let message = format!("the output of the task is too large: {refusal}");
                (AttemptError::builtin(builtin::PAYLOAD_TOO_LARGE, message), Some(refusal))
            }
            Err(refusal) => return Err(refusal),
        },
        Proto::Failed(reported) => {
            let told = (reported.r#type.clone(), excerpt(&reported.message));
            match error::from_proto(reported, "error") {
                Ok(error) => (error, None),
                Err(refusal) if too_large(refusal.reason) => {
                    (error::too_large(&told.0, &told.1), Some(refusal))
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Proto::Released(_) => return Err(Error::required("result")),
    };
    Ok((Command::FailTask { task, error, worker }, refusal))
}

fn excerpt(text: &str) -> String {
    text.chars().take(1_024).collect()
}

pub fn queue(namespace: &Namespace, name: String, field: &str) -> Result<QueueName> {
    let name = if name.is_empty() { QUEUE.to_owned() } else { name };
    let queue = text::optional(name, field, QUEUE_BYTES_MAX)?;
    Ok(QueueName { namespace: namespace.clone(), queue })
}

pub fn queues(namespace: &Namespace, names: Vec<String>, field: &str) -> Result<Vec<QueueName>> {
    if names.len() > QUEUES_MAX {
        return Err(Error::invalid(field, format!("at most {QUEUES_MAX} queues are allowed")));
    }
    let names = if names.is_empty() { vec![QUEUE.to_owned()] } else { names };
    let mut queues = Vec::with_capacity(names.len());
    for (index, name) in names.into_iter().enumerate() {
        let queue = queue(namespace, name, &format!("{field}[{index}]"))?;
        if !queues.contains(&queue) {
            queues.push(queue);
        }
    }
    Ok(queues)
}

pub fn task_types(types: Vec<String>, field: &str) -> Result<Vec<String>> {
    if types.len() > TASK_TYPES_MAX {
        return Err(Error::invalid(field, format!("at most {TASK_TYPES_MAX} types are allowed")));
    }
    let types = types.into_iter().enumerate();
    types
        .map(|(index, own)| text::required(own, &format!("{field}[{index}]"), TASK_TYPE_BYTES_MAX))
        .collect()
}

/// Tasks that a worker says it holds, and the tokens that name none.
pub fn held(tokens: &[bytes::Bytes], field: &str) -> Result<(Vec<TaskId>, Vec<bytes::Bytes>)> {
    if tokens.len() > HELD_MAX {
        return Err(Error::invalid(field, format!("at most {HELD_MAX} tokens are allowed")));
    }
    let mut tasks = Vec::with_capacity(tokens.len());
    let mut garbage = Vec::new();
    for own in tokens {
        match token::decode(own) {
            Ok(task) => tasks.push(task),
            Err(_) => garbage.push(own.clone()),
        }
    }
    Ok((tasks, garbage))
}

pub fn beat_details(details: Option<v1::Payload>, field: &str) -> Result<Option<Payload>> {
    let Some(details) = details else {
        return Ok(None);
    };
    let details = payload::from_proto(details, field)?;
    if details.size() > BEAT_BYTES_MAX {
        return Err(Error::invalid(field, format!("at most {BEAT_BYTES_MAX} bytes are allowed")));
    }
    Ok(Some(details))
}

#[tonic::async_trait]
impl WorkerService for Service {
    type StreamTasksStream = ReceiverStream<Result<v1::StreamTasksResponse, Status>>;

    async fn stream_tasks(
        &self,
        request: Request<Streaming<v1::StreamTasksRequest>>,
    ) -> Result<Response<Self::StreamTasksStream>, Status> {
        if self.context.is_stopping() {
            return Err(Error::from(Refusal::Stopping).into());
        }
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        tokio::spawn(task_stream::serve(self.context.clone(), request.into_inner(), responses));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn poll_tasks(
        &self,
        request: Request<v1::PollTasksRequest>,
    ) -> Result<Response<v1::PollTasksResponse>, Status> {
        let wait = metadata::wait(request.get_ref().wait, request.metadata())?;
        let (response, contents) = self.poll(request.into_inner(), wait).await?;
        let mut response = Response::new(response);
        if !contents.is_empty() {
            response.extensions_mut().insert(Parcel::new(contents));
        }
        Ok(response)
    }

    async fn complete_task(
        &self,
        request: Request<v1::CompleteTaskRequest>,
    ) -> Result<Response<v1::CompleteTaskResponse>, Status> {
        self.complete(request.into_inner()).await?;
        Ok(Response::new(v1::CompleteTaskResponse {}))
    }

    async fn fail_task(
        &self,
        request: Request<v1::FailTaskRequest>,
    ) -> Result<Response<v1::FailTaskResponse>, Status> {
        Ok(Response::new(self.fail(request.into_inner()).await?))
    }

    async fn release_task(
        &self,
        request: Request<v1::ReleaseTaskRequest>,
    ) -> Result<Response<v1::ReleaseTaskResponse>, Status> {
        let request = request.into_inner();
        let task = decode(&request.task_token)?;
        let session = text::optional(request.session_id, "session_id", text::SESSION_BYTES_MAX)?;
        self.context.engine.release(task, session).await.map_err(of_worker)?;
        Ok(Response::new(v1::ReleaseTaskResponse {}))
    }

    async fn heartbeat_task(
        &self,
        request: Request<v1::HeartbeatTaskRequest>,
    ) -> Result<Response<v1::HeartbeatTaskResponse>, Status> {
        let request = request.into_inner();
        let task = decode(&request.task_token)?;
        let details = beat_details(request.details, "details")?;
        let beat = self.context.engine.heartbeat(task, details).await;
        let cancel_requested = beat.map_err(of_worker)?;
        Ok(Response::new(v1::HeartbeatTaskResponse { cancel_requested }))
    }
}

/// A time to live, as the protocol has it.
pub fn ttl(given: Option<proto::Duration>, field: &str, default: Duration) -> Result<Duration> {
    time::duration_between(given, field, default, SESSION_TTL)
}
