//! Calls whose answer is lost, and answers after which the server is killed at once: what was acknowledged
//! survives, and a repeated call gets the answer of the first.

use std::time::Duration;

use prost::Message;
use recoup_end_to_end::connect;
use recoup_end_to_end::invariants;
use recoup_end_to_end::server::{Folder, Server};
use recoup_end_to_end::silent::Silent;
use recoup_proto::v1;
use serde_json::json;
use tonic::transport::Channel;

/// How long the tests wait before they fail.
const PATIENCE: Duration = Duration::from_secs(60);

const PAIR: &str = "
name: pair
defaults: {retry: {max_attempts: 1}}
steps:
- {id: first, task: {type: work}}
- {id: second, task: {type: work}}
";

struct Site {
    server: Server,
    channel: Channel,
    _folder: Folder,
}

impl Site {
    async fn start(name: &str) -> Self {
        let folder = Folder::new(name);
        let server = Server::embedded(folder.path());
        let channel = connect::channel(&server.url());
        connect::register(channel.clone(), PAIR).await;
        Self { server, channel, _folder: folder }
    }

    fn crash(&mut self) {
        self.server.kill();
        self.server.restart();
        self.channel = connect::channel(&self.server.url());
    }

    async fn begin(&self, request: v1::StartExecutionRequest) -> String {
        let answer = connect::executions(self.channel.clone()).start_execution(request).await;
        answer.expect("it starts").into_inner().execution_id
    }

    /// Takes the next task, without a session.
    async fn task(&self) -> v1::Task {
        let request = v1::PollTasksRequest { wait: Some(PATIENCE.into()), ..Default::default() };
        let polled = connect::workers(self.channel.clone()).poll_tasks(request).await;
        let task = polled.expect("it polls").into_inner().tasks.into_iter().next();
        task.expect("a task arrives")
    }

    async fn complete(&self, request: v1::CompleteTaskRequest) -> Result<(), tonic::Status> {
        connect::workers(self.channel.clone()).complete_task(request).await.map(|_| ())
    }

    /// Sends a request, and reads nothing of the answer.
    fn call_in_silence(&self, path: &str, request: &impl Message) -> Silent {
        Silent::unary_call(self.server.address(), path, &request.encode_to_vec())
    }

    /// Waits until `is_met` says so about the executions of the namespace and their histories.
    async fn until(&self, is_met: impl Fn(&[v1::ExecutionInfo], &[v1::HistoryEntry]) -> bool) {
        let waiting = async {
            loop {
                let executions = invariants::executions(self.channel.clone(), &[]).await;
                let mut entries = Vec::new();
                for info in &executions {
                    let id = &info.execution_id;
                    entries.extend(invariants::history(self.channel.clone(), id).await);
                }
                if is_met(&executions, &entries) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the call takes effect");
    }
}

fn start(request_id: &str) -> v1::StartExecutionRequest {
    let execution = Some(v1::ExecutionSpec { workflow: "pair".into(), ..Default::default() });
    v1::StartExecutionRequest { execution, request_id: request_id.into() }
}

fn completed(task: &v1::Task, output: &str) -> v1::CompleteTaskRequest {
    let output = Some(connect::json(&json!(output)));
    v1::CompleteTaskRequest { task_token: task.task_token.clone(), output }
}

/// The steps that completed, in their order.
fn steps(entries: &[v1::HistoryEntry]) -> Vec<&str> {
    let steps = entries.iter().filter_map(|entry| match &entry.event {
        Some(v1::history_entry::Event::StepCompleted(event)) => {
            Some(&*event.step.as_ref()?.step_path)
        }
        _ => None,
    });
    steps.collect()
}

#[tokio::test]
async fn acknowledged_start_and_result_survive_a_kill_of_the_server() {
    let mut site = Site::start("acknowledged").await;
    let begun = site.begin(start("begun")).await;
    let first = site.task().await;
    site.complete(completed(&first, "receipt")).await.expect("it is open");
    let untouched = site.begin(start("untouched")).await;
    site.crash();
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let task = site.task().await;
        waiting.push((task.execution_id, task.step_path, task.attempt));
    }
    waiting.sort();
    let step = |id: String, path: &str| (id, path.to_owned(), 1);
    assert_eq!(waiting, [step(begun, "second"), step(untouched, "first")]);
    site.complete(completed(&first, "receipt")).await.expect("the same result again");
}

#[tokio::test]
async fn start_whose_answer_was_lost_is_repeated_without_a_second_execution() {
    let site = Site::start("lost-start").await;
    let path = "/recoup.v1.ExecutionService/StartExecution";
    let _unread = site.call_in_silence(path, &start("order-7"));
    site.until(|executions, _| executions.len() == 1).await;
    let id = site.begin(start("order-7")).await;
    let executions = invariants::executions(site.channel.clone(), &[]).await;
    let ids: Vec<_> = executions.iter().map(|info| info.execution_id.as_str()).collect();
    assert_eq!(ids, [id.as_str()]);
}

#[tokio::test]
async fn result_whose_answer_was_lost_is_accepted_when_it_is_repeated() {
    let site = Site::start("lost-result").await;
    site.begin(start("order-7")).await;
    let first = site.task().await;
    let path = "/recoup.v1.WorkerService/CompleteTask";
    let _unread = site.call_in_silence(path, &completed(&first, "receipt"));
    site.until(|_, entries| steps(entries) == ["first"]).await;
    site.complete(completed(&first, "receipt")).await.expect("the same result again");
    let other = site.complete(completed(&first, "another")).await.expect_err("another result");
    assert_eq!(connect::reason(&other), "ATTEMPT_CLOSED");
    let second = site.task().await;
    assert_eq!(second.step_path, "second");
}

#[tokio::test]
async fn loop_goes_on_after_a_kill_of_the_server_without_repeating_what_completed() {
    let mut site = Site::start("loop").await;
    let items = "
name: items
steps:
- id: lines
  for_each:
    items: input
    concurrency: 10
    steps: [{id: pack, task: {type: work}}]
    output: '${item}'
";
    connect::register(site.channel.clone(), items).await;
    let numbers: Vec<u32> = (0..300).collect();
    let execution = Some(v1::ExecutionSpec {
        workflow: "items".into(),
        input: Some(connect::json(&json!(numbers))),
        ..Default::default()
    });
    let id = site.begin(v1::StartExecutionRequest { execution, ..Default::default() }).await;
    let mut done = Vec::new();
    for number in &numbers {
        if *number == 150 {
            site.crash();
        }
        let task = site.task().await;
        site.complete(completed(&task, "packed")).await.expect("it is open");
        done.push(task.step_path);
    }
    let mut expected: Vec<_> = numbers.iter().map(|item| format!("lines[{item}].pack")).collect();
    done.sort();
    expected.sort();
    assert_eq!(done, expected, "each item once");
    let request = v1::AwaitExecutionRequest { execution_id: id, wait: Some(PATIENCE.into()) };
    let ended = connect::executions(site.channel.clone()).await_execution(request).await;
    let Some(v1::await_execution_response::Result::Ended(outcome)) =
        ended.expect("it exists").into_inner().result
    else {
        panic!("it has not ended");
    };
    assert_eq!(connect::value(outcome.output.as_ref()), json!(numbers));
}
