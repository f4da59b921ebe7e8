//! Workers by stream, with credit, acknowledgements and sessions, and workers that poll.

use std::time::Duration;

use recoup_proto::v1;
use tonic::Code;

use crate::server::{
    ORDER, PATIENCE, Server, TaskStream, assert_refused, completed, json, refusal, session,
};

#[tokio::test]
async fn stream_hands_out_no_more_tasks_than_it_has_credit() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let ids =
        [server.begin("order").await, server.begin("order").await, server.begin("order").await];
    let mut stream = TaskStream::open(&server, session("s1"), 2).await;
    let opened = stream.until(|response| response.opened.clone()).await;
    assert_eq!(opened.session_id, "s1");
    let first = stream.task().await;
    let second = stream.task().await;
    // The worker has no credit left, so its results are acknowledged and no other task follows.
    stream.send(vec![completed(&first, json("1")), completed(&second, json("2"))]).await;
    let acks = [stream.ack().await, stream.ack().await];
    assert_eq!(stream.tasks_left(), 0);
    assert!(acks.iter().all(|ack| ack.reason() == v1::ErrorReason::Unspecified), "{acks:?}");
    let credit = v1::StreamTasksRequest { credit: 1, ..Default::default() };
    stream.requests.send(credit).await.expect("the stream is open");
    let third = stream.task().await;
    stream.send(vec![completed(&third, json("3"))]).await;
    stream.ack().await;
    for id in &ids {
        assert_eq!(server.outcome(id).await.state(), v1::ExecutionState::Succeeded);
    }
}

#[tokio::test]
async fn session_continues_on_a_new_stream() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let id = server.begin("order").await;
    let mut stream = TaskStream::open(&server, session("s1"), 1).await;
    let task = stream.task().await;
    let held_task_tokens = vec![task.task_token.clone(), vec![9].into()];
    let again = v1::OpenSession { held_task_tokens, ..session("s1") };
    let mut next = TaskStream::open(&server, again, 1).await;
    let opened = next.until(|response| response.opened.clone()).await;
    assert_eq!(opened.closed_task_tokens, [vec![9]], "a garbage token is reported as closed");
    // The previous stream ends and gives the reason.
    let ended = loop {
        if let Err(status) = stream.next().await {
            break status;
        }
    };
    assert_refused(Err::<(), _>(ended), Code::Aborted, "SESSION_SUPERSEDED", &[]);
    next.send(vec![completed(&task, json("1"))]).await;
    assert_eq!(next.ack().await.reason(), v1::ErrorReason::Unspecified);
    assert_eq!(server.outcome(&id).await.state(), v1::ExecutionState::Succeeded);
}

#[tokio::test]
async fn task_not_held_by_the_new_stream_is_redelivered_as_the_same_attempt() {
    let server = Server::start().await;
    server.register(ORDER).await;
    server.begin("order").await;
    let mut stream = TaskStream::open(&server, session("s1"), 1).await;
    let task = stream.task().await;
    drop(stream);
    let mut next = TaskStream::open(&server, session("s1"), 1).await;
    assert_eq!(next.task().await.task_token, task.task_token);
}

#[tokio::test]
async fn stream_without_a_valid_session_or_with_two_is_rejected() {
    let server = Server::start().await;
    let unnamed = TaskStream::open(&server, v1::OpenSession::default(), 1).await.next().await;
    let (code, reason, fields) = refusal(unnamed);
    assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "FIELD_INVALID"));
    assert_eq!(fields, ["open.session_id"]);
    let nowhere = v1::OpenSession { namespace: "nosuch".into(), ..session("s") };
    let nowhere = TaskStream::open(&server, nowhere, 1).await.next().await;
    assert_refused(nowhere, Code::NotFound, "NAMESPACE_NOT_FOUND", &[]);
    let mut twice = TaskStream::open(&server, session("s"), 0).await;
    twice.next().await.expect("it is open");
    let again = v1::StreamTasksRequest { open: Some(session("s")), ..Default::default() };
    twice.requests.send(again).await.expect("the stream is open");
    assert_refused(twice.next().await, Code::FailedPrecondition, "SESSION_NOT_OPEN", &[]);
}

