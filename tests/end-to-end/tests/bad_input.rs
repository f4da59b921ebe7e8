//! Sends everything that must be refused to the binary as it is shipped. Each refusal has a canonical code, a
//! reason and the path of the field, and the server keeps working.

use std::time::Duration;

use recoup_end_to_end::connect;
use recoup_end_to_end::refusal::{RefusedCall, assert_refused};
use recoup_end_to_end::server::{Folder, Server};
use recoup_proto::v1;
use recoup_proto::v1::register_workflow_request::Workflow;
use serde_json::json;
use tonic::Code;
use tonic::transport::Channel;

const NO_ID: &str = "0199aaaa-0000-7000-8000-000000000000";
const ONE_STEP: &str = "name: one\nsteps:\n- {id: only, task: {type: work}}\n";
const ONE_ATTEMPT: &str =
    "name: once\ndefaults: {retry: {max_attempts: 1}}\nsteps:\n- {id: only, task: {type: work}}\n";

/// A server with workflows of one step.
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
        connect::register(channel.clone(), ONE_STEP).await;
        connect::register(channel.clone(), ONE_ATTEMPT).await;
        Self { server, channel, _folder: folder }
    }

    async fn begin(&self, workflow: &str) -> String {
        let mut client = connect::executions(self.channel.clone());
        let answer = client.start_execution(start(workflow, "")).await.expect("it starts");
        answer.into_inner().execution_id
    }

    async fn poll(&self) -> v1::Task {
        let request = v1::PollTasksRequest {
            wait: Some(Duration::from_secs(20).into()),
            ..Default::default()
        };
        let polled = connect::workers(self.channel.clone()).poll_tasks(request).await;
        polled.expect("it polls").into_inner().tasks.pop().expect("a task waits")
    }

    async fn complete(&self, task: &v1::Task, output: v1::Payload) -> Result<(), tonic::Status> {
        let (task_token, output) = (task.task_token.clone(), Some(output));
        let request = v1::CompleteTaskRequest { task_token, output };
        connect::workers(self.channel.clone()).complete_task(request).await.map(|_| ())
    }

    async fn fail(&self, task: &v1::Task, error: v1::Error) -> Result<(), tonic::Status> {
        let (task_token, error) = (task.task_token.clone(), Some(error));
        let request = v1::FailTaskRequest { task_token, error };
        connect::workers(self.channel.clone()).fail_task(request).await.map(|_| ())
    }

    async fn outcome(&self, execution_id: &str) -> v1::Outcome {
        let wait = Some(Duration::from_secs(30).into());
        let request = v1::AwaitExecutionRequest { execution_id: execution_id.into(), wait };
        let answer = connect::executions(self.channel.clone()).await_execution(request).await;
        match answer.expect("it exists").into_inner().result {
            Some(v1::await_execution_response::Result::Ended(outcome)) => outcome,
            other => panic!("{execution_id} has not ended: {other:?}"),
        }
    }

    /// Checks that the original server process is still running and that it executes a workflow.
    async fn assert_still_serves(mut self) {
        assert!(self.server.process.is_alive(), "{}", self.server.process.log());
        let execution = self.begin("one").await;
        loop {
            let task = self.poll().await;
            let is_ours = task.execution_id == execution;
            self.complete(&task, connect::json(&json!(7))).await.expect("it is open");
            if is_ours {
                break;
            }
        }
        assert_eq!(connect::value(self.outcome(&execution).await.output.as_ref()), json!(7));
        let log = self.server.process.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

fn start(workflow: &str, request_id: &str) -> v1::StartExecutionRequest {
    let execution = Some(v1::ExecutionSpec { workflow: workflow.into(), ..Default::default() });
    v1::StartExecutionRequest { execution, request_id: request_id.into() }
}

fn definition(text: &str) -> v1::RegisterWorkflowRequest {
    let source = v1::DefinitionSource { text: text.into(), ..Default::default() };
    v1::RegisterWorkflowRequest { workflow: Some(Workflow::Source(source)), ..Default::default() }
}

fn large() -> v1::Payload {
    connect::json(&json!("x".repeat(2 << 20)))
}

#[tokio::test]
async fn invalid_definitions_are_rejected_with_a_reason_and_a_field() {
    let site = Site::start("definitions").await;
    let mut client = connect::workflows(site.channel.clone());
    let step = "name: a\nsteps:\n- id: s\n  task: {type: t}\n";
    let tasks = "steps:\n".to_owned() + &"- {id: s, task: {type: t}}\n".repeat(1001);
    for (text, reason, field) in [
        ("name: a\nstepz: []\n".to_owned(), "DEFINITION_INVALID", "stepz"),
        (format!("{step}  tsak: {{type: t}}\n"), "DEFINITION_INVALID", "steps[0].tsak"),
        ("name: a\nsteps: []\n".to_owned(), "DEFINITION_INVALID", "steps"),
        ("name: a\nsteps:\n- id: s\n".to_owned(), "DEFINITION_INVALID", "steps[0].task"),
        (
            "name: a\nsteps:\n- {id: s, task: {type: ''}}\n".to_owned(),
            "DEFINITION_INVALID",
            "steps[0].task.type",
        ),
        (format!("{step}  when: '1 +'\n"), "EXPRESSION_INVALID", "steps[0].when"),
        (format!("{step}  when: steps.nosuch.output\n"), "EXPRESSION_INVALID", "steps[0].when"),
        (
            format!("{step}  retry: {{max_attempts: 0}}\n"),
            "RETRY_POLICY_INVALID",
            "steps[0].retry.max_attempts",
        ),
        (
            format!("{step}  retry: {{constant: {{interval: 1h}}, max_duration: 1m}}\n"),
            "RETRY_POLICY_INVALID",
            "steps[0].retry.max_duration",
        ),
        (format!("name: a\n{tasks}"), "DEFINITION_TOO_LARGE", "steps"),
        ("x: ".to_owned() + &"y".repeat(1 << 20), "DEFINITION_TOO_LARGE", ""),
    ] {
        let refused = client.register_workflow(definition(&text)).await;
        let refusal = RefusedCall::of(&refused.expect_err("the definition is invalid"));
        let first = refusal.fields.first().map(String::as_str);
        let found = (refusal.code, refusal.reason.as_str(), first);
        assert_eq!(found, (Code::InvalidArgument, reason, Some(field)), "{text:.100}: {refusal:?}");
    }
    site.assert_still_serves().await;
}

#[tokio::test]
async fn unknown_names_are_rejected_and_a_task_without_a_worker_waits() {
    let site = Site::start("unknown").await;
    let mut executions = connect::executions(site.channel.clone());
    let mut request = start("one", "");
    request.execution =
        request.execution.map(|spec| v1::ExecutionSpec { namespace: "nosuch".into(), ..spec });
    let refused = executions.start_execution(request).await;
    assert_refused(refused, Code::NotFound, "NAMESPACE_NOT_FOUND", &[]);
    let refused = executions.start_execution(start("nosuch", "")).await;
    assert_refused(refused, Code::NotFound, "WORKFLOW_NOT_FOUND", &[]);
    for (execution_id, code, reason, fields) in [
        (NO_ID, Code::NotFound, "EXECUTION_NOT_FOUND", &[][..]),
        ("no id", Code::InvalidArgument, "FIELD_INVALID", &["execution_id"]),
        ("", Code::InvalidArgument, "FIELD_INVALID", &["execution_id"]),
    ] {
        let request = v1::GetExecutionRequest { execution_id: execution_id.into() };
        assert_refused(executions.get_execution(request).await, code, reason, fields);
    }
    let execution_id = site.begin("one").await;
    let request = v1::SkipCompensationRequest {
        execution_id,
        step_path: "nosuch".into(),
        reason: "to see".into(),
        ..Default::default()
    };
    let refused = executions.skip_compensation(request).await;
    assert_refused(refused, Code::NotFound, "STEP_NOT_FOUND", &["step_path"]);
    let request = v1::GetFailureRequest { id: "nosuch".into() };
    let refused = connect::failures(site.channel.clone()).get_failure(request).await;
    assert_refused(refused, Code::NotFound, "FAILURE_NOT_FOUND", &[]);

    // A task whose type no worker serves waits; the server does not hand it to workers of other types.
    let (task_types, wait) = (vec!["other".into()], Some(Duration::from_millis(300).into()));
    let request = v1::PollTasksRequest { task_types, wait, ..Default::default() };
    let polled = connect::workers(site.channel.clone()).poll_tasks(request).await;
    assert_eq!(polled.expect("it polls").into_inner().tasks, Vec::new());
    site.assert_still_serves().await;
}

#[tokio::test]
async fn oversized_payloads_errors_and_messages_are_rejected() {
    let site = Site::start("large").await;
    let mut request = start("one", "");
    let input = Some(large());
    request.execution = request.execution.map(|spec| v1::ExecutionSpec { input, ..spec });
    let refused = connect::executions(site.channel.clone()).start_execution(request).await;
    let fields = ["execution.input"];
    assert_refused(refused, Code::InvalidArgument, "PAYLOAD_TOO_LARGE", &fields);

    let execution = site.begin("once").await;
    let task = site.poll().await;
    let refused = site.complete(&task, large()).await;
    assert_refused(refused, Code::InvalidArgument, "PAYLOAD_TOO_LARGE", &["output"]);
    let outcome = site.outcome(&execution).await;
    assert_eq!(outcome.error.expect("it failed").r#type, "recoup.payload_too_large");

    let execution = site.begin("once").await;
    let task = site.poll().await;
    let error = v1::Error { stack_trace: "x".repeat(65 << 10), ..Default::default() };
    let refused = site.fail(&task, error).await;
    assert_refused(refused, Code::InvalidArgument, "ERROR_TOO_LARGE", &["error"]);
    let outcome = site.outcome(&execution).await;
    assert_eq!(outcome.state(), v1::ExecutionState::Failed);

    // The message exceeds what the transport accepts.
    let mut request = start("one", "");
    let input = Some(connect::json(&json!("x".repeat(5 << 20))));
    request.execution = request.execution.map(|spec| v1::ExecutionSpec { input, ..spec });
    let refused = connect::executions(site.channel.clone()).start_execution(request).await;
    assert_eq!(refused.expect_err("it is too large").code(), Code::OutOfRange);
    site.assert_still_serves().await;
}

#[tokio::test]
async fn bad_page_tokens_reused_request_ids_and_foreign_cursors_are_rejected() {
    let site = Site::start("tokens").await;
    let other = Site::start("tokens-of-another").await;
    let mut executions = connect::executions(site.channel.clone());
    let request = v1::ListExecutionsRequest { page_token: "garbage".into(), ..Default::default() };
    let refused = executions.list_executions(request).await;
    assert_refused(refused, Code::InvalidArgument, "PAGE_TOKEN_INVALID", &["page_token"]);

    executions.start_execution(start("one", "again")).await.expect("it starts");
    let mut with_input = start("one", "again");
    let input = Some(connect::json(&json!(1)));
    with_input.execution = with_input.execution.map(|spec| v1::ExecutionSpec { input, ..spec });
    let refused = executions.start_execution(with_input).await;
    assert_refused(refused, Code::AlreadyExists, "REQUEST_ID_REUSED", &["request_id"]);

    let mut failures = connect::failures(site.channel.clone());
    let pull = |cursor: &str| v1::PullFailuresRequest {
        start: Some(v1::pull_failures_request::Start::Cursor(cursor.into())),
        wait: Some(Duration::ZERO.into()),
        ..Default::default()
    };
    let refused = failures.pull_failures(pull("garbage")).await;
    assert_refused(refused, Code::InvalidArgument, "CURSOR_INVALID", &["cursor"]);
    let mut others = connect::failures(other.channel.clone());
    let now = v1::PullFailuresRequest { wait: Some(Duration::ZERO.into()), ..Default::default() };
    let foreign = others
        .pull_failures(now)
        .await
        .expect("a pull from now gives a cursor")
        .into_inner()
        .cursor;
    let refused = failures.pull_failures(pull(&foreign)).await;
    assert_refused(refused, Code::FailedPrecondition, "CURSOR_FOREIGN", &["cursor"]);
    others.pull_failures(pull(&foreign)).await.expect("the cursor is valid on its own server");
    other.assert_still_serves().await;
    site.assert_still_serves().await;
}

#[tokio::test]
async fn an_acknowledgement_after_its_deadline_is_reported_as_expired() {
    let site = Site::start("expired-ack").await;
    let mut failures = connect::failures(site.channel.clone());
    let subscription = v1::Subscription {
        name: "slow".into(),
        ack_deadline: Some(Duration::from_secs(1).into()),
        window: 1,
        ..Default::default()
    };
    let request =
        v1::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
    failures.create_subscription(request).await.expect("it is new");
    site.begin("once").await;
    let task = site.poll().await;
    site.fail(&task, v1::Error::default()).await.expect("it is open");

    let named = v1::SubscriptionRef { name: "slow".into(), ..Default::default() };
    let pull = v1::PullFailuresRequest {
        start: Some(v1::pull_failures_request::Start::Subscription(named.clone())),
        wait: Some(Duration::from_secs(20).into()),
        ..Default::default()
    };
    let mut deliveries = Vec::new();
    for _ in 0..2 {
        let pulled = failures.pull_failures(pull.clone()).await.expect("it pulls").into_inner();
        deliveries.push(pulled.deliveries.into_iter().next().expect("an event is there"));
    }
    assert_eq!(deliveries[0].event, deliveries[1].event);
    assert_eq!((deliveries[0].delivery, deliveries[1].delivery), (1, 2));
    let mut ack_tokens: Vec<String> =
        deliveries.into_iter().map(|delivery| delivery.ack_token).collect();
    ack_tokens.push("garbage".into());
    let request = v1::AckFailuresRequest { subscription: Some(named), ack_tokens };
    let acked = failures.ack_failures(request).await.expect("each is answered").into_inner();
    let reasons: Vec<v1::ErrorReason> = acked.results.iter().map(v1::AckResult::reason).collect();
    let wanted = [
        v1::ErrorReason::AckExpired,
        v1::ErrorReason::Unspecified,
        v1::ErrorReason::AckTokenInvalid,
    ];
    assert_eq!(reasons, wanted);
    site.assert_still_serves().await;
}

#[tokio::test]
async fn second_and_late_results_are_rejected_as_attempt_closed() {
    let site = Site::start("stale").await;
    let execution = site.begin("one").await;
    let task = site.poll().await;
    site.complete(&task, connect::json(&json!(1))).await.expect("it is open");
    let late = site.fail(&task, v1::Error::default()).await;
    assert_refused(late, Code::FailedPrecondition, "ATTEMPT_CLOSED", &[]);
    let output = site.outcome(&execution).await.output;
    assert_eq!(connect::value(output.as_ref()), json!(1));

    let garbage = v1::Task { task_token: vec![1, 2, 3].into(), ..Default::default() };
    let refused = site.complete(&garbage, connect::json(&json!(1))).await;
    assert_refused(refused, Code::InvalidArgument, "TASK_TOKEN_INVALID", &["task_token"]);

    let short = "name: short\ndefaults: {retry: {max_attempts: 1}, start_to_close: 200ms}\n\
                 steps:\n- {id: only, task: {type: work}}\n";
    connect::register(site.channel.clone(), short).await;
    let execution = site.begin("short").await;
    let task = site.poll().await;
    let outcome = site.outcome(&execution).await;
    assert_eq!(outcome.error.expect("it failed").r#type, "recoup.timeout.start_to_close");
    let late = site.complete(&task, connect::json(&json!(1))).await;
    assert_refused(late, Code::FailedPrecondition, "ATTEMPT_CLOSED", &[]);
    site.assert_still_serves().await;
}
