//! The calls with which an operator deals with a parked compensation.

use recoup_proto::v1;
use recoup_proto::v1::history_entry::Event;
use tonic::Code;

use crate::server::{Server, assert_refused, permanent};

const TRIP: &str = "
name: trip
steps:
- {id: flight, task: {type: book}, compensate: {task: {type: unbook}}}
- {id: hotel, task: {type: book}, compensate: {task: {type: unbook}}}
- {id: pay, task: {type: pay}}
";

/// Runs an execution in which both bookings succeed, the payment fails, and neither booking can be undone.
async fn parked(server: &Server) -> String {
    server.register(TRIP).await;
    let id = server.begin("trip").await;
    for step in ["flight", "hotel"] {
        let task = server.poll().await;
        assert_eq!(task.step_path, step);
        server.complete(&task, "1").await.expect("it is open");
    }
    for (step, undoes) in [("pay", false), ("hotel", true), ("flight", true)] {
        let task = server.poll().await;
        assert_eq!((task.step_path.as_str(), task.compensation.is_some()), (step, undoes));
        server.fail(&task, permanent("bank.closed")).await.expect("it is open");
    }
    let outcome = server.outcome(&id).await;
    assert_eq!(outcome.state(), v1::ExecutionState::Failed);
    assert_eq!(outcome.compensation_state(), v1::CompensationState::Parked);
    id
}

#[tokio::test]
async fn parked_compensation_is_retried_or_skipped_and_the_history_records_why() {
    let server = Server::start().await;
    let id = parked(&server).await;
    let mut executions = server.executions();
    let retry = |request_id: &str| v1::RetryCompensationRequest {
        execution_id: id.clone(),
        step_path: "hotel".into(),
        reason: "the bank is open again".into(),
        request_id: request_id.into(),
    };
    let retried = executions.retry_compensation(retry("r")).await.expect("it is parked");
    assert_eq!(retried.into_inner().compensation_state(), v1::CompensationState::Running);
    let again = executions.retry_compensation(retry("r")).await.expect("the same call");
    assert_eq!(again.into_inner().compensation_state(), v1::CompensationState::Running);
    let other = v1::RetryCompensationRequest { reason: "another".into(), ..retry("r") };
    let refused = executions.retry_compensation(other).await;
    assert_refused(refused, Code::AlreadyExists, "REQUEST_ID_REUSED", &["request_id"]);

    let task = server.poll().await;
    assert_eq!((task.step_path.as_str(), task.attempt), ("hotel", 2));
    assert_eq!(task.idempotency_key, format!("{id}/hotel/0/compensate"));
    server.complete(&task, "1").await.expect("it is open");

    let skip = v1::SkipCompensationRequest {
        execution_id: id.clone(),
        step_path: "flight".into(),
        reason: "refunded by hand".into(),
        request_id: String::new(),
    };
    let skipped = executions.skip_compensation(skip).await.expect("it is parked");
    assert_eq!(skipped.into_inner().compensation_state(), v1::CompensationState::Done);

    let events = server.history(&id).await;
    let retried = events.iter().find_map(|event| match event {
        Event::CompensationRetried(retried) => Some(retried.clone()),
        _ => None,
    });
    let expected = v1::CompensationRetried {
        step_path: "hotel".into(),
        reason: "the bank is open again".into(),
    };
    assert_eq!(retried, Some(expected));
    let skipped = events.iter().find_map(|event| match event {
        Event::CompensationSkipped(skipped) => Some(skipped.reason.as_str()),
        _ => None,
    });
    assert_eq!(skipped, Some("refunded by hand"));
}
