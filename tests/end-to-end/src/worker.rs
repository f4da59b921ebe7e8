//! A worker on the bare protocol, by stream or by unary calls. Its session outlives a connection, and it sends
//! each result until the server acknowledges it.

mod calls;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use recoup_proto::v1::task_result::Result as Outcome;
use recoup_proto::v1::{
    ErrorReason, OpenSession, Payload, ResultAck, StreamTasksRequest, StreamTasksResponse, Task,
    TaskResult,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use crate::connect;
use crate::order::Fate;
use crate::record::{Attempt, Entry, Writer};

/// How many tasks the worker executes at once.
const SLOTS: u32 = 16;
/// How long the server keeps the session alive without a message from the worker.
const SESSION_TTL: Duration = Duration::from_secs(3);
/// The worker repeats a result that has not been answered within this time.
const ACK_WITHIN: Duration = Duration::from_secs(10);

pub struct Options {
    /// The worker's name, for people to read.
    pub name: String,
    /// The id of the worker's session.
    pub session: String,
    /// The file in which the worker records what it does.
    pub record: PathBuf,
    pub transport: Transport,
    /// The types of tasks that the worker takes.
    pub task_types: Vec<String>,
    /// The servers, which the worker tries in turn.
    pub urls: Vec<String>,
}

/// How the worker talks to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Stream,
    Unary,
}

impl Transport {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Unary => "unary",
        }
    }

    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Stream, Self::Unary].into_iter().find(|transport| transport.name() == name)
    }
}

/// A task that the worker holds, until the server has answered its result.
struct Held {
    attempt: Attempt,
    /// Set once the work is done; the server has not acknowledged it yet.
    result: Option<Outcome>,
}

struct Worker {
    options: Options,
    record: Writer,
    held: HashMap<Bytes, Held>,
    /// Sends the token and outcome of each task whose work is done.
    finished: mpsc::UnboundedSender<(Bytes, Outcome)>,
    done: mpsc::UnboundedReceiver<(Bytes, Outcome)>,
    /// Sends the answers to unary calls that report results. A stream receives its answers itself.
    answered: mpsc::UnboundedSender<ResultAck>,
    answers: mpsc::UnboundedReceiver<ResultAck>,
}

