//! Clients and operators that misbehave, against the real process: garbage, silence, a second server on the
//! same folder, a task that hangs, a stop while work is in progress.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use recoup_end_to_end::connect;
use recoup_end_to_end::invariants;
use recoup_end_to_end::process::Process;
use recoup_end_to_end::server::{Folder, Server, free_port, recoup, recoup_once};
use recoup_end_to_end::silent::Silent;
use recoup_proto::v1;
use recoup_proto::v1::history_entry::Event;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

/// How long the tests wait before they fail.
const PATIENCE: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

const TALKATIVE: &str = "
name: talkative
defaults: {retry: {max_attempts: 1}}
steps:
- {id: only, task: {type: work}}
";

/// A worker whose every message the test decides.
struct Worker {
    requests: mpsc::Sender<v1::StreamTasksRequest>,
    responses: Streaming<v1::StreamTasksResponse>,
}

impl Worker {
    async fn open(channel: Channel, session: &str, held: &[&v1::Task], credit: u32) -> Self {
        let open = v1::OpenSession {
            session_id: session.into(),
            held_task_tokens: held.iter().map(|task| task.task_token.clone()).collect(),
            ..Default::default()
        };
        let (requests, receive) = mpsc::channel(16);
        let first = v1::StreamTasksRequest { open: Some(open), credit, ..Default::default() };
        requests.send(first).await.expect("the channel is empty");
        let opened = connect::workers(channel).stream_tasks(ReceiverStream::new(receive)).await;
        Self { requests, responses: opened.expect("it opens").into_inner() }
    }

