//! The tasks that a session holds: polls that list them, tasks that are given back, answers that are never
//! read, and heartbeats with details. Also the limits of all these, at their edges.

use std::time::Duration;

use recoup_proto::v1;
use tonic::codegen::{Bytes, Service, http};
use tonic::{Code, Response, Status};

use crate::server::{ORDER, PATIENCE, Server, TaskStream, assert_refused, json, session};

/// A poll of session `s` that returns at once.
fn poll(held: Option<&[&v1::Task]>) -> v1::PollTasksRequest {
    let tokens = |held: &[&v1::Task]| held.iter().map(|task| task.task_token.clone()).collect();
    v1::PollTasksRequest {
        session_id: "s".into(),
        held: held.map(|held| v1::HeldTasks { task_tokens: tokens(held) }),
        wait: Some(Duration::ZERO.into()),
        ..Default::default()
    }
}

fn long(request: v1::PollTasksRequest) -> v1::PollTasksRequest {
    v1::PollTasksRequest { wait: Some(PATIENCE.into()), ..request }
}

async fn polled(server: &Server, request: v1::PollTasksRequest) -> Vec<v1::Task> {
    let answer = server.workers().poll_tasks(request).await;
    answer.expect("it polls").into_inner().tasks
}

fn token(task: &v1::Task) -> Bytes {
    task.task_token.clone()
}

#[tokio::test]
async fn empty_held_list_returns_the_tasks_and_a_missing_one_keeps_them() {
    let server = Server::start().await;
    server.register(ORDER).await;
    server.begin("order").await;
    let task = polled(&server, long(poll(None))).await.remove(0);
    assert_eq!(polled(&server, poll(None)).await, []);
    assert_eq!(polled(&server, poll(Some(&[&task]))).await, []);
    // The list takes effect at once: the session is not given time to report the task in a later poll.
    let again = polled(&server, long(poll(Some(&[])))).await.remove(0);
    assert_eq!((again.task_token, again.attempt), (task.task_token, 1));
}

#[tokio::test]
async fn poll_that_waits_longer_than_the_session_ttl_keeps_the_session() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let id = server.begin("order").await;
    let session_ttl = Some(Duration::from_secs(1).into());
    let first = v1::PollTasksRequest { session_ttl, ..long(poll(None)) };
    let task = polled(&server, first).await.remove(0);
    let wait = Some(Duration::from_millis(2_500).into());
    let second = v1::PollTasksRequest { session_ttl, wait, ..poll(Some(&[&task])) };
    assert_eq!(polled(&server, second).await, []);
    let request = v1::GetExecutionRequest { execution_id: id };
    let execution = server.executions().get_execution(request).await.expect("it is there");
    let pending = execution.into_inner().execution.expect("the execution is set").pending_attempts;
    assert_eq!((pending[0].attempt, pending[0].session_id.as_str()), (1, "s"));
    server.complete(&task, "1").await.expect("the attempt is open");
}

#[tokio::test]
async fn newer_poll_of_a_session_supersedes_the_older_one() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let mut workers = server.workers();
    let first = tokio::spawn(async move { workers.poll_tasks(long(poll(Some(&[])))).await });
    // The server may receive the polls in either order. It ends the one that came first.
    let mut workers = server.workers();
    let second = tokio::spawn(async move { workers.poll_tasks(long(poll(Some(&[])))).await });
    let (mut first, mut second) = (first, second);
    let (ended, goes_on) = tokio::select! {
        ended = &mut first => (ended, &mut second),
        ended = &mut second => (ended, &mut first),
    };
    assert_refused(ended.expect("no panic"), Code::Aborted, "SESSION_SUPERSEDED", &[]);
    server.begin("order").await;
    let tasks = goes_on.await.expect("no panic").expect("it polls").into_inner().tasks;
    assert_eq!(tasks.len(), 1);
}

#[tokio::test]
async fn sessions_with_the_same_id_in_two_namespaces_are_separate() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let team = v1::Namespace { name: "team".into(), ..Default::default() };
    let team = v1::CreateNamespaceRequest { namespace: Some(team), ..Default::default() };
    server.namespaces().create_namespace(team).await.expect("it is new");
    let mut ours = TaskStream::open(&server, session("s"), 1).await;
    ours.until(|response| response.opened.clone()).await;
    let theirs = v1::OpenSession { namespace: "team".into(), ..session("s") };
    let mut theirs = TaskStream::open(&server, theirs, 1).await;
    theirs.until(|response| response.opened.clone()).await;
    server.begin("order").await;
    assert_eq!(ours.task().await.attempt, 1, "the other session did not supersede it");
}

