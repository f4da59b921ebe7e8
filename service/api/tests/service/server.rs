//! A separate server for each test, and helpers for the calls that tests make.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use recoup_api::ApiOptions;
use recoup_proto::v1::admin_service_client::AdminServiceClient;
use recoup_proto::v1::execution_service_client::ExecutionServiceClient;
use recoup_proto::v1::failure_service_client::FailureServiceClient;
use recoup_proto::v1::namespace_service_client::NamespaceServiceClient;
use recoup_proto::v1::worker_service_client::WorkerServiceClient;
use recoup_proto::v1::workflow_service_client::WorkflowServiceClient;
use recoup_proto::v1::{self, history_entry::Event, register_workflow_request::Workflow};
use recoup_store::Store;
use recoup_store::memory::MemoryStore;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

/// The longest time that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Server {
    pub address: std::net::SocketAddr,
    pub channel: Channel,
    pub shutdown: watch::Sender<bool>,
    /// The services, for calls that need no connection.
    pub routes: Routes,
}

impl Server {
    pub async fn start() -> Self {
        Self::on(Arc::new(MemoryStore::with_system_clock()), |_| {}).await
    }

    /// Starts a server on a store that other servers may share.
    pub async fn on(store: Arc<dyn Store>, set: impl FnOnce(&mut ApiOptions)) -> Self {
        let options = recoup_engine::Options::default();
        let engine = recoup_engine::driver::start(store, options).await.expect("the store is open");
        let (shutdown, stopping) = watch::channel(false);
        let mut options = ApiOptions::new(stopping);
        set(&mut options);
        let routes = recoup_api::router(engine, options);
        let services = routes.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(recoup_api::transport().add_routes(routes).serve_with_incoming(incoming));
        let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
        Self {
            address,
            channel: endpoint.connect().await.expect("it listens"),
            shutdown,
            routes: services,
        }
    }

    pub fn workflows(&self) -> WorkflowServiceClient<Channel> {
        WorkflowServiceClient::new(self.channel.clone())
    }

    pub fn executions(&self) -> ExecutionServiceClient<Channel> {
        ExecutionServiceClient::new(self.channel.clone())
            .max_encoding_message_size(64 << 20)
            .max_decoding_message_size(64 << 20)
    }

    pub fn workers(&self) -> WorkerServiceClient<Channel> {
        WorkerServiceClient::new(self.channel.clone())
    }

    pub fn failures(&self) -> FailureServiceClient<Channel> {
        FailureServiceClient::new(self.channel.clone())
    }

    pub fn namespaces(&self) -> NamespaceServiceClient<Channel> {
        NamespaceServiceClient::new(self.channel.clone())
    }

    pub fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    pub async fn register(&self, text: &str) -> u32 {
        let response = self.workflows().register_workflow(source(text)).await;
        response.expect("a good definition").into_inner().version
    }

    pub async fn begin(&self, workflow: &str) -> String {
        let started = self.executions().start_execution(start(workflow, "")).await;
        started.expect("it starts").into_inner().execution_id
    }

    /// Everything that is known about an execution.
    pub async fn get(&self, execution_id: &str) -> v1::ExecutionInfo {
        let request = v1::GetExecutionRequest { execution_id: execution_id.to_owned() };
        let response = self.executions().get_execution(request).await.expect("it exists");
        response.into_inner().execution.expect("always set")
    }

    /// The events on the first page of a history, of up to 1,000.
    pub async fn history(&self, execution_id: &str) -> Vec<Event> {
        let request = v1::ListExecutionHistoryRequest {
            execution_id: execution_id.to_owned(),
            page_size: 1_000,
            ..v1::ListExecutionHistoryRequest::default()
        };
        let page = self.executions().list_execution_history(request).await.expect("it exists");
        page.into_inner().entries.into_iter().filter_map(|entry| entry.event).collect()
    }

    /// Waits for the end of an execution, and returns its outcome.
    pub async fn outcome(&self, execution_id: &str) -> v1::Outcome {
        use v1::await_execution_response::Result as Outcome;
        let execution_id = execution_id.to_owned();
        let request = v1::AwaitExecutionRequest { execution_id, wait: None };
        let call = self.executions();
        let mut call = call;
        let response = tokio::time::timeout(PATIENCE, call.await_execution(request)).await;
        match response.expect("in time").expect("it exists").into_inner().result {
            Some(Outcome::Ended(outcome)) => outcome,
            other => panic!("it has not ended: {other:?}"),
        }
    }

    /// Polls one task, and fails if there is none.
    pub async fn poll(&self) -> v1::Task {
        let poll = self.workers().poll_tasks(v1::PollTasksRequest::default()).await;
        poll.expect("it polls").into_inner().tasks.pop().expect("a task waits")
    }

    pub async fn complete(&self, task: &v1::Task, output: &str) -> Result<(), Status> {
        let request = v1::CompleteTaskRequest {
            task_token: task.task_token.clone(),
            output: Some(json(output)),
        };
        self.workers().complete_task(request).await.map(drop)
    }