    /// Reads messages until `find` returns something for one of them.
    async fn until<T>(&mut self, mut find: impl FnMut(&v1::StreamTasksResponse) -> Option<T>) -> T {
        let reading = async {
            loop {
                let message = self.responses.message().await.expect("the stream has no error");
                if let Some(found) = find(&message.expect("the stream has not ended")) {
                    return found;
                }
                // Any message renews the session.
                self.send(v1::StreamTasksRequest::default()).await;
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("the awaited message arrives")
    }

    async fn task(&mut self) -> v1::Task {
        self.until(|message| message.tasks.first().cloned()).await
    }

    /// Reports success. Returns the reason in the server's acknowledgement.
    async fn complete(&mut self, task: &v1::Task) -> v1::ErrorReason {
        let result = Some(v1::task_result::Result::Completed(connect::json(&json!(7))));
        let results = vec![v1::TaskResult { task_token: task.task_token.clone(), result }];
        self.send(v1::StreamTasksRequest { results, ..Default::default() }).await;
        self.until(|message| {
            let ack = message.acks.iter().find(|ack| ack.task_token == task.task_token)?;
            Some(ack.reason())
        })
        .await
    }

    async fn send(&self, request: v1::StreamTasksRequest) {
        self.requests.send(request).await.expect("the stream is open");
    }
}

async fn begin(channel: &Channel, workflow: &str) -> String {
    let execution = Some(v1::ExecutionSpec { workflow: workflow.into(), ..Default::default() });
    let request = v1::StartExecutionRequest { execution, ..Default::default() };
    let answer = connect::executions(channel.clone()).start_execution(request).await;
    answer.expect("it starts").into_inner().execution_id
}

async fn outcome(channel: &Channel, execution_id: &str) -> v1::Outcome {
    let wait = Some(PATIENCE.into());
    let request = v1::AwaitExecutionRequest { execution_id: execution_id.into(), wait };
    let answer = connect::executions(channel.clone()).await_execution(request).await;
    match answer.expect("it exists").into_inner().result {
        Some(v1::await_execution_response::Result::Ended(outcome)) => outcome,
        other => panic!("{execution_id} has not ended: {other:?}"),
    }
}

/// Waits until this many attempts have ended.
async fn until_lost(channel: &Channel, execution: &str, attempts: usize) {
    let waiting = async {
        loop {
            let history = invariants::history(channel.clone(), execution).await;
            let is_end =
                |entry: &&v1::HistoryEntry| matches!(entry.event, Some(Event::AttemptFailed(_)));
            if history.iter().filter(is_end).count() >= attempts {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the session ends");
}

/// Runs executions that fail. Each puts two events of 60 KiB on the feed.
async fn fail_some(channel: &Channel, count: usize) {
    let mut workers = connect::workers(channel.clone());
    for _ in 0..count {
        let execution = begin(channel, "talkative").await;
        let request = v1::PollTasksRequest { wait: Some(PATIENCE.into()), ..Default::default() };
        let polled = workers.poll_tasks(request).await.expect("it polls").into_inner();
        let task = polled.tasks.into_iter().next().expect("a task waits");
        let error = v1::Error { stack_trace: "x".repeat(60 << 10), ..Default::default() };
        let (task_token, error) = (task.task_token, Some(error));
        let request = v1::FailTaskRequest { task_token, error };
        workers.fail_task(request).await.expect("it is open");
        outcome(channel, &execution).await;
    }
}

#[test]
fn garbage_connections_neither_stop_the_server_nor_fill_its_memory() {
    let folder = Folder::new("garbage");
    let mut server = Server::embedded(folder.path());
    let before = server.process.resident_bytes();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut endless_headers = preface.to_vec();
    endless_headers.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // A HEADERS frame without END_HEADERS, and no CONTINUATION frame after it.
    endless_headers.extend([0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82]);
    let kinds: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nhost: here\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &[0xff; 1 << 16],
        &[0; 1 << 16],
        preface,
        &endless_headers,
    ];
    // Half of the clients keep their connection open, the other half close it.
    let mut held = Vec::new();
    for number in 0..300 {
        let mut socket = TcpStream::connect(server.address()).expect("it listens");
        // The server may close the connection before everything is sent.
        let _ = socket.write_all(kinds[number % kinds.len()]);
        if number % 4 < 2 {
            held.push(socket);
        } else {
            let _ = socket.shutdown(Shutdown::Write);
            socket.set_read_timeout(Some(PATIENCE)).expect("the timeout is not zero");
            // The server must answer or close the connection, but not hang.
            let read = socket.read_to_end(&mut Vec::new());
            let hangs = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
            assert!(
                !read.is_err_and(|error| hangs(&error)),
                "the server neither answers nor closes connection {number}"
            );
        }
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(async {
        connect::register(connect::channel(&server.url()), TALKATIVE).await;
    });
    let after = server.process.resident_bytes();
    println!("{} MiB before 300 connections with garbage, {} MiB after", before / MIB, after / MIB);
    assert!(after < before + 64 * MIB, "{before} bytes before, {after} after");
    assert!(server.process.is_alive());
    assert!(!server.process.log().contains("panicked"), "{}", server.process.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_streams_cost_bounded_memory_and_dead_clients_are_cut_off() {
    const SILENT: usize = 8;
    const EXECUTIONS: usize = 900;
    /// The memory that one reader may cost: a page of 1 MiB as a message that waits, and one as bytes that are
    /// being written, with a margin.
    const PER_READER: u64 = 6 * MIB;
    let folder = Folder::new("silent");
    let mut server = Server::embedded(folder.path());
    let channel = connect::channel(&server.url());
    connect::register(channel.clone(), TALKATIVE).await;
    // The feed holds 105 MiB of events, so all readers together are owed 1,700 MiB.
    fail_some(&channel, EXECUTIONS / 2).await;
    let half = server.process.resident_bytes();
    fail_some(&channel, EXECUTIONS / 2).await;
    let before = server.process.resident_bytes();

    let mut readers = Vec::new();
    for _ in 0..SILENT {
        let position = v1::FeedPosition::Beginning.into();
        let start = Some(v1::subscribe_failures_request::Start::Position(position));
        let request = v1::SubscribeFailuresRequest { start, ..Default::default() };
        // Each reader has a connection of its own, because a reader that does not read holds up all other calls
        // on its connection.
        let own = connect::channel(&server.url());
        let subscribed = connect::failures(own).subscribe_failures(request).await;
        readers.push(subscribed.expect("the server accepts the subscription").into_inner());
    }
    // Start at the beginning: field 2 of SubscribeFailuresRequest with the value 2.
    let path = "/recoup.v1.FailureService/SubscribeFailures";
    let silent: Vec<Silent> =
        (0..SILENT).map(|_| Silent::call(server.address(), path, &[0x10, 0x02])).collect();
    let mut peak = 0;
    for _ in 0..20 {
        fail_some(&channel, 3).await;
        peak = peak.max(server.process.resident_bytes());
    }
    println!(
        "{} MiB and then {} MiB before {} silent readers, at most {} MiB while they are connected",
        half / MIB,
        before / MIB,
        2 * SILENT,
        peak / MIB
    );
    let bound = before + 2 * SILENT as u64 * PER_READER;
    assert!(peak < bound, "{before} bytes before, up to {peak} after");

    // A client that does not even answer pings is cut off. A client that does may still begin to read.
    let cut = silent
        .into_iter()
        .map(|silent| tokio::task::spawn_blocking(move || silent.was_cut(2 * PATIENCE)));
    for cut in cut.collect::<Vec<_>>() {
        assert!(cut.await.expect("it does not panic"), "a dead client keeps its connection");
    }
    assert!(server.process.is_alive());
    let mut ids = BTreeSet::new();
    let listed = invariants::listed_failures(channel.clone()).await;
    let mut reader = readers.pop().expect("there are some");
    while ids.len() < listed.len() {
        match tokio::time::timeout(PATIENCE, reader.message())
            .await
            .expect("the stream continues or ends")
        {
            Ok(Some(message)) => {
                let events = message.deliveries.into_iter().filter_map(|delivery| delivery.event);
                ids.extend(events.map(|event| event.id));
            }
            // The server cuts off a silent reader with a reason, so that it can return with its cursor.
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => {
                println!("cut after {} of {} events: {status}", ids.len(), listed.len());
                assert!(matches!(status.code(), Code::ResourceExhausted | Code::Unavailable));
                return;
            }
        }
    }
    assert_eq!(ids, listed);
}

#[tokio::test]
async fn a_second_server_on_the_same_folder_is_refused() {
    let folder = Folder::new("second");
    let mut server = Server::embedded(folder.path());
    let data = folder.path().join("data").display().to_string();
    let log = folder.path().join("second.log");
    let listen = format!("127.0.0.1:{}", free_port());
    let arguments = ["serve", "--listen", &listen, "--store", "sqlite", "--data-dir", &data];
    let mut second = recoup(&arguments, &log);
    let exit = second.exit(PATIENCE).expect("the server exits");
    assert_eq!(exit.code(), Some(1));
    assert_eq!(second.line(Duration::ZERO), None, "the second server listens");
    let said = second.log();
    assert!(said.contains(&data) && said.contains("another"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    // The first server is unaffected, and its end releases the folder.
    connect::register(connect::channel(&server.url()), TALKATIVE).await;
    server.kill();
    let third = recoup(&arguments, &log);
    let line = third.line(PATIENCE);
    assert_eq!(line, Some(format!("recoup listens on http://{listen}")), "{}", third.log());
}

#[test]
fn listening_on_a_non_loopback_address_is_refused() {
    let folder = Folder::new("listen");
    let data = folder.path().join("data").display().to_string();
    let log = folder.path().join("listen.log");
    for address in ["0.0.0.0", "[::]", "192.0.2.1"] {
        let listen = format!("{address}:{}", free_port());
        let mut server = recoup(&["serve", "--listen", &listen, "--data-dir", &data], &log);
        let exit = server.exit(PATIENCE).expect("the server exits");
        assert_eq!(exit.code(), Some(2), "{listen}");
        let said = server.log();
        let last = said.lines().last().unwrap_or_default();
        assert!(last.contains(&listen) && last.contains("--insecure-listen"), "{said}");
    }
    assert!(
        !folder.path().join("data").exists(),
        "a server that was refused its address created a database"
    );
    // `recoup dev` has no option for the address.
    let output = recoup_once(&["dev", "--listen", "0.0.0.0:0"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn other_loopback_addresses_are_accepted_without_a_warning() {
    for listen in ["127.0.0.2:0", "[::1]:0"] {
        let folder = Folder::new("loopback");
        let (url, server) = until_it_listens(&folder, listen, &[]);
        let ip = listen.rsplit_once(':').expect("it has a port").0;
        assert!(url.starts_with(&format!("http://{ip}:")), "{url}");
        assert_eq!(server.log(), "", "a loopback address needs no warning");
    }
}

#[tokio::test]
async fn insecure_listen_allows_any_address_with_one_warning() {
    for (listen, reached_at) in [("0.0.0.0:0", "127.0.0.1"), ("[::]:0", "[::1]")] {
        let folder = Folder::new("insecure");
        let (url, mut server) = until_it_listens(&folder, listen, &["--insecure-listen"]);
        let port = url.rsplit_once(':').expect("it has a port").1;
        let url = format!("http://{reached_at}:{port}");
        connect::register(connect::channel(&url), TALKATIVE).await;
        server.terminate();
        assert_eq!(server.exit(PATIENCE).and_then(|exit| exit.code()), Some(0));
        let said = server.log();
        let warnings = said.lines().filter(|line| line.starts_with("warning: ")).count();
        assert_eq!(warnings, 1, "{said}");
    }
}

/// Starts a server on a given address, and waits until it listens. Returns the URL that it prints.
fn until_it_listens(folder: &Folder, listen: &str, more: &[&str]) -> (String, Process) {
    let data = folder.path().join("data").display().to_string();
    let arguments = [&["serve", "--listen", listen, "--data-dir", &data], more].concat();
    let server = recoup(&arguments, &folder.path().join("listens.log"));
    let line = server.line(PATIENCE).unwrap_or_default();
    let url = line.strip_prefix("recoup listens on ");
    (url.unwrap_or_else(|| panic!("{line} {}", server.log())).to_owned(), server)
}

#[tokio::test]
async fn a_task_that_hangs_on_a_live_stream_times_out() {
    let folder = Folder::new("hang");
    let server = Server::embedded(folder.path());
    let channel = connect::channel(&server.url());
    let text = "
name: hang
defaults: {start_to_close: 1s, retry: {constant: {interval: 10ms}, max_attempts: 2}}
steps:
- {id: only, task: {type: work}}
";
    connect::register(channel.clone(), text).await;
    connect::register(channel.clone(), TALKATIVE).await;
    let execution = begin(&channel, "hang").await;
    let mut worker = Worker::open(channel.clone(), "hanging", &[], 10).await;
    let first = worker.task().await;
    assert_eq!(first.start_to_close, Some(Duration::from_secs(1).into()));
    let second = worker.task().await;
    assert_eq!((first.attempt, second.attempt), (1, 2));
    let end = tokio::join!(outcome(&channel, &execution), async {
        let token = &second.task_token;
        worker
            .until(|message| message.cancellations.iter().find(|c| c.task_token == token).cloned())
            .await
    });
    let error = end.0.error.expect("it failed");
    assert_eq!(error.r#type, "recoup.timeout.start_to_close");
    assert_eq!(end.1.reason(), v1::TaskCancellationReason::AttemptClosed);
    assert_eq!(worker.complete(&second).await, v1::ErrorReason::AttemptClosed);

    // A definition that sets no start-to-close timeout gets the default of a minute.
    begin(&channel, "talkative").await;
    let default = worker.task().await;
    assert_eq!(default.start_to_close, Some(Duration::from_secs(60).into()));
}

#[tokio::test]
async fn a_terminated_server_drains_and_keeps_unfinished_attempts() {
    let folder = Folder::new("drain");
    let mut server = Server::embedded(folder.path());
    let channel = connect::channel(&server.url());
    connect::register(channel.clone(), TALKATIVE).await;
    let done_in_time = begin(&channel, "talkative").await;
    let held_over = begin(&channel, "talkative").await;
    let mut worker = Worker::open(channel.clone(), "draining", &[], 10).await;
    let mut tasks = Vec::new();
    while tasks.len() < 2 {
        tasks.extend(worker.until(|message| Some(message.tasks.clone())).await);
    }
    tasks.sort_by_key(|task| task.execution_id == held_over);

    server.process.terminate();
    worker.until(|message| message.draining.then_some(())).await;
    assert_eq!(worker.complete(&tasks[0]).await, v1::ErrorReason::Unspecified);
    drop(worker);
    let exit = server.process.exit(PATIENCE).expect("it stops");
    assert_eq!(exit.code(), Some(0), "{}", server.process.log());

    server.restart();
    let channel = connect::channel(&server.url());
    assert_eq!(outcome(&channel, &done_in_time).await.state(), v1::ExecutionState::Succeeded);
    let mut worker = Worker::open(channel.clone(), "draining", &[&tasks[1]], 10).await;
    let opened = worker.until(|message| message.opened.clone()).await;
    assert!(opened.closed_task_tokens.is_empty(), "{opened:?}");
    assert_eq!(worker.complete(&tasks[1]).await, v1::ErrorReason::Unspecified);
    assert_eq!(outcome(&channel, &held_over).await.state(), v1::ExecutionState::Succeeded);
    // The restart did not create a second attempt.
    let history = invariants::history(channel, &held_over).await;
    let attempts =
        history.iter().filter(|entry| matches!(entry.event, Some(Event::AttemptScheduled(_))));
    assert_eq!(attempts.count(), 1);
}

/// A worker that keeps listing a task whose attempt is closed must not poll in a loop without a pause.
#[tokio::test]
async fn only_the_first_poll_that_lists_a_closed_attempt_ends_early() {
    let folder = Folder::new("lists-closed");
    let server = Server::embedded(folder.path());
    let channel = connect::channel(&server.url());
    connect::register(channel.clone(), TALKATIVE).await;
    let mut workers = connect::workers(channel.clone());
    let poll = |held: &[&Bytes], wait: Duration| v1::PollTasksRequest {
        wait: Some(wait.into()),
        session_id: "s".into(),
        held: Some(v1::HeldTasks { task_tokens: held.iter().copied().cloned().collect() }),
        ..Default::default()
    };
    let execution_id = begin(&channel, "talkative").await;
    let polled = workers.poll_tasks(poll(&[], PATIENCE)).await.expect("it polls").into_inner();
    let closed = &polled.tasks[0].task_token;
    let reason = "the worker keeps the task".into();
    let request = v1::TerminateExecutionRequest { execution_id, reason, ..Default::default() };
    connect::executions(channel.clone()).terminate_execution(request).await.expect("it ends");

    let reason = v1::TaskCancellationReason::AttemptClosed.into();
    let cancellation = |token: &Bytes| v1::TaskCancellation { task_token: token.clone(), reason };
    let polled = workers.poll_tasks(poll(&[closed], PATIENCE)).await.expect("it polls");
    assert_eq!(polled.into_inner().cancellations, [cancellation(closed)]);

    // The polls after that end when there is a task. Neither the closed attempt nor a token that the server
    // cannot read ends them before.
    let unreadable = Bytes::from_static(&[1, 2, 3]);
    let waiting = tokio::spawn({
        let (mut workers, request) = (workers.clone(), poll(&[closed, &unreadable], PATIENCE));
        async move { workers.poll_tasks(request).await }
    });
    let started = begin(&channel, "talkative").await;
    let polled = waiting.await.expect("it does not panic").expect("it polls").into_inner();
    assert_eq!(polled.tasks.len(), 1, "{polled:?}");
    assert_eq!(polled.tasks[0].execution_id, started);
    assert_eq!(polled.cancellations, [cancellation(&unreadable)]);

    // The first answer may have been lost, so a poll that ends with nothing else repeats it.
    let open = &polled.tasks[0].task_token;
    for _ in 0..2 {
        let polled = workers.poll_tasks(poll(&[closed, open], Duration::ZERO)).await;
        assert_eq!(polled.expect("it polls").into_inner().cancellations, [cancellation(closed)]);
    }
    // The worker forgets the task, and so does the server.
    let polled = workers.poll_tasks(poll(&[open], Duration::ZERO)).await.expect("it polls");
    assert_eq!(polled.into_inner().cancellations, []);
}

/// Some workers use the name of their machine as session id, so the same session can be lost repeatedly.
#[tokio::test]
async fn a_session_lost_twice_is_reported_twice() {
    let folder = Folder::new("lost-twice");
    let mut server = Server::embedded(folder.path());
    let channel = connect::channel(&server.url());
    let text = "
name: lost
defaults: {retry: {constant: {interval: 10ms}, max_attempts: 2}}
steps:
- {id: only, task: {type: work}}
";
    connect::register(channel.clone(), text).await;
    let execution = begin(&channel, "lost").await;
    for attempt in [1, 2] {
        let request = v1::PollTasksRequest {
            wait: Some(PATIENCE.into()),
            session_id: "machine-7".into(),
            session_ttl: Some(Duration::from_secs(1).into()),
            ..Default::default()
        };
        let polled = connect::workers(channel.clone()).poll_tasks(request).await;
        let tasks = polled.expect("it polls").into_inner().tasks;
        // The session stays silent until the attempt has ended because of that.
        until_lost(&channel, &execution, attempt).await;
        assert_eq!(tasks.iter().map(|task| task.attempt).collect::<Vec<_>>(), [attempt as u32]);
    }
    let error = outcome(&channel, &execution).await.error.expect("it failed");
    assert_eq!(error.r#type, "recoup.worker_lost");
    let kinds = vec![v1::FailureKind::WorkerLost.into()];
    let filter = Some(v1::FailureFilter { kinds, ..Default::default() });
    let request = v1::ListFailuresRequest { filter, ..Default::default() };
    let listed = connect::failures(channel).list_failures(request).await.expect("it lists");
    let listed = listed.into_inner().failures;
    assert_eq!(listed.len(), 2, "{listed:#?}");
    assert_ne!(listed[0].id, listed[1].id);
    assert!(server.process.is_alive());
}
