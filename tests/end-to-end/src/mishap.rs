//! Executions that fail in every possible way, and the workers that make them fail.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use recoup_proto::v1::{
    CancelExecutionRequest, CompleteTaskRequest, Error, ExecutionSpec, FailTaskRequest,
    PollTasksRequest, StartExecutionRequest, Task, TerminateExecutionRequest,
};
use serde_json::json;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::connect;

/// Has steps that are undone, ignored or lost with their worker, and one step that comes after all of these.
const MISHAP: &str = "
name: mishap
cancel_grace: 200ms
defaults:
  start_to_close: 30s
  retry:
    constant: { interval: 20ms }
    max_attempts: 3
    non_retryable_error_types: [payment.declined, stock.stuck, shipping.refused]
steps:
  - id: reserve
    task: { type: stock.reserve }
    compensate: { task: { type: stock.release } }
  - id: notify
    when: input.fate == 'ignored'
    on_error: IGNORE
    task: { type: mail.send }
  - id: charge
    task: { type: payment.charge }
    compensate: { task: { type: payment.refund } }
  - id: weigh
    when: input.fate == 'lost'
    task: { type: stock.weigh, queue: doomed }
  - id: ship
    task: { type: shipping.ship }
finally:
  - id: tidy
    when: input.fate == 'untidy'
    task: { type: desk.tidy }
";

/// No worker ever takes its only step.
const LATE: &str = "
name: late
timeout: 300ms
cancel_grace: 0s
steps:
  - { id: only, task: { type: never, queue: nobody } }
";

/// Fails in the transition that starts it, without any worker, because the input of its step does not evaluate
/// to a value.
pub const BROKEN: &str = "
name: broken
steps:
  - { id: odd, task: { type: never, input: '${input.numbers[7]}' } }
";

/// A session that is silent for this long is lost.
const SESSION_TTL: Duration = Duration::from_secs(1);
const POLL_WAIT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Plain,
    /// The payment fails twice: two attempts that are retried.
    Flaky,
    /// The payment is declined, and the reservation is undone.
    Declined,
    /// The payment fails in every attempt that it has; payment and reservation are both undone.
    Exhausted,
    /// The shipping step fails, and the reservation cannot be undone.
    Parked,
    /// A step's error is ignored.
    Ignored,
    /// The step of `finally` fails.
    Untidy,
    /// Cancelled while the payment step is running.
    Cancelled,
    /// Terminated while the payment step is running.
    Terminated,
    /// The execution runs out of time.
    Late,
    /// The input of its step cannot be evaluated.
    Broken,
    /// The first worker that takes its step is never heard of again.
    Lost,
}

impl Fate {
    pub const ALL: [Self; 12] = [
        Self::Plain,
        Self::Flaky,
        Self::Declined,
        Self::Exhausted,
        Self::Parked,
        Self::Ignored,
        Self::Untidy,
        Self::Cancelled,
        Self::Terminated,
        Self::Late,
        Self::Broken,
        Self::Lost,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Flaky => "flaky",
            Self::Declined => "declined",
            Self::Exhausted => "exhausted",
            Self::Parked => "parked",
            Self::Ignored => "ignored",
            Self::Untidy => "untidy",
            Self::Cancelled => "cancelled",
            Self::Terminated => "terminated",
            Self::Late => "late",
            Self::Broken => "broken",
            Self::Lost => "lost",
        }
    }

    fn of(task: &Task) -> Self {
        let input = connect::value(task.input.as_ref());
        let name = input["fate"].as_str().expect("every execution has a fate").to_owned();
        let found = Self::ALL.into_iter().find(|fate| fate.name() == name);
        found.expect("only these are started")
    }

    fn workflow(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Broken => "broken",
            _ => "mishap",
        }
    }

    /// The result that a worker reports for a task. None if the worker keeps working and never reports one.
    fn result(self, task: &Task) -> Option<Result<(), &'static str>> {
        let failed = match (task.r#type.as_str(), self) {
            ("payment.charge", Self::Cancelled | Self::Terminated) => return None,
            ("payment.charge", Self::Flaky) if task.attempt <= 2 => "payment.unreachable",
            ("payment.charge", Self::Declined) => "payment.declined",
            ("payment.charge", Self::Exhausted) => "payment.unreachable",
            ("shipping.ship", Self::Parked) => "shipping.refused",
            ("stock.release", Self::Parked) => "stock.stuck",
            ("mail.send", Self::Ignored) => "mail.bounced",
            ("desk.tidy", Self::Untidy) => "desk.locked",
            _ => return Some(Ok(())),
        };
        Some(Err(failed))
    }
}

/// Registers the workflows.
pub async fn register(channel: &Channel) {
    for definition in [MISHAP, LATE, BROKEN] {
        connect::register(channel.clone(), definition).await;
    }
}

