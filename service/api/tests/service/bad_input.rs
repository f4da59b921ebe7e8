//! Invalid input of every kind: the answer has a canonical code, a reason and a field path, nothing panics and
//! nothing is lost.

use recoup_proto::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::server::{
    ORDER, PATIENCE, Server, TaskStream, assert_refused, completed, json, permanent, refusal,
    session, source, spec, start,
};

const NO_ID: &str = "0199aaaa-0000-7000-8000-000000000000";

#[tokio::test]
async fn invalid_definitions_are_rejected_with_reason_and_field() {
    let server = Server::start().await;
    let step = "steps:\n- id: s\n  task: {type: t}\n";
    for (text, reason, field) in [
        ("name: a\nstepz: []\n".to_owned(), "DEFINITION_INVALID", "stepz"),
        ("name: a\nsteps: []\n".to_owned(), "DEFINITION_INVALID", "steps"),
        ("name: a\nsteps:\n- id: s\n".to_owned(), "DEFINITION_INVALID", "steps[0].task"),
        (format!("name: a\n{step}  when: nosuch.x > 1\n"), "EXPRESSION_INVALID", "steps[0].when"),
        (format!("name: a\n{step}  when: '1 +'\n"), "EXPRESSION_INVALID", "steps[0].when"),
        (
            format!("name: a\n{step}  retry: {{max_attempts: 0}}\n"),
            "RETRY_POLICY_INVALID",
            "steps[0].retry.max_attempts",
        ),
        (
            format!("name: a\n{step}  retry: {{exponential: {{backoff_coefficient: 0.5}}}}\n"),
            "RETRY_POLICY_INVALID",
            "steps[0].retry.exponential.backoff_coefficient",
        ),
        ("x: ".to_owned() + &"y".repeat(1 << 20), "DEFINITION_TOO_LARGE", ""),
    ] {
        let refused = server.workflows().register_workflow(source(&text)).await;
        let (code, own, fields) = refusal(refused);
        assert_eq!((code, own.as_str()), (Code::InvalidArgument, reason), "{text:.80}");
        assert_eq!(fields.first().map(String::as_str), Some(field), "{text:.80}");
    }
    let request = v1::RegisterWorkflowRequest::default();
    let nothing = server.workflows().register_workflow(request).await;
    assert_refused(nothing, Code::InvalidArgument, "FIELD_INVALID", &["workflow"]);
}

/// Checks that a refusal is about this one field, and that its message names the unknown value.
fn assert_unknown_value<T: std::fmt::Debug>(
    refused: Result<T, tonic::Status>,
    reason: &str,
    field: &str,
) {
    let message = refused.as_ref().expect_err(field).message().to_owned();
    assert_refused(refused, Code::InvalidArgument, reason, &[field]);
    assert_eq!(message, format!("{field}: 99 is not a value that this server knows"));
}