#[tokio::test]
async fn draining_poll_takes_no_task_and_returns_those_it_does_not_list() {
    let server = Server::start().await;
    server.register(ORDER).await;
    server.begin("order").await;
    let task = polled(&server, long(poll(None))).await.remove(0);
    server.begin("order").await;
    let last = v1::PollTasksRequest { draining: true, ..long(poll(Some(&[]))) };
    assert_eq!(polled(&server, last).await, [], "answered at once although a task waits");
    let mut left = vec![token(&server.poll().await), token(&server.poll().await)];
    left.retain(|left| *left == task.task_token);
    assert_eq!(left.len(), 1, "the released task is available to others");
}

async fn release(
    server: &Server,
    task_token: Bytes,
    session_id: &str,
) -> Result<Response<v1::ReleaseTaskResponse>, Status> {
    let session_id = session_id.to_owned();
    server.workers().release_task(v1::ReleaseTaskRequest { task_token, session_id }).await
}

#[tokio::test]
async fn only_the_session_that_holds_a_task_can_release_it() {
    let server = Server::start().await;
    server.register(ORDER).await;
    server.begin("order").await;
    let task = polled(&server, long(poll(None))).await.remove(0);
    release(&server, token(&task), "another").await.expect("it changes nothing");
    assert_eq!(
        polled(&server, v1::PollTasksRequest { session_id: "t".into(), ..poll(None) }).await,
        []
    );
    release(&server, token(&task), "s").await.expect("it is given back");
    release(&server, token(&task), "s").await.expect("it is idempotent");
    let again = server.poll().await;
    assert_eq!((again.task_token.clone(), again.attempt), (token(&task), 1));
    server.complete(&again, "1").await.expect("it is open");
    let closed = release(&server, token(&task), "s").await;
    assert_refused(closed, Code::FailedPrecondition, "ATTEMPT_CLOSED", &[]);
    let garbage = release(&server, vec![9].into(), "s").await;
    assert_refused(garbage, Code::InvalidArgument, "TASK_TOKEN_INVALID", &["task_token"]);
    let long = release(&server, token(&task), &"s".repeat(65)).await;
    assert_refused(long, Code::InvalidArgument, "FIELD_INVALID", &["session_id"]);
}

#[tokio::test]
async fn stream_cannot_release_a_task_of_another_session() {
    let server = Server::start().await;
    server.register(ORDER).await;
    server.begin("order").await;
    let task = polled(&server, long(poll(None))).await.remove(0);
    let other = TaskStream::open(&server, session("t"), 0).await;
    let result = Some(v1::task_result::Result::Released(v1::TaskReleased {}));
    let mut other = other;
    other.send(vec![v1::TaskResult { task_token: token(&task), result }]).await;
    assert_eq!(other.ack().await.reason(), v1::ErrorReason::Unspecified);
    assert_eq!(
        polled(&server, v1::PollTasksRequest { session_id: "u".into(), ..poll(None) }).await,
        []
    );
}

/// There is no session, so only the start-to-close timeout of a minute would bring the task back.
#[tokio::test]
async fn task_in_an_undelivered_answer_is_handed_out_again() {
    let server = Server::start().await;
    server.register(ORDER).await;
    server.begin("order").await;
    // The frame of an empty message.
    let request = http::Request::post("/recoup.v1.WorkerService/PollTasks")
        .header("content-type", "application/grpc")
        .body("\0\0\0\0\0".to_owned())
        .expect("a good request");
    let answer = server.routes.clone().call(request).await.expect("it answers");
    assert_eq!(answer.status(), http::StatusCode::OK);
    let waiting = poll(None);
    let other = v1::PollTasksRequest { session_id: String::new(), ..waiting };
    assert_eq!(polled(&server, other.clone()).await, [], "the task is in the answer");
    drop(answer);
    let tasks = polled(&server, long(other)).await;
    assert_eq!(tasks.iter().map(|task| task.attempt).collect::<Vec<_>>(), [1]);
}

/// The details of the latest heartbeat of the execution's only attempt.
async fn details(server: &Server, execution_id: &str) -> Option<v1::Payload> {
    let request = v1::GetExecutionRequest { execution_id: execution_id.into() };
    let answer = server.executions().get_execution(request).await.expect("it is there");
    let execution = answer.into_inner().execution.expect("the execution is set");
    execution.pending_attempts[0].heartbeat_details.clone()
}