#[tokio::test]
async fn stopping_server_announces_draining_and_ends_idle_streams() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let id = server.begin("order").await;
    let mut stream = TaskStream::open(&server, session("s1"), 5).await;
    let task = stream.task().await;
    server.shutdown.send_replace(true);
    stream.until(|response| response.draining.then_some(())).await;
    // The draining server still accepts the results of tasks that the worker holds.
    stream.send(vec![completed(&task, json("1"))]).await;
    assert_eq!(stream.ack().await.reason(), v1::ErrorReason::Unspecified);
    let end = tokio::time::timeout(PATIENCE, stream.responses.message()).await.expect("in time");
    assert!(matches!(end, Ok(None)), "{end:?}");
    assert_eq!(server.outcome(&id).await.state(), v1::ExecutionState::Succeeded);
}

#[tokio::test]
async fn released_task_is_handed_out_again_as_the_same_attempt() {
    let server = Server::start().await;
    server.register(ORDER).await;
    server.begin("order").await;
    let mut stream = TaskStream::open(&server, session("s1"), 1).await;
    let task = stream.task().await;
    let result = Some(v1::task_result::Result::Released(v1::TaskReleased {}));
    let released = v1::TaskResult { task_token: task.task_token.clone(), result };
    stream.send(vec![released]).await;
    let again = server.poll().await;
    assert_eq!((again.task_token, again.attempt), (task.task_token, 1));
}

#[tokio::test]
async fn poll_waits_no_longer_than_asked_and_an_abandoned_one_takes_no_task() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let wait = Some(Duration::from_millis(50).into());
    let request = v1::PollTasksRequest { wait, ..Default::default() };
    let empty = server.workers().poll_tasks(request.clone()).await.expect("it answers");
    assert_eq!(empty.into_inner().tasks, []);
    // A poll whose caller has gone away takes no task with it.
    let mut workers = server.workers();
    let gone =
        tokio::spawn(async move { workers.poll_tasks(v1::PollTasksRequest::default()).await });
    tokio::task::yield_now().await;
    gone.abort();
    server.begin("order").await;
    let task = server.poll().await;
    let beat = v1::HeartbeatTaskRequest { task_token: task.task_token.clone(), details: None };
    let beat = server.workers().heartbeat_task(beat).await.expect("it is open").into_inner();
    assert!(!beat.cancel_requested);
    let cancel = v1::CancelExecutionRequest {
        execution_id: task.execution_id.clone(),
        ..Default::default()
    };
    server.executions().cancel_execution(cancel).await.expect("it is open");
    let beat = v1::HeartbeatTaskRequest { task_token: task.task_token.clone(), details: None };
    let beat = server.workers().heartbeat_task(beat).await.expect("it is open").into_inner();
    assert!(beat.cancel_requested);
}

#[tokio::test]
async fn worker_that_never_reads_does_not_block_other_workers() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let silent = TaskStream::open(&server, session("silent"), 10_000).await;
    // Heartbeats for tasks that do not exist. Each calls for an answer, which the worker never reads.
    let garbage = vec![7_u8; 40];
    let beats = vec![v1::TaskHeartbeat { task_token: garbage.into(), details: None }; 10_000];
    for _ in 0..50 {
        let request = v1::StreamTasksRequest { heartbeats: beats.clone(), ..Default::default() };
        // The test wants the stream to fill up, so a send that fails is not an error.
        if silent.requests.try_send(request).is_err() {
            tokio::task::yield_now().await;
        }
    }
    let mut other = TaskStream::open(&server, session("other"), 0).await;
    other.next().await.expect("it is served");
    drop(silent);
}