#[tokio::test]
async fn unknown_enum_values_are_rejected_instead_of_defaulted() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let task = v1::TaskStep { r#type: "t".into(), ..Default::default() };
    let step = || v1::Step {
        id: "s".into(),
        kind: Some(v1::step::Kind::Task(task.clone())),
        ..Default::default()
    };
    let delivery = v1::TaskStep { delivery: 99, ..task.clone() };
    let delivery = v1::Step { kind: Some(v1::step::Kind::Task(delivery)), ..step() };
    let retry = Some(v1::RetryPolicy { match_on: 99, ..Default::default() });
    for (field, step) in [
        ("steps[0].on_error", v1::Step { on_error: 99, ..step() }),
        ("steps[0].task.delivery", delivery),
        ("steps[0].retry.match_on", v1::Step { retry, ..step() }),
    ] {
        use v1::register_workflow_request::Workflow;
        let name = "a".to_owned();
        let definition = v1::WorkflowDefinition { name, steps: vec![step], ..Default::default() };
        let workflow = Some(Workflow::Definition(definition));
        let request = v1::RegisterWorkflowRequest { workflow, ..Default::default() };
        let refused = server.workflows().register_workflow(request).await;
        assert_unknown_value(refused, "DEFINITION_INVALID", field);
    }
    let mut request = source(ORDER);
    let Some(v1::register_workflow_request::Workflow::Source(text)) = &mut request.workflow else {
        panic!("`source` sets the text of a definition");
    };
    text.format = 99;
    let refused = server.workflows().register_workflow(request).await;
    assert_unknown_value(refused, "FIELD_INVALID", "source.format");

    for (field, spec) in [
        ("execution.on_running", v1::ExecutionSpec { on_running: 99, ..spec("order") }),
        ("execution.on_ended", v1::ExecutionSpec { on_ended: 99, ..spec("order") }),
    ] {
        let request = v1::StartExecutionRequest { execution: Some(spec), ..Default::default() };
        let refused = server.executions().start_execution(request).await;
        assert_unknown_value(refused, "FIELD_INVALID", field);
    }
    for (field, filter) in [
        ("filter.states[0]", v1::ExecutionFilter { states: vec![99], ..Default::default() }),
        (
            "filter.compensation_states[1]",
            v1::ExecutionFilter { compensation_states: vec![1, 99], ..Default::default() },
        ),
    ] {
        let request = v1::ListExecutionsRequest { filter: Some(filter), ..Default::default() };
        let refused = server.executions().list_executions(request).await;
        assert_unknown_value(refused, "FIELD_INVALID", field);
    }
    let filter = Some(v1::FailureFilter { kinds: vec![99], ..Default::default() });
    let request = v1::ListFailuresRequest { filter, ..Default::default() };
    let refused = server.failures().list_failures(request).await;
    assert_unknown_value(refused, "FIELD_INVALID", "filter.kinds[0]");
    let start = Some(v1::pull_failures_request::Start::Position(99));
    let request = v1::PullFailuresRequest { start, ..Default::default() };
    assert_unknown_value(
        server.failures().pull_failures(request).await,
        "FIELD_INVALID",
        "position",
    );
}

#[tokio::test]
async fn unknown_names_and_ids_are_not_found() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let mut executions = server.executions();
    let unknown = executions.start_execution(start("nosuch", "")).await;
    assert_refused(unknown, Code::NotFound, "WORKFLOW_NOT_FOUND", &[]);
    let mut request = start("order", "");
    request.execution = Some(v1::ExecutionSpec { namespace: "nosuch".into(), ..spec("order") });
    let unknown = executions.start_execution(request).await;
    assert_refused(unknown, Code::NotFound, "NAMESPACE_NOT_FOUND", &[]);
    let mut request = start("order", "");
    request.execution = Some(v1::ExecutionSpec { workflow_version: Some(9), ..spec("order") });
    let unknown = executions.start_execution(request).await;
    assert_refused(unknown, Code::NotFound, "WORKFLOW_VERSION_NOT_FOUND", &[]);

    let id = || NO_ID.to_owned();
    let get = executions.get_execution(v1::GetExecutionRequest { execution_id: id() }).await;
    assert_refused(get, Code::NotFound, "EXECUTION_NOT_FOUND", &[]);
    let request = v1::CancelExecutionRequest { execution_id: id(), ..Default::default() };
    let cancel = executions.cancel_execution(request).await;
    assert_refused(cancel, Code::NotFound, "EXECUTION_NOT_FOUND", &[]);
    let request = v1::ListExecutionHistoryRequest { execution_id: id(), ..Default::default() };
    let history = executions.list_execution_history(request).await;
    assert_refused(history, Code::NotFound, "EXECUTION_NOT_FOUND", &[]);
    let request = v1::GetExecutionRequest { execution_id: "garbage".into() };
    let garbage = executions.get_execution(request).await;
    assert_refused(garbage, Code::InvalidArgument, "FIELD_INVALID", &["execution_id"]);

    let name = || "nosuch".to_owned();
    let request = v1::GetNamespaceRequest { name: name() };
    let namespace = server.namespaces().get_namespace(request).await;
    assert_refused(namespace, Code::NotFound, "NAMESPACE_NOT_FOUND", &[]);
    let request = v1::GetFailureRequest { id: name() };
    let failure = server.failures().get_failure(request).await;
    assert_refused(failure, Code::NotFound, "FAILURE_NOT_FOUND", &[]);
    let request = v1::ReadPayloadRequest { payload_id: name() };
    let payload = server.failures().read_payload(request).await;
    assert_refused(payload, Code::NotFound, "PAYLOAD_NOT_FOUND", &[]);
    let reference = v1::SubscriptionRef { name: name(), ..Default::default() };
    let request = v1::GetSubscriptionRequest { subscription: Some(reference) };
    let subscription = server.failures().get_subscription(request).await;
    assert_refused(subscription, Code::NotFound, "SUBSCRIPTION_NOT_FOUND", &[]);
    let poll = v1::PollTasksRequest { namespace: name(), ..Default::default() };
    let poll = server.workers().poll_tasks(poll).await;
    assert_refused(poll, Code::NotFound, "NAMESPACE_NOT_FOUND", &[]);
}

