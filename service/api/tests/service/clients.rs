//! Features that clients in other languages and general tools rely on: reflection, compression, trailers.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::FileDescriptorProto;
use recoup_proto::v1::execution_service_client::ExecutionServiceClient;
use recoup_proto::v1::{self, register_workflow_request::Workflow};
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::server::{ORDER, Server, TaskStream, completed, json, session, spec};

/// The symbols that grpcurl and similar tools look up to display a refusal, and one of our own services.
const SYMBOLS: [&str; 6] = [
    "recoup.v1.ExecutionService",
    "grpc.health.v1.Health",
    "google.rpc.Status",
    "google.rpc.ErrorInfo",
    "google.rpc.BadRequest",
    "google.rpc.RetryInfo",
];

/// Asks one version of the reflection service about a symbol or a file, and returns the file's descriptor.
macro_rules! describe {
    ($version:ident, $channel:expr, $request:ident($name:expr)) => {{
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
        let message_request = Some(MessageRequest::$request($name.to_owned()));
        let request = tonic_reflection::pb::$version::ServerReflectionRequest {
            message_request,
            ..Default::default()
        };
        let mut client = ServerReflectionClient::new($channel);
        let answers = client.server_reflection_info(tokio_stream::iter([request])).await;
        let mut answers = answers.expect("reflection is there").into_inner();
        let answer = answers.message().await.expect("it answers").expect("it answers each request");
        match answer.message_response {
            Some(MessageResponse::FileDescriptorResponse(files)) => {
                let file = files.file_descriptor_proto[0].as_slice();
                FileDescriptorProto::decode(file).expect("it is a descriptor")
            }
            other => panic!("{} is not known: {other:?}", $name),
        }
    }};
}

#[tokio::test]
async fn both_reflection_versions_describe_the_error_detail_types() {
    let server = Server::start().await;
    for symbol in SYMBOLS {
        let own = describe!(v1, server.channel.clone(), FileContainingSymbol(symbol));
        let older = describe!(v1alpha, server.channel.clone(), FileContainingSymbol(symbol));
        assert_eq!(own, older, "{symbol}");
        let mut seen = BTreeSet::new();
        let mut open = own.dependency;
        while let Some(file) = open.pop() {
            if seen.insert(file.clone()) {
                let file = describe!(v1alpha, server.channel.clone(), FileByFilename(file));
                open.extend(file.dependency);
            }
        }
    }
}

fn compressing(server: &Server) -> ExecutionServiceClient<Channel> {
    ExecutionServiceClient::new(server.channel.clone())
        .max_encoding_message_size(64 << 20)
        .send_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Gzip)
}

fn start_with(bytes: usize) -> v1::StartExecutionRequest {
    let input = Some(json(&format!("\"{}\"", "x".repeat(bytes))));
    let execution = Some(v1::ExecutionSpec { input, ..spec("order") });
    v1::StartExecutionRequest { execution, ..Default::default() }
}

fn encoding<T>(response: &tonic::Response<T>) -> Option<&str> {
    response.metadata().get("grpc-encoding").and_then(|value| value.to_str().ok())
}

#[tokio::test]
async fn only_clients_that_send_gzip_are_answered_in_gzip() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let started = compressing(&server).start_execution(start_with(1 << 20)).await;
    let started = started.expect("it is under the limits");
    assert_eq!(encoding(&started), Some("gzip"));
    let execution_id = started.into_inner().execution_id;
    let request = v1::GetExecutionRequest { execution_id };
    // Accepting gzip does not mean asking for it: some clients always announce that they accept it.
    let mut accepting = server.executions().accept_compressed(CompressionEncoding::Gzip);
    let got = accepting.get_execution(request.clone()).await.expect("it exists");
    assert_eq!(encoding(&got), None);
    let got = compressing(&server).get_execution(request).await.expect("it exists");
    assert_eq!(encoding(&got), Some("gzip"));
}

/// A text of 100 MiB that repeats one letter takes 100 KiB on the wire.
#[tokio::test]
async fn message_size_is_limited_after_decompression() {
    let server = Server::start().await;
    server.register(ORDER).await;
    for bytes in [5 << 20, 63 << 20] {
        let status = compressing(&server).start_execution(start_with(bytes)).await;
        let status = status.expect_err("it is over 4 MiB");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    }
    // A payload over its own limit, in a message under the message limit, is refused like any other invalid
    // input.
    let status = compressing(&server).start_execution(start_with(3 << 20)).await;
    assert_eq!(status.expect_err("it is over 2 MiB").code(), Code::InvalidArgument);
}

