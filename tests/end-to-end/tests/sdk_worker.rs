//! A worker of the Rust SDK against a server that is killed or told to stop, and a worker that is itself told
//! to stop. The worker continues the tasks that it holds, and no attempt is lost or counted twice.

use std::time::Duration;

use recoup_end_to_end::server::{Folder, Server, connected};
use recoup_sdk::proto::history_entry::Event;
use recoup_sdk::proto::{AttemptState, CompensationState, ExecutionState, Payload};
use recoup_sdk::{Client, Error, TaskContext, TaskError, Transport, Worker};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How long the tests wait before they fail.
const PATIENCE: Duration = Duration::from_secs(30);

/// A task ends once the level of its worker has reached the task's input. If an attempt were counted twice, or
/// its worker were considered lost, another attempt would follow.
const WORKFLOW: &str = "
name: patient
defaults: {retry: {constant: {interval: 10ms}, max_attempts: 3}}
steps:
- {id: only, task: {type: wait, input: '${input}'}}
output: '${steps.only.output}'
";

struct Site {
    server: Server,
    client: Client,
    folder: Folder,
}

impl Site {
    async fn start(name: &str) -> Self {
        let (folder, server, client) = connected(name).await;
        client.register_workflow(WORKFLOW).await.expect("it is correct");
        Self { server, client, folder }
    }

    async fn begin(&self, level: u64) -> String {
        let started = self.client.start("patient").input(&level).send().await;
        started.expect("it starts").execution_id
    }