#[tokio::test]
async fn retired_workflow_starts_no_execution_until_registered_again() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let id = server.begin("order").await;
    let request = v1::RetireWorkflowRequest { name: "order".into(), ..Default::default() };
    let retired = server.workflows().retire_workflow(request.clone()).await.expect("it exists");
    let again = server.workflows().retire_workflow(request).await.expect("it is idempotent");
    assert_eq!(retired.into_inner().retired_at, again.into_inner().retired_at);
    let refused = server.executions().start_execution(start("order", "")).await;
    assert_refused(refused, Code::FailedPrecondition, "WORKFLOW_RETIRED", &[]);
    let mut request = start("order", "");
    request.execution = Some(v1::ExecutionSpec { workflow_version: Some(1), ..spec("order") });
    let refused = server.executions().start_execution(request).await;
    assert_refused(refused, Code::FailedPrecondition, "WORKFLOW_RETIRED", &[]);
    // Executions that are already running continue.
    let task = server.poll().await;
    server.complete(&task, "1").await.expect("it is open");
    assert_eq!(server.outcome(&id).await.state(), v1::ExecutionState::Succeeded);
    assert_eq!(server.register(ORDER).await, 2);
    server.begin("order").await;
}

#[tokio::test]
async fn oversized_input_is_rejected_and_oversized_result_fails_the_execution() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let input = Some(json(&"1".repeat((2 << 20) + 1)));
    let mut request = start("order", "");
    request.execution = Some(v1::ExecutionSpec { input, ..spec("order") });
    let refused = server.executions().start_execution(request).await;
    let field = ["execution.input"];
    assert_refused(refused, Code::InvalidArgument, "PAYLOAD_TOO_LARGE", &field);

    // A result that is too large is reported, never dropped: the attempt fails with an error type for this
    // case.
    let id = server.begin("order").await;
    let task = server.poll().await;
    let refused = server.complete(&task, &"1".repeat((2 << 20) + 1)).await;
    assert_refused(refused, Code::InvalidArgument, "PAYLOAD_TOO_LARGE", &["output"]);
    let outcome = server.outcome(&id).await;
    assert_eq!(outcome.state(), v1::ExecutionState::Failed);
    assert_eq!(outcome.error.expect("an error is set").r#type, "recoup.payload_too_large");

    let id = server.begin("order").await;
    let task = server.poll().await;
    let stack_trace = "x".repeat(65 * 1024);
    let error = v1::Error { r#type: "big.bang".into(), stack_trace, ..Default::default() };
    let refused = server.fail(&task, error).await;
    assert_refused(refused, Code::InvalidArgument, "ERROR_TOO_LARGE", &["error"]);
    let error = server.outcome(&id).await.error.expect("an error is set");
    assert_eq!(error.r#type, "recoup.payload_too_large");
    assert!(error.message.contains("big.bang"), "{}", error.message);
}

#[tokio::test]
async fn request_id_reused_with_another_body_is_rejected() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let mut executions = server.executions();
    let first = executions.start_execution(start("order", "r1")).await.expect("it starts");
    let again = executions.start_execution(start("order", "r1")).await.expect("it repeats");
    assert_eq!(first.into_inner(), again.into_inner());
    let mut other = start("order", "r1");
    other.execution = Some(v1::ExecutionSpec { input: Some(json("2")), ..spec("order") });
    let refused = executions.start_execution(other).await;
    let (code, reason, _) = refusal(refused);
    assert_eq!((code, reason.as_str()), (Code::AlreadyExists, "REQUEST_ID_REUSED"));

    let execution_id = server.begin("order").await;
    let cancel = |reason: &str| v1::CancelExecutionRequest {
        execution_id: execution_id.clone(),
        reason: reason.into(),
        request_id: "c1".into(),
    };
    executions.cancel_execution(cancel("a")).await.expect("it is open");
    executions.cancel_execution(cancel("a")).await.expect("it repeats");
    let (code, reason, _) = refusal(executions.cancel_execution(cancel("b")).await);
    assert_eq!((code, reason.as_str()), (Code::AlreadyExists, "REQUEST_ID_REUSED"));

    let namespace = |retention| v1::CreateNamespaceRequest {
        namespace: Some(v1::Namespace {
            name: "team".into(),
            retention: Some(std::time::Duration::from_secs(retention).into()),
            ..Default::default()
        }),
        request_id: "n1".into(),
    };
    let mut namespaces = server.namespaces();
    let first = namespaces.create_namespace(namespace(600)).await.expect("it is new");
    let again = namespaces.create_namespace(namespace(600)).await.expect("it repeats");
    assert_eq!(first.into_inner(), again.into_inner());
    let (code, reason, _) = refusal(namespaces.create_namespace(namespace(700)).await);
    assert_eq!((code, reason.as_str()), (Code::AlreadyExists, "REQUEST_ID_REUSED"));
    let unnamed = v1::CreateNamespaceRequest { request_id: String::new(), ..namespace(600) };
    let taken = namespaces.create_namespace(unnamed).await;
    assert_refused(taken, Code::AlreadyExists, "NAMESPACE_EXISTS", &[]);
}

/// Without the refusal, such a pattern would silently match nothing.
#[tokio::test]
async fn error_type_patterns_that_cannot_match_are_rejected() {
    let server = Server::start().await;
    for pattern in ["a b", "a..b", "*.a", "a*", "a\0", "recoup.nosuch", &"a".repeat(256)] {
        let filter = v1::ExecutionFilter { error_type: pattern.into(), ..Default::default() };
        let request = v1::ListExecutionsRequest { filter: Some(filter), ..Default::default() };
        let refused = server.executions().list_executions(request).await;
        let field = &["filter.error_type"][..];
        assert_refused(refused, Code::InvalidArgument, "FIELD_INVALID", field);
    }
    let patterns = ["a.b", "a b"].map(str::to_owned).to_vec();
    let filter = Some(v1::FailureFilter { error_types: patterns, ..Default::default() });
    let field = &["filter.error_types[1]"][..];
    let request = v1::ListFailuresRequest { filter: filter.clone(), ..Default::default() };
    let refused = server.failures().list_failures(request).await;
    assert_refused(refused, Code::InvalidArgument, "FIELD_INVALID", field);
    let request = v1::PullFailuresRequest { filter, ..Default::default() };
    let refused = server.failures().pull_failures(request).await;
    assert_refused(refused, Code::InvalidArgument, "FIELD_INVALID", field);
}

#[tokio::test]
async fn page_token_of_another_query_is_rejected() {
    let server = Server::start().await;
    server.register(ORDER).await;
    server.begin("order").await;
    server.begin("order").await;
    let mut executions = server.executions();
    let list = |filter: &str, page_token: &str| v1::ListExecutionsRequest {
        filter: Some(v1::ExecutionFilter { workflow: filter.into(), ..Default::default() }),
        page_size: 1,
        page_token: page_token.into(),
        ..Default::default()
    };
    let first = executions.list_executions(list("order", "")).await.expect("a page").into_inner();
    assert_eq!(first.executions.len(), 1);
    let token = first.next_page_token;
    let second = executions.list_executions(list("order", &token)).await.expect("the next page");
    assert_ne!(second.into_inner().executions, first.executions);
    for request in [list("other", &token), list("order", "garbage"), list("order", &token[2..])] {
        let refused = executions.list_executions(request).await;
        assert_refused(refused, Code::InvalidArgument, "PAGE_TOKEN_INVALID", &["page_token"]);
    }
    let request = v1::ListFailuresRequest { page_token: token, ..Default::default() };
    let refused = server.failures().list_failures(request).await;
    assert_refused(refused, Code::InvalidArgument, "PAGE_TOKEN_INVALID", &["page_token"]);
}

#[tokio::test]
async fn cursor_of_another_store_is_rejected() {
    let (server, other) = (Server::start().await, Server::start().await);
    let cursor = |cursor: &str| {
        let start = v1::pull_failures_request::Start::Cursor(cursor.into());
        let wait = Some(std::time::Duration::ZERO.into());
        v1::PullFailuresRequest { start: Some(start), wait, ..Default::default() }
    };
    let refused = server.failures().pull_failures(cursor("garbage")).await;
    assert_refused(refused, Code::InvalidArgument, "CURSOR_INVALID", &["cursor"]);
    let wait = Some(std::time::Duration::ZERO.into());
    let request = v1::PullFailuresRequest { wait, ..Default::default() };
    let foreign =
        other.failures().pull_failures(request).await.expect("a pull from now").into_inner().cursor;
    let refused = server.failures().pull_failures(cursor(&foreign)).await;
    assert_refused(refused, Code::FailedPrecondition, "CURSOR_FOREIGN", &["cursor"]);
    other.failures().pull_failures(cursor(&foreign)).await.expect("the cursor is its own");
}

#[tokio::test]
async fn late_results_and_garbage_task_tokens_are_rejected() {
    let server = Server::start().await;
    server.register(ORDER).await;
    server.begin("order").await;
    let task = server.poll().await;
    server.complete(&task, "1").await.expect("it is open");
    // The server accepts the same result again or calls the attempt closed. It never accepts a different
    // result.
    let late = server.fail(&task, permanent("a.b")).await;
    assert_refused(late, Code::FailedPrecondition, "ATTEMPT_CLOSED", &[]);

    let garbage = v1::Task { task_token: vec![1, 2, 3].into(), ..Default::default() };
    let refused = server.complete(&garbage, "1").await;
    assert_refused(refused, Code::InvalidArgument, "TASK_TOKEN_INVALID", &["task_token"]);

    let mut stream = TaskStream::open(&server, session("s1"), 0).await;
    let results = vec![completed(&garbage, json("1")), completed(&task, json("2"))];
    stream.send(results).await;
    let mut reasons = Vec::new();
    while reasons.len() < 2 {
        let response = stream.next().await.expect("the stream is open");
        reasons.extend(response.acks.iter().map(v1::ResultAck::reason));
    }
    assert!(reasons.contains(&v1::ErrorReason::TaskTokenInvalid), "{reasons:?}");
    assert!(reasons.contains(&v1::ErrorReason::AttemptClosed), "{reasons:?}");
}

#[tokio::test]
async fn garbage_on_the_port_neither_hangs_nor_breaks_the_server() {
    let server = Server::start().await;
    let uri = server.address;
    for garbage in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0xff; 4096][..], b"PRI * HTTP/2.0\r\n"] {
        let mut socket = tokio::net::TcpStream::connect(uri).await.expect("it listens");
        socket.write_all(garbage).await.expect("it is sent");
        socket.shutdown().await.expect("it is closed");
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
        // The server must answer or close the connection, but not hang.
        let _ = read.expect("the server answers or closes the connection");
    }
    server.register(ORDER).await;
}

