//! Connections for the tests. They use the generated clients and nothing of the SDK.

use std::time::Duration;

use recoup_proto::v1::admin_service_client::AdminServiceClient;
use recoup_proto::v1::execution_service_client::ExecutionServiceClient;
use recoup_proto::v1::failure_service_client::FailureServiceClient;
use recoup_proto::v1::namespace_service_client::NamespaceServiceClient;
use recoup_proto::v1::payload::Content;
use recoup_proto::v1::worker_service_client::WorkerServiceClient;
use recoup_proto::v1::workflow_service_client::WorkflowServiceClient;
use recoup_proto::v1::{DefinitionSource, RegisterWorkflowRequest, register_workflow_request};
use recoup_proto::v1::{Payload, WorkflowVersion};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The largest message that the tests accept, in bytes.
const MESSAGE_MAX: usize = 64 << 20;

/// A channel to a server. It connects on first use, and reconnects after the connection broke.
pub fn channel(url: &str) -> Channel {
    let endpoint = Endpoint::from_shared(url.to_owned()).expect("the test made the address");
    endpoint
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .connect_lazy()
}

pub fn admin(channel: Channel) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(channel)
}

pub fn executions(channel: Channel) -> ExecutionServiceClient<Channel> {
    ExecutionServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX)
}

pub fn failures(channel: Channel) -> FailureServiceClient<Channel> {
    FailureServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX)
}

pub fn namespaces(channel: Channel) -> NamespaceServiceClient<Channel> {
    NamespaceServiceClient::new(channel)
}

pub fn workers(channel: Channel) -> WorkerServiceClient<Channel> {
    WorkerServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX)
}

pub fn workflows(channel: Channel) -> WorkflowServiceClient<Channel> {
    WorkflowServiceClient::new(channel)
}

/// JSON text as a payload.
pub fn json(value: &serde_json::Value) -> Payload {
    Payload { content: Some(Content::Json(value.to_string())), ..Payload::default() }
}

/// The JSON value in a payload, or null if there is no payload.
///
/// # Panics
///
/// If the payload holds anything other than JSON. The tests send nothing else.
pub fn value(payload: Option<&Payload>) -> serde_json::Value {
    match payload.and_then(|payload| payload.content.as_ref()) {
        None => serde_json::Value::Null,
        Some(Content::Json(text)) => serde_json::from_str(text).expect("the payload is JSON"),
        Some(other) => panic!("neither JSON nor empty: {other:?}"),
    }
}

/// Registers a workflow, given as YAML, in the namespace `default`.
///
/// # Panics
///
/// If the server refuses it.
pub async fn register(channel: Channel, yaml: &str) -> WorkflowVersion {
    let source = DefinitionSource { text: yaml.to_owned(), ..DefinitionSource::default() };
    let request = RegisterWorkflowRequest {
        workflow: Some(register_workflow_request::Workflow::Source(source)),
        ..RegisterWorkflowRequest::default()
    };
    let answer = workflows(channel).register_workflow(request).await;
    let answer = answer.expect("the definition is correct").into_inner();
    WorkflowVersion { name: answer.name, version: answer.version, ..WorkflowVersion::default() }
}

/// The `reason` of the `google.rpc.ErrorInfo` in a refusal. Empty if it has none.
pub fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// Whether the client should repeat the call with the same request id: the server is unreachable, is shutting
/// down, or does not know whether the call took effect. A refusal for any other reason is final.
pub fn passes_by_itself(status: &Status) -> bool {
    match reason(status).as_str() {
        "" => {
            !matches!(status.code(), Code::InvalidArgument | Code::NotFound | Code::AlreadyExists)
        }
        "STORE_UNAVAILABLE" | "OUTCOME_UNKNOWN" | "SHUTTING_DOWN" | "OVERLOADED" => true,
        _ => false,
    }
}