    /// Waits until the server knows that this worker holds the task. The server reports that only on request,
    /// so this polls.
    async fn until_held(&self, execution: &str, worker: &str) {
        let holding = async {
            loop {
                let info = self.client.execution(execution).await.expect("it exists");
                let held = info.pending_attempts.iter().any(|attempt| {
                    attempt.state() == AttemptState::Running && attempt.worker == worker
                });
                if held {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, holding).await.expect("the worker reports the task as held");
    }

    /// Waits for the end, and checks that the execution succeeded at its first and only attempt, executed by
    /// `worker`. With None the worker is not checked: a unary call reported the result, perhaps before the
    /// server knew which worker held the task.
    async fn succeeded(&self, execution: &str, level: u64, worker: Option<&str>) {
        let ended = self.client.await_execution(execution, Some(PATIENCE)).await;
        let ended = ended.expect("it ends");
        assert_eq!(ended.state(), ExecutionState::Succeeded, "{ended:?}");
        let output: u64 = recoup_sdk::from_payload(ended.output.as_ref()).expect("a number");
        assert_eq!(output, level);
        let history = self.client.history(execution).collect(usize::MAX).await;
        let (mut scheduled, mut completed, mut failed) = (Vec::new(), Vec::new(), 0);
        for entry in history.expect("it exists") {
            match entry.event {
                Some(Event::AttemptScheduled(event)) => scheduled.push(event.attempt),
                Some(Event::StepCompleted(event)) => {
                    assert!(worker.is_none_or(|worker| event.worker == worker), "{event:?}");
                    completed.push(event.attempt);
                }
                Some(Event::AttemptFailed(_)) => failed += 1,
                _ => {}
            }
        }
        assert_eq!((scheduled, completed, failed), (vec![1], vec![1], 0), "{execution}");
    }

    /// Checks that there is no failure event.
    async fn had_no_failure(&self) {
        let events = self.client.failure_events(Default::default(), None).collect(10).await;
        assert_eq!(events.expect("they can be read"), []);
    }
}

/// A worker that runs in the background, and the tasks that its handlers were given.
struct BackgroundWorker {
    begun: mpsc::UnboundedReceiver<String>,
    level: watch::Sender<u64>,
    stop: watch::Sender<bool>,
    serving: JoinHandle<Result<(), Error>>,
}

impl BackgroundWorker {
    fn start(client: &Client, name: &str, transport: Transport) -> Self {
        let (tell, begun) = mpsc::unbounded_channel();
        let (level, levels) = watch::channel(0);
        let (stop, mut stopped) = watch::channel(false);
        let handler = move |context: TaskContext, wanted: u64| {
            tell.send(context.execution_id().to_owned()).expect("the test listens");
            let mut levels = levels.clone();
            async move {
                let reached = levels.wait_for(|level| *level >= wanted).await;
                reached.map_err(|_| TaskError::new("test.over"))?;
                Ok::<u64, TaskError>(wanted)
            }
        };
        let worker = Worker::builder(client.clone())
            .name(name)
            .transport(transport)
            .slots(8)
            .task("wait", handler)
            .build()
            .expect("a valid set-up");
        let serving = tokio::spawn(worker.run(async move {
            // The wait fails only when the test is over, so stopping is right then too.
            let _ = stopped.wait_for(|stop| *stop).await;
        }));
        Self { begun, level, stop, serving }
    }

    /// The executions of the next `count` tasks that begin.
    async fn begins(&mut self, count: usize) -> Vec<String> {
        let mut begun = Vec::new();
        while begun.len() < count {
            let next = tokio::time::timeout(PATIENCE, self.begun.recv()).await;
            begun.push(next.expect("a task arrives").expect("the worker is running"));
        }
        begun.sort();
        begun
    }

    /// Stops the worker, and checks that it ends without an error and that no further task began.
    async fn end(mut self) {
        self.stop.send_replace(true);
        let ended = tokio::time::timeout(PATIENCE, self.serving).await;
        ended
            .expect("it drains")
            .expect("it does not panic")
            .expect("the worker ends without an error");
        assert_eq!(self.begun.recv().await, None, "a task was started twice");
    }
}

async fn worker_keeps_its_tasks_when_the_server_is_killed(transport: Transport) {
    let mut site = Site::start("sdk-killed").await;
    let mut first = BackgroundWorker::start(&site.client, "first", transport);
    let mut ids = Vec::new();
    for level in [1, 1, 2, 2] {
        ids.push(site.begin(level).await);
    }
    assert_eq!(first.begins(4).await, sorted(&ids));
    // A second worker is idle and would take the tasks if they were handed out again.
    let idle = BackgroundWorker::start(&site.client, "idle", transport);

    site.server.kill();
    // These two tasks end while the server is down.
    first.level.send_replace(1);
    site.server.restart();
    let reported_by = (transport == Transport::Stream).then_some("first");
    for id in &ids[..2] {
        site.succeeded(id, 1, reported_by).await;
    }
    for id in &ids[2..] {
        site.until_held(id, "first").await;
    }
    first.level.send_replace(2);
    for id in &ids[2..] {
        site.succeeded(id, 2, Some("first")).await;
    }
    // Both workers still work as before.
    let last = site.begin(0).await;
    let ended = site.client.await_execution(&last, Some(PATIENCE)).await.expect("it ends");
    assert_eq!(ended.state(), ExecutionState::Succeeded);
    let mut idle_begun = idle.begun;
    let begun: Vec<String> =
        std::iter::from_fn(|| first.begun.try_recv().or_else(|_| idle_begun.try_recv()).ok())
            .collect();
    assert_eq!(begun, [last], "a held task was handed out again");
    first.end().await;
    site.had_no_failure().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streaming_worker_keeps_its_tasks_when_the_server_is_killed() {
    worker_keeps_its_tasks_when_the_server_is_killed(Transport::Stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unary_worker_keeps_its_tasks_when_the_server_is_killed() {
    worker_keeps_its_tasks_when_the_server_is_killed(Transport::Unary).await;
}

/// A worker keeps sending a result until its server is back, even if the client does not retry calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unary_result_is_resent_until_the_server_is_back() {
    let mut site = Site::start("sdk-unary-result").await;
    // This client retries no call.
    let once = Client::builder(site.server.url()).retry_timeout(Duration::ZERO).connect().await;
    let mut first = BackgroundWorker::start(&once.expect("it listens"), "first", Transport::Unary);
    let id = site.begin(1).await;
    first.begins(1).await;
    site.server.kill();
    first.level.send_replace(1);
    site.server.restart();
    site.succeeded(&id, 1, None).await;
    first.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_server_does_not_wait_for_running_handlers() {
    let mut site = Site::start("sdk-drain").await;
    let mut first = BackgroundWorker::start(&site.client, "first", Transport::Stream);
    let (short, long) = (site.begin(1).await, site.begin(2).await);
    first.begins(2).await;
    let idle = BackgroundWorker::start(&site.client, "idle", Transport::Stream);

    site.server.process.terminate();
    first.level.send_replace(1);
    // A handler that keeps running does not delay the server's exit: its worker brings the task back after the
    // restart.
    let exit = site.server.process.exit(Duration::from_secs(10)).expect("it stops");
    assert_eq!(exit.code(), Some(0), "{}", site.server.process.log());
    site.server.restart();
    site.succeeded(&short, 1, Some("first")).await;
    site.until_held(&long, "first").await;
    first.level.send_replace(2);
    site.succeeded(&long, 2, Some("first")).await;
    first.end().await;
    idle.end().await;
    site.had_no_failure().await;
}

async fn stopping_worker_finishes_its_held_tasks(transport: Transport) {
    let site = Site::start("sdk-shutdown").await;
    let mut leaving = BackgroundWorker::start(&site.client, "leaving", transport);
    let held = site.begin(1).await;
    leaving.begins(1).await;
    leaving.stop.send_replace(true);
    let mut staying = BackgroundWorker::start(&site.client, "staying", transport);
    let next = site.begin(0).await;
    // The task may first have been handed to the worker that leaves. It was then given back, which does not
    // count as an attempt.
    staying.begins(1).await;
    site.succeeded(&next, 0, Some("staying")).await;
    assert!(!leaving.serving.is_finished(), "the worker left while it held a task");
    leaving.level.send_replace(1);
    leaving.end().await;
    site.succeeded(&held, 1, Some("leaving")).await;
    staying.end().await;
    site.had_no_failure().await;
    drop(site.folder);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_streaming_worker_finishes_its_held_tasks() {
    stopping_worker_finishes_its_held_tasks(Transport::Stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_unary_worker_finishes_its_held_tasks() {
    stopping_worker_finishes_its_held_tasks(Transport::Unary).await;
}

/// If the service refuses an error's type, the rest of the error and its retries are preserved.
async fn refused_error_becomes_the_cause_of_another(transport: Transport) {
    let site = Site::start("sdk-refused").await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let handler = |_: TaskContext, _: u64| async move {
        Err::<(), _>(TaskError::new("has space!").message("the bank said no").details(&51))
    };
    let worker = Worker::builder(site.client.clone()).transport(transport).task("wait", handler);
    let serving = tokio::spawn(worker.run(async move {
        // The wait fails only when the test is over, so stopping is right then too.
        let _ = stopped.await;
    }));
    let execution = site.begin(0).await;
    let ended = site.client.await_execution(&execution, Some(PATIENCE)).await.expect("it ends");
    assert_eq!(ended.state(), ExecutionState::Failed, "{ended:?}");
    let history = site.client.history(&execution).collect(usize::MAX).await.expect("it exists");
    let failed = history.into_iter().filter_map(|entry| match entry.event {
        Some(Event::AttemptFailed(event)) => event.error,
        _ => None,
    });
    let failed: Vec<_> = failed.collect();
    assert_eq!(failed.len(), 3, "the original error leaves retries to the policy: {failed:?}");
    for error in failed {
        assert_eq!(error.r#type, "rust.result_refused");
        assert!(error.message.contains("`has space!`: the bank said no"), "{}", error.message);
        let cause = error.cause.expect("the original");
        assert_eq!(cause.message, "the bank said no");
        let details: u64 = recoup_sdk::from_payload(cause.details.as_ref()).expect("a number");
        assert_eq!(details, 51);
    }
    let _ = stop.send(());
    serving.await.expect("it does not panic").expect("the worker ends without an error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streaming_worker_reports_a_refused_error_as_the_cause_of_another() {
    refused_error_becomes_the_cause_of_another(Transport::Stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unary_worker_reports_a_refused_error_as_the_cause_of_another() {
    refused_error_becomes_the_cause_of_another(Transport::Unary).await;
}

fn sorted(ids: &[String]) -> Vec<String> {
    let mut sorted = ids.to_vec();
    sorted.sort();
    sorted
}

/// The compensation gets the output twice: as its input, and as the output of the step that it undoes. Both
/// together exceed the limit of a message.
const LARGE: &str = "
name: large
steps:
- {id: make, task: {type: make}, compensate: {task: {type: undo, input: '${steps.make.output}'}}}
- {id: fail, task: {type: fail}}
";

async fn worker_loads_payloads_sent_by_reference(transport: Transport, inline: bool) {
    let site = Site::start("sdk-large").await;
    site.client.register_workflow(LARGE).await.expect("it is correct");
    let large = "x".repeat(recoup_sdk::PAYLOAD_BYTES_MAX - 2);
    let (tell, mut undone) = mpsc::unbounded_channel();
    let made = large.clone();
    let worker = Worker::builder(site.client.clone())
        .transport(transport)
        .task("make", move |_, ()| std::future::ready(Ok(made.clone())))
        .task("fail", |_, ()| async {
            Err::<(), _>(TaskError::new("test.failed").non_retryable())
        });
    let sizes = |input: Option<&Payload>, output: Option<&Payload>| {
        let size = |payload| recoup_sdk::from_payload::<String>(payload).map(|text| text.len());
        (size(input).expect("a text"), size(output).expect("a text"))
    };
    let worker = match inline {
        true => worker.inline_task("undo", move |task| {
            let output = task.compensation.as_ref().and_then(|undone| undone.step_output.as_ref());
            let _ = tell.send(sizes(task.input.as_ref(), output));
            recoup_sdk::to_payload(&())
                .map_err(|error| TaskError::new("a").message(error.to_string()))
        }),
        false => worker.payload_task("undo", move |context: TaskContext, input| {
            let output = context.compensation().and_then(|undone| undone.step_output.as_ref());
            let _ = tell.send(sizes(input.as_ref(), output));
            std::future::ready(Ok(Payload::default()))
        }),
    };
    let (stop, mut stopped) = watch::channel(false);
    let serving = tokio::spawn(worker.build().expect("a valid set-up").run(async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    }));
    let ended = site.client.start("large").input(&()).send().await.expect("it starts");
    let ended = site.client.await_execution(&ended.execution_id, Some(PATIENCE)).await;
    let ended = ended.expect("it ends");
    assert_eq!(ended.compensation_state(), CompensationState::Done, "{ended:?}");
    assert_eq!(undone.recv().await, Some((large.len(), large.len())));
    stop.send_replace(true);
    serving.await.expect("it does not panic").expect("it drains");
}

#[tokio::test]
async fn a_streaming_worker_loads_payloads_sent_by_reference() {
    worker_loads_payloads_sent_by_reference(Transport::Stream, false).await;
    worker_loads_payloads_sent_by_reference(Transport::Stream, true).await;
}

#[tokio::test]
async fn a_unary_worker_loads_payloads_sent_by_reference() {
    worker_loads_payloads_sent_by_reference(Transport::Unary, false).await;
    worker_loads_payloads_sent_by_reference(Transport::Unary, true).await;
}