#[tokio::test]
async fn invalid_json_in_inputs_results_and_error_details_is_rejected() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let input = Some(json("{\"a\": nope}"));
    let spec = v1::ExecutionSpec { input, ..spec("order") };
    let request = v1::StartExecutionRequest { execution: Some(spec), ..Default::default() };
    let refused = server.executions().start_execution(request).await;
    let message = refused.as_ref().expect_err("it is not JSON").message().to_owned();
    assert_refused(refused, Code::InvalidArgument, "PAYLOAD_INVALID", &["execution.input"]);
    assert!(message.ends_with("at byte 7"), "{message}");

    let id = server.begin("order").await;
    let mut stream = TaskStream::open(&server, session("s"), 1).await;
    let task = stream.task().await;
    let refused = server.complete(&task, "1, 2").await;
    assert_refused(refused, Code::InvalidArgument, "PAYLOAD_INVALID", &["output"]);
    stream.send(vec![completed(&task, json("{"))]).await;
    let ack = stream.ack().await;
    assert_eq!(ack.reason(), v1::ErrorReason::PayloadInvalid);
    assert!(ack.message.ends_with("at byte 1"), "{}", ack.message);
    let details = v1::Error { details: Some(json("'a'")), ..permanent("a.b") };
    let refused = server.fail(&task, details).await;
    assert_refused(refused, Code::InvalidArgument, "PAYLOAD_INVALID", &["error"]);
    server.complete(&task, "1").await.expect("the attempt is open");
    assert_eq!(server.outcome(&id).await.state(), v1::ExecutionState::Succeeded);
}