/// Serves until the process is killed.
pub async fn run(options: Options) {
    let (finished, done) = mpsc::unbounded_channel();
    let (answered, answers) = mpsc::unbounded_channel();
    let record = Writer::open(&options.record);
    let held = HashMap::new();
    let mut worker = Worker { options, record, held, finished, done, answered, answers };
    for turn in 0.. {
        let url = worker.options.urls[turn % worker.options.urls.len()].clone();
        let served = match worker.options.transport {
            Transport::Stream => worker.serve_by_stream(&url).await,
            Transport::Unary => worker.serve_by_calls(&url).await,
        };
        if let Err(status) = served {
            eprintln!("{}: {url}: {status}", worker.options.name);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Worker {
    /// Serves over one stream, until the stream breaks.
    async fn serve_by_stream(&mut self, url: &str) -> Result<(), tonic::Status> {
        while let Ok((token, result)) = self.done.try_recv() {
            self.finish(&token, result);
        }
        let (send, receive) = mpsc::channel(64);
        send.try_send(self.opening()).expect("the channel is empty");
        let mut client = connect::workers(connect::channel(url));
        let opened = client.stream_tasks(ReceiverStream::new(receive));
        let opened = tokio::time::timeout(SESSION_TTL, opened).await;
        let mut messages = opened.map_err(|_| too_late())??.into_inner();
        let mut renew = tokio::time::interval(SESSION_TTL / 3);
        loop {
            let request = tokio::select! {
                message = tokio::time::timeout(ACK_WITHIN, messages.message()) => {
                    let Some(message) = message.map_err(|_| too_late())?? else { return Ok(()) };
                    let is_draining = message.draining;
                    let credit = self.take(message);
                    if is_draining {
                        return Ok(());
                    }
                    StreamTasksRequest { credit, ..StreamTasksRequest::default() }
                }
                Some((token, result)) = self.done.recv() => {
                    let results = self.finish(&token, result).into_iter().collect();
                    StreamTasksRequest { results, ..StreamTasksRequest::default() }
                }
                _ = renew.tick() => StreamTasksRequest::default(),
            };
            if send.send(request).await.is_err() {
                return Ok(());
            }
        }
    }

    /// The first message of a stream: the worker's session, the tasks that it holds, and the results it has
    /// produced in the meantime.
    fn opening(&self) -> StreamTasksRequest {
        let open = OpenSession {
            task_types: self.options.task_types.clone(),
            session_id: self.options.session.clone(),
            worker: self.options.name.clone(),
            held_task_tokens: self.held.keys().cloned().collect(),
            session_ttl: Some(duration(SESSION_TTL)),
            ..OpenSession::default()
        };
        let done = self.held.iter().filter_map(|(token, held)| {
            let result = held.result.clone()?;
            Some(TaskResult { task_token: token.clone(), result: Some(result) })
        });
        let credit = SLOTS.saturating_sub(self.held.len() as u32);
        let results = done.collect();
        StreamTasksRequest { open: Some(open), credit, results, ..StreamTasksRequest::default() }
    }

    /// Handles a message of the server. Returns how many slots became free.
    fn take(&mut self, message: StreamTasksResponse) -> u32 {
        let mut free = 0;
        if let Some(opened) = message.opened {
            for token in opened.closed_task_tokens {
                free += u32::from(self.held.remove(&token).is_some());
            }
        }
        for ack in message.acks {
            free += u32::from(self.acknowledged(&ack));
        }
        for task in message.tasks {
            free += u32::from(!self.begin(task));
        }
        free
    }

    fn acknowledged(&mut self, ack: &ResultAck) -> bool {
        use ErrorReason::{OutcomeUnknown, StoreUnavailable, Unspecified};
        let reason = ack.reason();
        if matches!(reason, OutcomeUnknown | StoreUnavailable) {
            // The result was not accepted for now: send it again after a pause.
            let again = self.held.get_mut(&ack.task_token).and_then(|held| held.result.take());
            if let Some(result) = again {
                let (finished, token) = (self.finished.clone(), ack.task_token.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    // Sending cannot fail: the receiver lives as long as the process.
                    let _ = finished.send((token, result));
                });
            }
            return false;
        }
        let Some(held) = self.held.remove(&ack.task_token) else { return false };
        let attempt = held.attempt;
        let entry = match (reason, held.result) {
            (Unspecified, Some(Outcome::Failed(error))) => {
                Entry::Failed { attempt, error_type: error.r#type }
            }
            (Unspecified, Some(Outcome::Completed(output))) => {
                Entry::Completed { attempt, mark: mark(Some(&output)) }
            }
            (reason, _) => Entry::Refused { attempt, reason: reason.as_str_name().to_owned() },
        };
        self.record.write(&entry);
        true
    }

    /// Begins a task, unless the worker is executing it already. Returns whether it began.
    fn begin(&mut self, task: Task) -> bool {
        let attempt = Attempt::of(&task);
        let idempotency_key = task.idempotency_key.clone();
        self.record.write(&Entry::Begun { attempt: attempt.clone(), idempotency_key });
        if self.held.contains_key(&task.task_token) {
            return false;
        }
        self.held.insert(task.task_token.clone(), Held { attempt, result: None });
        let (finished, worker) = (self.finished.clone(), self.options.name.clone());
        tokio::spawn(async move {
            tokio::time::sleep(work()).await;
            let input = connect::value(task.input.as_ref());
            let fate = input["fate"].as_str().and_then(Fate::of_name);
            let fate = fate.expect("every order has a fate");
            let outcome = match fate.error(&task.r#type, task.attempt) {
                Some(error) => Outcome::Failed(error),
                None => {
                    let mark = Uuid::new_v4().simple().to_string();
                    Outcome::Completed(connect::json(&json!({"mark": mark, "by": worker})))
                }
            };
            // Sending cannot fail: the receiver lives as long as the process.
            let _ = finished.send((task.task_token, outcome));
        });
        true
    }

    /// Stores a result and makes the message that reports it. None if the attempt has been closed in the
    /// meantime.
    fn finish(&mut self, token: &Bytes, result: Outcome) -> Option<TaskResult> {
        let held = self.held.get_mut(token)?;
        held.result = Some(result.clone());
        Some(TaskResult { task_token: token.clone(), result: Some(result) })
    }
}

/// The mark in an output. It identifies one success among all that workers ever reported.
pub fn mark(output: Option<&Payload>) -> String {
    connect::value(output)["mark"].as_str().unwrap_or_default().to_owned()
}

/// The name of the worker that produced an output.
pub fn maker(output: Option<&Payload>) -> String {
    connect::value(output)["by"].as_str().unwrap_or_default().to_owned()
}

/// How long a task takes. Most are short; some last long enough to be recorded as started.
fn work() -> Duration {
    let random = Uuid::new_v4().as_u128();
    let lasts_long = random.is_multiple_of(25);
    let milliseconds = (random >> 64) % if lasts_long { 1600 } else { 20 };
    Duration::from_millis(milliseconds as u64)
}

fn duration(duration: Duration) -> recoup_proto::Duration {
    recoup_proto::Duration { seconds: duration.as_secs() as i64, nanos: 0 }
}

fn too_late() -> tonic::Status {
    tonic::Status::deadline_exceeded("no answer in time")
}