/// Starts `of_each` executions of each fate, in turn at all servers, several of them at the same time.
pub async fn start(channels: &[Channel], of_each: usize) {
    let mut clients = JoinSet::new();
    for (index, channel) in channels.iter().enumerate() {
        let (channel, servers) = (channel.clone(), channels.len());
        clients.spawn(async move {
            let mut client = connect::executions(channel);
            for number in (index..of_each * Fate::ALL.len()).step_by(servers) {
                let fate = Fate::ALL[number % Fate::ALL.len()];
                let input = json!({"fate": fate.name(), "numbers": [number]});
                let execution = ExecutionSpec {
                    workflow: fate.workflow().into(),
                    input: Some(connect::json(&input)),
                    ..Default::default()
                };
                let request = StartExecutionRequest {
                    execution: Some(execution),
                    request_id: format!("mishap-{number}"),
                };
                client.start_execution(request).await.expect("it starts");
            }
        });
    }
    clients.join_all().await;
}

/// Workers of all queues. They run until this is dropped.
#[derive(Debug)]
pub struct Workers {
    _tasks: JoinSet<()>,
    abandoned: Arc<Mutex<BTreeSet<String>>>,
}

impl Workers {
    /// Starts `of_each` workers per server that poll the default queue, and one per server that abandons the
    /// tasks it gets.
    pub fn start(channels: &[Channel], of_each: usize) -> Self {
        let mut tasks = JoinSet::new();
        let abandoned: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        for channel in channels {
            for _ in 0..of_each {
                tasks.spawn(work(channel.clone()));
            }
            tasks.spawn(lose(channel.clone(), Arc::clone(&abandoned)));
        }
        Self { _tasks: tasks, abandoned }
    }

    /// The ids of sessions that took a task and were then abandoned with it.
    pub fn abandoned(&self) -> BTreeSet<String> {
        self.abandoned.lock().expect("nothing panics while it is held").clone()
    }
}

async fn work(channel: Channel) {
    let mut client = connect::workers(channel.clone());
    loop {
        let request =
            PollTasksRequest { max_tasks: 4, wait: Some(POLL_WAIT.into()), ..Default::default() };
        let polled = client.poll_tasks(request).await.expect("the server runs").into_inner();
        for task in polled.tasks {
            let fate = Fate::of(&task);
            match fate.result(&task) {
                Some(result) => report(&channel, &task, result).await,
                None => end(&channel, fate, &task).await,
            }
        }
    }
}

/// Ends the execution whose task this worker holds. The worker then never reports on the task itself.
async fn end(channel: &Channel, fate: Fate, task: &Task) {
    let mut client = connect::executions(channel.clone());
    let (execution_id, reason) = (task.execution_id.clone(), "it was its fate".to_owned());
    let ended = match fate {
        Fate::Cancelled => {
            let request = CancelExecutionRequest { execution_id, reason, ..Default::default() };
            client.cancel_execution(request).await.map(drop)
        }
        _ => {
            let request = TerminateExecutionRequest { execution_id, reason, ..Default::default() };
            client.terminate_execution(request).await.map(drop)
        }
    };
    ended.expect("it runs");
}

/// Takes each task in a session of its own. The first attempt is abandoned: no result or heartbeat follows.
async fn lose(channel: Channel, abandoned: Arc<Mutex<BTreeSet<String>>>) {
    let mut client = connect::workers(channel.clone());
    loop {
        let session_id = Uuid::new_v4().to_string();
        let request = PollTasksRequest {
            queue: "doomed".into(),
            session_id: session_id.clone(),
            session_ttl: Some(SESSION_TTL.into()),
            wait: Some(POLL_WAIT.into()),
            ..Default::default()
        };
        let polled = client.poll_tasks(request).await.expect("the server runs").into_inner();
        for task in polled.tasks {
            if task.attempt > 1 {
                report(&channel, &task, Ok(())).await;
            } else {
                let mut abandoned = abandoned.lock().expect("nothing panics while it is held");
                abandoned.insert(session_id.clone());
            }
        }
    }
}

async fn report(channel: &Channel, task: &Task, result: Result<(), &str>) {
    let mut client = connect::workers(channel.clone());
    let task_token = task.task_token.clone();
    let reported = match result {
        Ok(()) => {
            let output = Some(connect::json(&json!({"by": task.r#type})));
            client.complete_task(CompleteTaskRequest { task_token, output }).await.map(drop)
        }
        Err(error_type) => {
            let error = Error { r#type: error_type.into(), ..Default::default() };
            let request = FailTaskRequest { task_token, error: Some(error) };
            client.fail_task(request).await.map(drop)
        }
    };
    if let Err(status) = reported {
        // Its execution was ended by another worker, or the attempt was handed out twice.
        let reason = connect::reason(&status);
        assert!(reason.starts_with("ATTEMPT_"), "{}: {status}", task.r#type);
    }
}