#[tokio::test]
async fn stream_and_unary_call_reject_a_result_with_the_same_message() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let mut told = Vec::new();
    let reference = v1::payload::Content::Reference(v1::PayloadReference::default());
    let refused = v1::Payload { content: Some(reference), ..Default::default() };
    for output in [refused, json(&"1".repeat(3 << 20))] {
        for _ in 0..2 {
            server.begin("order").await;
        }
        let mut stream = TaskStream::open(&server, session("s"), 1).await;
        let task = stream.task().await;
        stream.send(vec![completed(&task, output.clone())]).await;
        let ack = stream.ack().await;
        drop(stream);
        let task = server.poll().await;
        let request = v1::CompleteTaskRequest { task_token: task.task_token, output: Some(output) };
        let status = server.workers().complete_task(Request::new(request)).await;
        assert_eq!(ack.message, status.expect_err("it is refused").message());
        assert!(ack.message.starts_with("output: "), "{}", ack.message);
        told.push(ack.reason());
    }
    assert_eq!(told, [v1::ErrorReason::PayloadInvalid, v1::ErrorReason::PayloadTooLarge]);
}

fn definition(input: &str, on_error: v1::OnError) -> v1::WorkflowDefinition {
    let template = |json: &str| Some(v1::Template { json: json.into() });
    let task = v1::TaskStep {
        r#type: "payment.charge".into(),
        input: template(input),
        ..Default::default()
    };
    let compensate = v1::Compensate {
        kind: Some(v1::compensate::Kind::Task(task.clone())),
        ..Default::default()
    };
    let step = v1::Step {
        id: "charge".into(),
        on_error: on_error.into(),
        compensate: Some(compensate),
        kind: Some(v1::step::Kind::Task(task)),
        ..Default::default()
    };
    v1::WorkflowDefinition {
        name: "written".into(),
        output: template(input),
        steps: vec![step],
        ..Default::default()
    }
}

#[tokio::test]
async fn definition_gets_a_new_version_only_if_its_meaning_changes() {
    let server = Server::start().await;
    let register = async |definition: v1::WorkflowDefinition| {
        let workflow = Some(Workflow::Definition(definition));
        let request = v1::RegisterWorkflowRequest { workflow, ..Default::default() };
        let answer = server.workflows().register_workflow(request).await;
        answer.expect("it is valid").into_inner().version
    };
    use v1::OnError;
    let first = r#"{"a": "${input.a}", "b": {"c": 1, "d": [1, 2]}}"#;
    let again = r#"{ "b":{"d":[1,2], "c":1},  "a":"${input.a}" }"#;
    assert_eq!(register(definition(first, OnError::Unspecified)).await, 1);
    assert_eq!(
        register(definition(again, OnError::Unspecified)).await,
        1,
        "the order of keys does not matter"
    );
    assert_eq!(register(definition(first, OnError::Fail)).await, 1, "FAIL is the default");
    let as_file = "
name: written
output: {b: {c: 1, d: [1, 2]}, a: '${input.a}'}
steps:
- id: charge
  task: {type: payment.charge, input: {b: {c: 1, d: [1, 2]}, a: '${input.a}'}}
  compensate: {task: {type: payment.charge, input: {b: {c: 1, d: [1, 2]}, a: '${input.a}'}}}
";
    assert_eq!(server.register(as_file).await, 1, "the file means the same");
    let request = v1::GetWorkflowRequest { name: "written".into(), ..Default::default() };
    let read = server.workflows().get_workflow(request).await.expect("it is registered");
    let read =
        read.into_inner().workflow.expect("it is there").definition.expect("the definition is set");
    assert_eq!(register(read).await, 1, "a definition that is read back is the same version");
    let other = r#"{"a": "${input.a}", "b": {"c": 1, "d": [2, 1]}}"#;
    assert_eq!(
        register(definition(other, OnError::Unspecified)).await,
        2,
        "the order of lists matters"
    );
    assert_eq!(register(definition(other, OnError::Ignore)).await, 3);
}
