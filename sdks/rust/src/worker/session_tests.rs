use prost::Message;
use recoup_proto::v1::{StreamTasksRequest, TaskResult};
use tokio::sync::mpsc;

use super::*;
use crate::worker::context::{Event, RawTask, TaskContext};
use crate::{PAYLOAD_BYTES_MAX, to_payload};

fn session(slots: u32) -> WorkerSession {
    let mut session = WorkerSession::new(OpenSession::default(), slots);
    session.open_message();
    session.opened(&[]);
    session
}

fn token(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn completed(name: &str, output: &str) -> Bytes {
    let output = to_payload(output).expect("JSON");
    message::result(token(name), task_result::Result::Completed(output))
}

fn ack(name: &str, reason: ErrorReason) -> ResultAck {
    ResultAck { task_token: token(name), reason: reason.into(), message: "said".to_owned() }
}

/// Delivers a task and starts its handler, which never ends.
async fn run(
    session: &mut WorkerSession,
    name: &str,
) -> (TaskContext, mpsc::UnboundedReceiver<Event>) {
    assert_eq!(session.admit(&token(name)), Admission::Start);
    let (sender, receiver) = mpsc::unbounded_channel();
    let task = RawTask { task_token: token(name), ..RawTask::default() };
    let attempt = Attempt::new(task, sender);
    let handler = tokio::spawn(std::future::pending::<()>());
    session.started(attempt.clone(), handler.abort_handle());
    (TaskContext::new(attempt), receiver)
}

fn results(message: &Outgoing) -> Vec<TaskResult> {
    let encoded = message.results.concat();
    StreamTasksRequest::decode(encoded.as_slice()).expect("results").results
}

fn names(message: &Outgoing) -> Vec<String> {
    let mut names: Vec<_> = results(message)
        .iter()
        .map(|result| String::from_utf8_lossy(&result.task_token).into_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn accumulated_results_share_one_message_with_the_credit_they_freed() {
    let mut session = session(8);
    for name in ["a", "b", "c"] {
        run(&mut session, name).await;
    }
    assert!(!session.has_message(), "running tasks free no credit, so nothing is sent");
    for name in ["a", "b", "c"] {
        session.finish(token(name), completed(name, "ok"));
    }
    assert!(session.has_message());
    let message = session.next_message();
    assert_eq!(names(&message), ["a", "b", "c"]);
    assert_eq!(message.head.credit, 3);
    assert!(!session.has_message(), "a result is sent once per stream");
    assert!(!session.is_idle(), "no result is acknowledged yet");
    for name in ["a", "b", "c"] {
        session.acknowledge(ack(name, ErrorReason::Unspecified), Instant::now());
    }
    assert!(session.is_idle());
}

#[tokio::test]
async fn credit_never_exceeds_the_slots() {
    let mut session = WorkerSession::new(OpenSession::default(), 4);
    assert_eq!(session.open_message().head.credit, 4);
    session.opened(&[]);
    let mut kept = Vec::new();
    for name in ["a", "b", "c", "d"] {
        kept.push(run(&mut session, name).await);
    }
    assert_eq!(session.next_message().head.credit, 0, "all slots are taken");
    session.finish(token("a"), completed("a", "ok"));
    assert_eq!(session.next_message().head.credit, 1);
    assert_eq!(session.next_message().head.credit, 0, "the credit has been granted already");
    assert_eq!(session.open_message().head.credit, 1, "a new stream starts without earlier credit");
}

#[tokio::test]
async fn result_batches_are_limited_by_bytes_and_by_count() {
    let mut session = session(10_000);
    let large = "x".repeat(PAYLOAD_BYTES_MAX - 2);
    for name in ["a", "b"] {
        session.finish(token(name), completed(name, &large));
    }
    for expected in ["a", "b"] {
        let message = session.next_message();
        assert_eq!(names(&message), [expected], "one large result fills a batch");
        assert!(message.results.concat().len() < 4 * 1024 * 1024);
    }
    for number in 0..2_500 {
        let name = number.to_string();
        session.finish(token(&name), completed(&name, "ok"));
    }
    let mut sizes = Vec::new();
    while session.has_message() {
        sizes.push(session.next_message().results.len());
    }
    assert_eq!(sizes, [1_000, 1_000, 500]);
}

#[tokio::test]
async fn a_new_stream_reclaims_unsettled_tasks_and_resends_only_open_results() {
    let mut session = session(8);
    let (context, _events) = run(&mut session, "runs").await;
    for name in ["lost", "stored", "settled"] {
        session.finish(token(name), completed(name, "ok"));
    }
    session.next_message();
    session.acknowledge(ack("settled", ErrorReason::Unspecified), Instant::now());

    let open = session.open_message().head.open.expect("the first message opens the session");
    let mut held = open.held_task_tokens;
    held.sort();
    assert_eq!(held, [token("lost"), token("runs"), token("stored")]);
    assert!(!session.has_message(), "no result is sent before the session is open");
    session.opened(&[token("stored"), token("runs")]);
    assert_eq!(names(&session.next_message()), ["lost"]);
    assert_eq!(context.is_cancelled(), Some(CancelReason::Closed));
}

#[tokio::test]
async fn a_redelivered_task_is_not_restarted_and_its_result_is_resent() {
    let mut session = session(8);
    run(&mut session, "runs").await;
    assert_eq!(session.admit(&token("runs")), Admission::Known);
    session.finish(token("runs"), completed("runs", "ok"));
    session.next_message();
    assert_eq!(session.admit(&token("runs")), Admission::Known);
    assert_eq!(names(&session.next_message()), ["runs"], "the result is sent again");
}

#[tokio::test]
async fn a_result_refused_with_store_unavailable_is_resent_after_a_delay() {
    let mut session = session(8);
    session.finish(token("a"), completed("a", "ok"));
    session.next_message();
    let now = Instant::now();
    session.acknowledge(ack("a", ErrorReason::StoreUnavailable), now);
    session.tick(now);
    assert!(!session.has_message());
    session.tick(now + RESEND_AFTER);
    assert_eq!(names(&session.next_message()), ["a"]);
}

#[tokio::test]
async fn late_results_are_dropped_and_refused_results_become_an_error_once() {
    let mut session = session(8);
    for name in ["late", "refused"] {
        session.finish(token(name), completed(name, "ok"));
    }
    session.next_message();
    session.acknowledge(ack("late", ErrorReason::AttemptClosed), Instant::now());
    session.acknowledge(ack("refused", ErrorReason::PayloadInvalid), Instant::now());
    let message = session.next_message();
    assert_eq!(names(&message), ["refused"]);
    let result = results(&message).remove(0).result;
    let Some(task_result::Result::Failed(error)) = result else { panic!("{result:?}") };
    assert_eq!((error.r#type.as_str(), error.non_retryable), ("rust.result_refused", Some(true)));
    session.acknowledge(ack("refused", ErrorReason::FieldInvalid), Instant::now());
    assert!(session.is_idle());
}

#[tokio::test]
async fn a_refused_error_becomes_the_cause_of_its_replacement() {
    let mut session = session(8);
    let original = crate::TaskError::new("has space!").message("the bank said no");
    let failed = task_result::Result::Failed(original.into_proto());
    session.finish(token("a"), message::result(token("a"), failed));
    session.next_message();
    session.acknowledge(ack("a", ErrorReason::FieldInvalid), Instant::now());
    let result = results(&session.next_message()).remove(0).result;
    let Some(task_result::Result::Failed(error)) = result else { panic!("{result:?}") };
    assert_eq!((error.r#type.as_str(), error.non_retryable), ("rust.result_refused", None));
    assert!(error.message.contains("`has space!`: the bank said no"), "{}", error.message);
    assert_eq!(error.cause.expect("the original").message, "the bank said no");
}

#[tokio::test]
async fn results_are_dropped_on_quarantine_and_resent_if_the_execution_is_too_new() {
    let mut session = session(8);
    for name in ["quarantined", "newer"] {
        session.finish(token(name), completed(name, "ok"));
    }
    session.next_message();
    let now = Instant::now();
    session.acknowledge(ack("quarantined", ErrorReason::ExecutionQuarantined), now);
    session.acknowledge(ack("newer", ErrorReason::ExecutionTooNew), now);
    session.tick(now + RESEND_AFTER);
    let message = session.next_message();
    assert_eq!(
        names(&message),
        ["newer"],
        "sent again, because another server may read the execution"
    );
    let result = results(&message).remove(0).result;
    assert!(matches!(result, Some(task_result::Result::Completed(_))), "{result:?}");
}

#[tokio::test]
async fn an_unknown_ack_reason_counts_as_a_refusal() {
    let mut session = session(8);
    session.finish(token("a"), completed("a", "ok"));
    session.next_message();
    let unknown = ResultAck { task_token: token("a"), reason: 9_999, message: String::new() };
    session.acknowledge(unknown, Instant::now());
    assert_eq!(names(&session.next_message()), ["a"], "an error takes its place");
}

#[tokio::test]
async fn the_latest_heartbeat_is_sent_with_the_next_message() {
    let mut session = session(8);
    let (context, mut events) = run(&mut session, "a").await;
    context.heartbeat(&1).expect("small");
    context.heartbeat(&2).expect("small");
    let Ok(Event::Heartbeat { token }) = events.try_recv() else { panic!("no heartbeat") };
    session.heartbeat(token);
    let heartbeats = session.next_message().head.heartbeats;
    assert_eq!(heartbeats.len(), 1);
    assert_eq!(crate::from_payload::<u32>(heartbeats[0].details.as_ref()).expect("JSON"), 2);
    assert!(session.next_message().head.heartbeats.is_empty());
}

#[tokio::test]
async fn draining_releases_new_tasks_and_finishes_running_ones() {
    let mut session = session(8);
    run(&mut session, "runs").await;
    session.drain();
    assert!(session.has_message());
    let message = session.next_message();
    assert!(message.head.draining);
    assert_eq!(message.head.credit, 0);

    assert_eq!(session.admit(&token("came late")), Admission::Known);
    let message = session.next_message();
    let released = results(&message).remove(0);
    assert!(matches!(released.result, Some(task_result::Result::Released(_))), "{released:?}");
    session.acknowledge(ack("came late", ErrorReason::Unspecified), Instant::now());
    assert!(!session.is_drained());
    session.finish(token("runs"), completed("runs", "ok"));
    session.next_message();
    session.acknowledge(ack("runs", ErrorReason::Unspecified), Instant::now());
    assert!(session.is_drained());
}

#[tokio::test]
async fn a_worker_leaves_a_draining_server_once_its_results_are_acknowledged() {
    let mut session = session(8);
    run(&mut session, "runs").await;
    run(&mut session, "ended").await;
    let now = Instant::now();
    let later = now + STAY;
    assert!(!session.may_leave(later), "the server is not draining");
    session.server_drains(now);
    assert!(!session.may_leave(now), "a running task may be about to end");
    session.finish(token("ended"), completed("ended", "ok"));
    session.next_message();
    assert!(!session.may_leave(later), "a result is not acknowledged");
    session.acknowledge(ack("ended", ErrorReason::Unspecified), now);
    assert!(!session.may_leave(now));
    // Hearing it again does not extend the time that the worker stays.
    session.server_drains(later);
    assert!(session.may_leave(later));
    session.open_message();
    assert!(!session.may_leave(later), "a new stream may lead to another server");
}

#[tokio::test]
async fn too_many_unacknowledged_results_hold_back_credit() {
    let mut session = session(1);
    for number in 0..4_000 {
        let name = number.to_string();
        session.admit(&token(&name));
        session.finish(token(&name), completed(&name, "ok"));
    }
    assert_eq!(session.next_message().head.credit, 0);
    session.acknowledge(ack("0", ErrorReason::Unspecified), Instant::now());
    assert_eq!(session.next_message().head.credit, 1);
}

#[tokio::test]
async fn dropping_the_session_stops_its_handlers() {
    let mut session = session(8);
    assert_eq!(session.admit(&token("a")), Admission::Start);
    let handler = tokio::spawn(std::future::pending::<()>());
    let (sender, _events) = mpsc::unbounded_channel();
    session.started(Attempt::new(RawTask::default(), sender), handler.abort_handle());
    drop(session);
    assert!(handler.await.expect_err("the handler never ends by itself").is_cancelled());
}