#[tokio::test]
async fn heartbeat_details_are_kept_up_to_4096_bytes() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let id = server.begin("order").await;
    let mut stream = TaskStream::open(&server, session("s"), 1).await;
    let task = stream.task().await;
    assert_eq!(details(&server, &id).await, None);
    let beat = |details| v1::HeartbeatTaskRequest { task_token: token(&task), details };
    let of_size = |size: usize| Some(json(&format!("\"{}\"", "x".repeat(size - 2))));
    for (said, kept) in [(of_size(4_096), of_size(4_096)), (None, of_size(4_096))] {
        server.workers().heartbeat_task(beat(said)).await.expect("it is open");
        assert_eq!(details(&server, &id).await.map(|own| own.content), kept.map(|own| own.content));
    }
    let refused = server.workers().heartbeat_task(beat(of_size(4_097))).await;
    assert_refused(refused, Code::InvalidArgument, "FIELD_INVALID", &["details"]);
    // On a stream, details that are too large are left out. The result in the next message shows that the
    // heartbeats were read.
    let beat = |details| v1::TaskHeartbeat { task_token: token(&task), details };
    let heartbeats = vec![beat(Some(json("7"))), beat(of_size(4_097))];
    // A refused result is acknowledged after everything that was sent before it.
    let results = vec![v1::TaskResult { task_token: vec![9].into(), result: None }];
    for request in [
        v1::StreamTasksRequest { heartbeats, ..Default::default() },
        v1::StreamTasksRequest { results, ..Default::default() },
    ] {
        stream.requests.send(request).await.expect("the stream is open");
    }
    stream.ack().await;
    let kept = details(&server, &id).await.and_then(|own| own.content);
    assert_eq!(kept, json("7").content);
}

#[tokio::test]
async fn session_ttl_must_be_between_one_second_and_ten_minutes() {
    let server = Server::start().await;
    let cases = [(999, false), (1_000, true), (600_000, true), (600_001, false)];
    for (index, (millis, is_good)) in cases.into_iter().enumerate() {
        let session_ttl = Some(Duration::from_millis(millis).into());
        let request = v1::PollTasksRequest { session_ttl, ..poll(None) };
        let polled = server.workers().poll_tasks(request).await;
        let session_id = format!("stream {index}");
        let open = v1::OpenSession { session_id, session_ttl, ..Default::default() };
        let opened = TaskStream::open(&server, open, 0).await.next().await;
        if is_good {
            assert!(polled.is_ok(), "{polled:?}");
            let opened = opened.expect("it opens").opened.expect("the first message says so");
            assert_eq!(opened.session_ttl, session_ttl);
        } else {
            let code = Code::InvalidArgument;
            assert_refused(polled, code, "FIELD_INVALID", &["session_ttl"]);
            assert_refused(opened, code, "FIELD_INVALID", &["open.session_ttl"]);
        }
    }
}

#[tokio::test]
async fn session_may_report_at_most_ten_thousand_held_tokens() {
    let server = Server::start().await;
    let garbage = |count: usize| vec![Bytes::from_static(&[9]); count];
    let list = |count| v1::PollTasksRequest {
        held: Some(v1::HeldTasks { task_tokens: garbage(count) }),
        ..poll(None)
    };
    let full =
        server.workers().poll_tasks(list(10_000)).await.expect("the count is within the limit");
    assert_eq!(full.into_inner().cancellations.len(), 10_000, "none of the tokens is valid");
    let over = server.workers().poll_tasks(list(10_001)).await;
    assert_refused(over, Code::InvalidArgument, "FIELD_INVALID", &["held.task_tokens"]);
    let open = |count| v1::OpenSession { held_task_tokens: garbage(count), ..session("t") };
    let full = TaskStream::open(&server, open(10_000), 0).await.next().await;
    let opened = full.expect("the count is within the limit").opened.expect("it is the first");
    assert_eq!(opened.closed_task_tokens.len(), 10_000);
    let over = TaskStream::open(&server, open(10_001), 0).await.next().await;
    assert_refused(over, Code::InvalidArgument, "FIELD_INVALID", &["open.held_task_tokens"]);
}

#[tokio::test]
async fn stream_may_request_ten_thousand_tasks_and_a_poll_one_thousand() {
    let server = Server::start().await;
    let over = TaskStream::open(&server, session("a"), 10_001).await.next().await;
    assert_refused(over, Code::InvalidArgument, "FIELD_INVALID", &["credit"]);
    let mut full = TaskStream::open(&server, session("b"), 10_000).await;
    full.next().await.expect("the count is within the limit");
    let more = v1::StreamTasksRequest { credit: 1, ..Default::default() };
    full.requests.send(more).await.expect("the stream is open");
    assert_refused(full.next().await, Code::InvalidArgument, "FIELD_INVALID", &["credit"]);
    for (max_tasks, is_good) in [(1_000, true), (1_001, false)] {
        let request = v1::PollTasksRequest { max_tasks, ..poll(None) };
        match server.workers().poll_tasks(request).await {
            Ok(_) => assert!(is_good),
            refused => {
                assert!(!is_good);
                assert_refused(refused, Code::InvalidArgument, "FIELD_INVALID", &["max_tasks"]);
            }
        }
    }
}
