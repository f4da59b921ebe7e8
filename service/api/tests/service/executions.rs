//! Calls that start, watch and steer executions.

use std::time::Duration;

use recoup_proto::v1;
use tonic::Code;

use crate::server::{
    ORDER, PATIENCE, Server, assert_refused, json, permanent, refusal, spec, start,
};

#[tokio::test]
async fn execution_runs_from_start_to_end_and_its_history_can_be_paged() {
    let server = Server::start().await;
    server
        .register("name: pair\nsteps:\n- {id: a, task: {type: t}}\n- {id: b, task: {type: u, input: {n: '${steps.a.output}'}}}\n")
        .await;
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut request = tonic::Request::new(start("pair", ""));
    request.metadata_mut().insert("traceparent", traceparent.parse().expect("ASCII"));
    let started = server.executions().start_execution(request).await.expect("it starts");
    let id = started.into_inner().execution_id;

    let task = server.poll().await;
    assert_eq!((task.r#type.as_str(), task.attempt, task.max_attempts), ("t", 1, 5));
    assert_eq!(task.traceparent, traceparent);
    assert_eq!(task.idempotency_key, format!("{id}/a/0"));
    let request = v1::GetExecutionRequest { execution_id: id.clone() };
    let info = server.executions().get_execution(request).await.expect("it exists").into_inner();
    let info = info.execution.expect("always set");
    assert_eq!(info.state(), v1::ExecutionState::Running);
    assert_eq!(info.pending_attempts[0].step_path, "a");
    assert_eq!(info.pending_attempts[0].state(), v1::AttemptState::Running);

    server.complete(&task, "18446744073709551615").await.expect("it is open");
    let task = server.poll().await;
    assert_eq!(task.input, Some(json(r#"{"n":18446744073709551615}"#)));
    server.complete(&task, "\"done\"").await.expect("it is open");
    let outcome = server.outcome(&id).await;
    assert_eq!(outcome.state(), v1::ExecutionState::Succeeded);
    assert_eq!(outcome.output, Some(json("\"done\"")));

    let mut entries = Vec::new();
    let mut page_token = String::new();
    loop {
        let execution_id = id.clone();
        let request = v1::ListExecutionHistoryRequest { execution_id, page_size: 2, page_token };
        let page = server.executions().list_execution_history(request).await.expect("a page");
        let page = page.into_inner();
        assert!(page.entries.len() <= 2);
        entries.extend(page.entries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    use v1::history_entry::Event;
    assert!(matches!(entries[0].event, Some(Event::ExecutionStarted(_))));
    let last = entries.last().and_then(|entry| entry.event.clone());
    assert!(matches!(last, Some(Event::ExecutionEnded(_))), "{last:?}");
    let mut places: Vec<_> = entries.iter().map(|entry| (entry.sequence, entry.index)).collect();
    places.dedup();
    assert!(places.is_sorted() && places.len() == entries.len(), "{places:?}");
}

#[tokio::test]
async fn run_answers_before_the_deadline_and_a_repeat_gets_the_outcome() {
    use v1::run_execution_response::Result as Outcome;
    let server = Server::start().await;
    server.register(ORDER).await;
    let body = v1::RunExecutionRequest {
        execution: Some(spec("order")),
        request_id: "run-1".into(),
        wait: None,
    };
    let mut request = tonic::Request::new(body.clone());
    request.set_timeout(Duration::from_millis(300));
    let response = server.executions().run_execution(request).await.expect("in time").into_inner();
    assert!(matches!(response.result, Some(Outcome::StillRunning(_))), "{response:?}");

    let task = server.poll().await;
    let failed = server.fail(&task, permanent("payment.declined")).await.expect("it is open");
    let decision = failed.decision.expect("it was decided");
    assert_eq!(decision.verdict(), v1::RetryVerdict::Stop);
    assert_eq!(decision.reason(), v1::RetryReason::NonRetryable);

    // Repeating the request waits for the same execution. The call returns OK whatever the outcome of the
    // execution.
    let again = server.executions().run_execution(body).await.expect("it ended").into_inner();
    assert_eq!((&again.execution_id, again.started), (&response.execution_id, true));
    let Some(Outcome::Ended(outcome)) = again.result else { panic!("{again:?}") };
    assert_eq!(outcome.state(), v1::ExecutionState::Failed);
    assert_eq!(outcome.failed_step, "charge");
    assert_eq!(outcome.error.expect("an error is set").r#type, "payment.declined");
}

#[tokio::test]
async fn run_and_await_calls_are_answered_when_the_server_shuts_down() {
    use v1::await_execution_response::Result as Awaited;
    use v1::run_execution_response::Result as Outcome;
    let server = Server::start().await;
    server.register(ORDER).await;
    let run = v1::RunExecutionRequest { execution: Some(spec("order")), ..Default::default() };
    let mut executions = server.executions();
    let running = tokio::spawn(async move { executions.run_execution(run).await });
    // The task shows that the execution has started. Without the shutdown the call would wait for a minute.
    let task = server.poll().await;
    server.shutdown.send_replace(true);
    let answer = tokio::time::timeout(PATIENCE, running).await.expect("answered at once");
    let answer = answer.expect("no panic").expect("it is OK").into_inner();
    assert!(matches!(answer.result, Some(Outcome::StillRunning(_))), "{answer:?}");
    assert_eq!(answer.execution_id, task.execution_id);

    // A call that arrives after the shutdown began is answered too, as long as the server answers at all.
    let request = v1::AwaitExecutionRequest { execution_id: answer.execution_id, wait: None };
    let mut executions = server.executions();
    let awaited = tokio::time::timeout(PATIENCE, executions.await_execution(request)).await;
    let awaited = awaited.expect("answered at once").expect("it is OK").into_inner();
    assert!(matches!(awaited.result, Some(Awaited::StillRunning(_))), "{awaited:?}");
    // The server still accepts results.
    server.complete(&task, "1").await.expect("it is open");
}

#[tokio::test]
async fn start_with_a_held_key_is_rejected_or_returns_the_holder_by_policy() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let with = |on_running: v1::OnRunning| v1::StartExecutionRequest {
        execution: Some(v1::ExecutionSpec {
            execution_key: "k".into(),
            on_running: on_running.into(),
            ..spec("order")
        }),
        request_id: String::new(),
    };
    let mut executions = server.executions();
    let first = executions.start_execution(with(v1::OnRunning::Unspecified)).await;
    let first = first.expect("the key is free").into_inner();
    assert!(first.started);
    let taken = executions.start_execution(with(v1::OnRunning::Reject)).await;
    assert_refused(taken, Code::AlreadyExists, "EXECUTION_KEY_TAKEN", &[]);
    let used = executions.start_execution(with(v1::OnRunning::UseExisting)).await;
    let used = used.expect("the holder is returned").into_inner();
    assert_eq!((&used.execution_id, used.started), (&first.execution_id, false));
    // A repeated request gets the same answer as the first time.
    let mut again = with(v1::OnRunning::UseExisting);
    again.request_id = "given".into();
    for _ in 0..2 {
        let given = executions.start_execution(again.clone()).await.expect("the holder");
        let given = given.into_inner();
        assert_eq!((&given.execution_id, given.started), (&first.execution_id, false));
    }
    again.request_id = "own".into();
    again.execution.as_mut().expect("set").execution_key = "another".into();
    for _ in 0..2 {
        let own = executions.start_execution(again.clone()).await.expect("the key is free");
        assert!(own.into_inner().started);
    }
    let mut unknown = with(v1::OnRunning::Unspecified);
    unknown.execution.as_mut().expect("set").on_ended = 77;
    let refused = executions.start_execution(unknown).await;
    assert_refused(refused, Code::InvalidArgument, "FIELD_INVALID", &["execution.on_ended"]);
}

#[tokio::test]
async fn terminated_execution_rejects_cancel_and_compensation_retry() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let execution_id = server.begin("order").await;
    let mut executions = server.executions();
    let terminate = |reason: &str| v1::TerminateExecutionRequest {
        execution_id: execution_id.clone(),
        reason: reason.into(),
        ..Default::default()
    };
    let refused = executions.terminate_execution(terminate("")).await;
    assert_refused(refused, Code::InvalidArgument, "FIELD_INVALID", &["reason"]);
    let ended = executions.terminate_execution(terminate("enough")).await.expect("it is open");
    assert_eq!(ended.into_inner().state(), v1::ExecutionState::Terminated);
    let request =
        v1::CancelExecutionRequest { execution_id: execution_id.clone(), ..Default::default() };
    let (code, reason, _) = refusal(executions.cancel_execution(request).await);
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "EXECUTION_ENDED"));
    let retry = |step: &str| v1::RetryCompensationRequest {
        execution_id: execution_id.clone(),
        step_path: step.into(),
        ..Default::default()
    };
    let refused = executions.retry_compensation(retry("nosuch")).await;
    assert_refused(refused, Code::NotFound, "STEP_NOT_FOUND", &["step_path"]);
    let refused = executions.retry_compensation(retry("charge")).await;
    assert_refused(refused, Code::FailedPrecondition, "COMPENSATION_NOT_PARKED", &[]);
}

#[tokio::test]
async fn list_filters_by_namespace_error_type_and_state() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let failed = server.failed_execution().await;
    let open = server.begin("order").await;
    let list = async |namespace: &str, error_type: &str, states: Vec<i32>| {
        let request = v1::ListExecutionsRequest {
            namespace: namespace.into(),
            filter: Some(v1::ExecutionFilter {
                error_type: error_type.into(),
                states,
                ..Default::default()
            }),
            ..Default::default()
        };
        let listed = server.executions().list_executions(request).await.expect("a page");
        let ids = listed.into_inner().executions.into_iter().map(|info| info.execution_id);
        ids.collect::<Vec<_>>()
    };
    assert_eq!(list("", "", vec![]).await, [open.clone(), failed.clone()]);
    assert_eq!(list("*", "", vec![]).await, [open.clone(), failed.clone()]);
    assert_eq!(list("other.*", "", vec![]).await, [] as [String; 0]);
    assert_eq!(list("", "payment.*", vec![]).await, [&*failed]);
    assert_eq!(list("", "*", vec![]).await, [&*failed]);
    assert_eq!(list("", "stock", vec![]).await, [] as [String; 0]);
    let running = v1::ExecutionState::Running.into();
    assert_eq!(list("", "", vec![running]).await, [open]);
}

#[tokio::test]
async fn validation_reports_retry_delays_and_the_definition_reads_back_unchanged() {
    let server = Server::start().await;
    let text = "name: slow\nsteps:\n- id: s\n  task: {type: t}\n  retry: {constant: {interval: 3s}, max_attempts: 3}\n";
    let source = v1::DefinitionSource { text: text.into(), ..Default::default() };
    let workflow = Some(v1::validate_workflow_request::Workflow::Source(source));
    let request = v1::ValidateWorkflowRequest { workflow, ..Default::default() };
    let answer = server.workflows().validate_workflow(request).await.expect("it answers");
    let answer = answer.into_inner();
    assert!(answer.valid, "{:?}", answer.issues);
    let waits: Vec<_> = answer.schedules[0].delays.iter().map(|delay| delay.seconds).collect();
    assert_eq!(waits, [3, 3]);

    assert_eq!(server.register(text).await, 1);
    assert_eq!(server.register(text).await, 1, "an equal definition gets no new version");
    assert_eq!(server.register(&text.replace("3s", "4s")).await, 2);
    let request =
        v1::GetWorkflowRequest { name: "slow".into(), version: Some(1), ..Default::default() };
    let got = server.workflows().get_workflow(request).await.expect("it exists").into_inner();
    assert_eq!(got.workflow.and_then(|version| version.definition), answer.definition);
}

#[tokio::test]
async fn health_reports_not_serving_once_the_server_shuts_down() {
    let server = Server::start().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(server.channel.clone());
    let request = tonic_health::pb::HealthCheckRequest::default();
    let mut watch = health.watch(request).await.expect("it is served").into_inner();
    let serving = i32::from(tonic_health::ServingStatus::Serving as u8);
    loop {
        let next = watch.message().await.expect("the stream is open").expect("a status");
        if next.status == serving {
            break;
        }
    }
    server.shutdown.send_replace(true);
    let next = watch.message().await.expect("the stream is open").expect("a status");
    assert_ne!(next.status, serving, "a stopping server takes no new work");
}

#[tokio::test]
async fn long_history_is_listed_to_its_end_over_several_store_reads() {
    const ATTEMPTS: u32 = 230;
    let server = Server::start().await;
    let retry = format!("retry: {{constant: {{interval: 1ms}}, max_attempts: {ATTEMPTS}}}");
    server
        .register(&format!("name: stubborn\nsteps:\n- {{id: a, task: {{type: t}}, {retry}}}\n"))
        .await;
    let id = server.begin("stubborn").await;
    for attempt in 1..=ATTEMPTS {
        let task = server.poll().await;
        assert_eq!(task.attempt, attempt);
        let error = v1::Error { r#type: "test.again".into(), ..Default::default() };
        let decision = server.fail(&task, error).await.expect("it is open").decision;
        let verdict = decision.expect("it was decided just now").verdict();
        assert_eq!(verdict == v1::RetryVerdict::Stop, attempt == ATTEMPTS);
    }
    let mut failed = Vec::new();
    let mut page_token = String::new();
    loop {
        let execution_id = id.clone();
        let request = v1::ListExecutionHistoryRequest { execution_id, page_size: 99, page_token };
        let page = server.executions().list_execution_history(request).await.expect("a page");
        let page = page.into_inner();
        failed.extend(page.entries.into_iter().filter_map(|entry| match entry.event {
            Some(v1::history_entry::Event::AttemptFailed(failed)) => Some(failed.attempt),
            _ => None,
        }));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert!(failed.into_iter().eq(1..=ATTEMPTS));
}

/// The attempts that a history has scheduled, as `(step, compensation, attempt, most attempts)`.
async fn scheduled(server: &Server, id: &str) -> Vec<(String, bool, u32, u32)> {
    let request =
        v1::ListExecutionHistoryRequest { execution_id: id.to_owned(), ..Default::default() };
    let history = server.executions().list_execution_history(request).await.expect("a page");
    let scheduled =
        history.into_inner().entries.into_iter().filter_map(|entry| match entry.event {
            Some(v1::history_entry::Event::AttemptScheduled(scheduled)) => {
                let step = scheduled.step.expect("it is always set");
                Some((step.step_path, step.compensation, scheduled.attempt, scheduled.max_attempts))
            }
            _ => None,
        });
    scheduled.collect()
}

#[tokio::test]
async fn history_records_the_attempt_limit_of_each_step() {
    let server = Server::start().await;
    let text = "
name: limits
defaults: {retry: {max_attempts: 7, constant: {interval: 1ms}}}
steps:
- id: inherits
  task: {type: t}
  compensate: {task: {type: u}, retry: {max_attempts: 2}}
- {id: own, task: {type: t}, retry: {max_attempts: 3}}
- {id: unlimited, task: {type: t}, retry: {max_duration: 1h}}
- {id: fails, task: {type: t}, retry: {max_attempts: 1}}
finally:
- {id: last, task: {type: t}}
";
    server.register(text).await;
    let id = server.begin("limits").await;
    for _ in 0..3 {
        let task = server.poll().await;
        server.complete(&task, "1").await.expect("it is open");
    }
    let task = server.poll().await;
    server.fail(&task, permanent("test.over")).await.expect("it is open");
    for _ in 0..2 {
        let task = server.poll().await;
        server.complete(&task, "1").await.expect("it is open");
    }
    assert_eq!(server.outcome(&id).await.state(), v1::ExecutionState::Failed);
    let row = |step: &str, compensation, max| (step.to_owned(), compensation, 1, max);
    let expected = [
        row("inherits", false, 7),
        row("own", false, 3),
        row("unlimited", false, 0),
        row("fails", false, 1),
        row("inherits", true, 2),
        row("last", false, 7),
    ];
    assert_eq!(scheduled(&server, &id).await, expected);
}