    pub async fn fail(
        &self,
        task: &v1::Task,
        error: v1::Error,
    ) -> Result<v1::FailTaskResponse, Status> {
        let task_token = task.task_token.clone();
        let request = v1::FailTaskRequest { task_token, error: Some(error) };
        Ok(self.workers().fail_task(request).await?.into_inner())
    }

    /// Runs an execution of `order` that fails permanently, and returns its id.
    pub async fn failed_execution(&self) -> String {
        let id = self.begin("order").await;
        let task = self.poll().await;
        self.fail(&task, permanent("payment.declined")).await.expect("it is open");
        assert_eq!(self.outcome(&id).await.state(), v1::ExecutionState::Failed);
        id
    }
}

/// A worker's stream of tasks.
pub struct TaskStream {
    pub requests: mpsc::Sender<v1::StreamTasksRequest>,
    pub responses: Streaming<v1::StreamTasksResponse>,
    /// Tasks and acknowledgements that arrived while the test waited for something else.
    tasks: VecDeque<v1::Task>,
    acks: VecDeque<v1::ResultAck>,
}

impl TaskStream {
    pub async fn open(server: &Server, open: v1::OpenSession, credit: u32) -> Self {
        let (requests, outgoing) = mpsc::channel(16);
        let first = v1::StreamTasksRequest { open: Some(open), credit, ..Default::default() };
        requests.send(first).await.expect("there is room");
        let responses = server.workers().stream_tasks(ReceiverStream::new(outgoing)).await;
        let responses = responses.expect("it opens").into_inner();
        Self { requests, responses, tasks: VecDeque::new(), acks: VecDeque::new() }
    }

    pub async fn next(&mut self) -> Result<v1::StreamTasksResponse, Status> {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        next.expect("in time")?.ok_or_else(|| Status::unknown("the stream ended"))
    }

    /// Reads responses until `wanted` finds something in one, and returns that.
    pub async fn until<T>(
        &mut self,
        mut wanted: impl FnMut(&v1::StreamTasksResponse) -> Option<T>,
    ) -> T {
        loop {
            let response = self.next().await.expect("the stream is open");
            let found = wanted(&response);
            self.tasks.extend(response.tasks);
            self.acks.extend(response.acks);
            if let Some(found) = found {
                return found;
            }
        }
    }

    pub async fn task(&mut self) -> v1::Task {
        loop {
            if let Some(task) = self.tasks.pop_front() {
                return task;
            }
            self.gather().await;
        }
    }

    pub async fn ack(&mut self) -> v1::ResultAck {
        loop {
            if let Some(ack) = self.acks.pop_front() {
                return ack;
            }
            self.gather().await;
        }
    }

    async fn gather(&mut self) {
        self.until(|_| Some(())).await;
    }

    /// How many tasks have arrived that the test has not taken yet.
    pub fn tasks_left(&self) -> usize {
        self.tasks.len()
    }

    pub async fn send(&self, results: Vec<v1::TaskResult>) {
        let request = v1::StreamTasksRequest { results, ..Default::default() };
        self.requests.send(request).await.expect("the stream is open");
    }
}

pub fn session(id: &str) -> v1::OpenSession {
    v1::OpenSession { session_id: id.into(), worker: "w".into(), ..Default::default() }
}

pub fn completed(task: &v1::Task, output: v1::Payload) -> v1::TaskResult {
    let result = Some(v1::task_result::Result::Completed(output));
    v1::TaskResult { task_token: task.task_token.clone(), result }
}

pub const ORDER: &str = "
name: order
steps:
- {id: charge, task: {type: payment.charge}}
";

pub fn source(text: &str) -> v1::RegisterWorkflowRequest {
    let source = v1::DefinitionSource { text: text.into(), ..Default::default() };
    v1::RegisterWorkflowRequest { workflow: Some(Workflow::Source(source)), ..Default::default() }
}

pub fn spec(workflow: &str) -> v1::ExecutionSpec {
    v1::ExecutionSpec { workflow: workflow.into(), ..Default::default() }
}

pub fn start(workflow: &str, request_id: &str) -> v1::StartExecutionRequest {
    v1::StartExecutionRequest { execution: Some(spec(workflow)), request_id: request_id.into() }
}

pub fn json(text: &str) -> v1::Payload {
    let content = Some(v1::payload::Content::Json(text.into()));
    v1::Payload { content, ..Default::default() }
}

pub fn permanent(error_type: &str) -> v1::Error {
    v1::Error { r#type: error_type.into(), non_retryable: Some(true), ..Default::default() }
}

/// The code and reason of a refusal, and the fields that it names.
#[track_caller]
pub fn refusal<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String, Vec<String>) {
    let status = result.expect_err("it is refused");
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
    let violations = details.bad_request().map(|bad| bad.field_violations.clone());
    let fields = violations.unwrap_or_default().into_iter().map(|violation| violation.field);
    (status.code(), reason, fields.collect())
}

#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: Code,
    reason: &str,
    fields: &[&str],
) {
    let (own_code, own_reason, own_fields) = refusal(result);
    assert_eq!((own_code, own_reason.as_str()), (code, reason));
    assert_eq!(own_fields, fields);
}
