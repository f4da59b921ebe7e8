//! Answers that would exceed the size limit of a message.

use recoup_proto::v1::{self, payload::Content};

use crate::server::{Server, TaskStream, completed, json, permanent, session};

const MIB: usize = 1 << 20;
const MESSAGE_BYTES_MAX: usize = 4 * MIB;

/// A JSON text of exactly this many bytes.
fn text(bytes: usize) -> v1::Payload {
    json(&format!("\"{}\"", "x".repeat(bytes - 2)))
}

async fn read(server: &Server, payload: &v1::Payload) -> v1::Payload {
    let Some(Content::Reference(reference)) = &payload.content else {
        return payload.clone();
    };
    let request = v1::ReadPayloadRequest { payload_id: reference.payload_id.clone() };
    let response = server.failures().read_payload(request).await.expect("it is kept");
    response.into_inner().payload.expect("always set")
}

fn is_reference(payload: &v1::Payload) -> bool {
    matches!(payload.content, Some(Content::Reference(_)))
}

async fn get(server: &Server, execution_id: &str) -> v1::ExecutionInfo {
    let request = v1::GetExecutionRequest { execution_id: execution_id.to_owned() };
    let response = server.executions().get_execution(request).await.expect("it fits");
    let response = response.into_inner();
    assert!(prost::Message::encoded_len(&response) <= MESSAGE_BYTES_MAX);
    response.execution.expect("always set")
}

#[tokio::test]
async fn execution_too_large_for_a_message_is_returned_with_output_references() {
    let server = Server::start().await;
    server
        .register(
            "name: big\nsteps:\n- {id: a, task: {type: t}}\n- {id: b, task: {type: t}}\n- {id: c, task: {type: t}}\n",
        )
        .await;
    let id = server.begin("big").await;
    let outputs = [1, 2, 3].map(|more| text(19 * MIB / 10 + more));
    let mut stream = TaskStream::open(&server, session("s"), 3).await;
    for output in &outputs {
        let task = stream.task().await;
        stream.send(vec![completed(&task, output.clone())]).await;
        assert_eq!(stream.ack().await.reason(), v1::ErrorReason::Unspecified);
    }
    let outcome = server.outcome(&id).await;
    assert_eq!(outcome.output.as_ref(), Some(&outputs[2]), "never a reference");
    let info = get(&server, &id).await;
    assert_eq!(info.output.as_ref(), Some(&outputs[2]), "payloads that fit are inline");
    let steps: Vec<_> = info.completed_steps.iter().map(|step| &step.output).collect();
    assert_eq!(steps.len(), 3);
    for (step, output) in steps.into_iter().zip(&outputs) {
        let step = step.as_ref().expect("it completed");
        assert!(is_reference(step));
        assert_eq!(&read(&server, step).await, output);
    }
}

const UNDONE: &str = "
name: undone
steps:
- {id: a, task: {type: t}, compensate: {task: {type: undo, input: '${steps.a.output}'}}}
- {id: b, task: {type: t}}
";

/// Starts an execution whose compensation gets the output twice: as its input, and as the output of the step
/// that it undoes.
async fn undone(server: &Server, output: &v1::Payload) -> String {
    let id = server.begin("undone").await;
    let task = server.poll().await;
    let request = v1::CompleteTaskRequest {
        task_token: task.task_token.clone(),
        output: Some(output.clone()),
    };
    server.workers().complete_task(request).await.expect("it is open");
    let task = server.poll().await;
    server.fail(&task, permanent("a.b")).await.expect("it is open");
    id
}

#[tokio::test]
async fn oversized_compensation_task_references_the_output_of_the_step_it_undoes() {
    let server = Server::start().await;
    server.register(UNDONE).await;
    for (bytes, referred) in [(MIB, false), (2 * MIB, true)] {
        let output = text(bytes);
        for by_stream in [false, true] {
            let id = undone(&server, &output).await;
            let mut stream = None;
            let task = match by_stream {
                false => server.poll().await,
                true => {
                    let opened = TaskStream::open(&server, session("s"), 1).await;
                    stream.insert(opened).task().await
                }
            };
            assert_eq!(task.input.as_ref(), Some(&output), "the input is never a reference");
            let compensation = task.compensation.as_ref().expect("it undoes a step");
            let undone = compensation.step_output.as_ref().expect("the step completed");
            assert_eq!(is_reference(undone), referred);
            assert_eq!(read(&server, undone).await, output);
            server.complete(&task, "1").await.expect("it is open");
            let outcome = server.outcome(&id).await;
            assert_eq!(outcome.compensation_state(), v1::CompensationState::Done);
        }
    }
}

#[tokio::test]
async fn errors_too_large_for_a_message_are_abridged_but_whole_in_the_history() {
    const STEPS: usize = 80;
    let server = Server::start().await;
    let step = |n| format!("- {{id: s{n}, task: {{type: t}}, on_error: IGNORE}}\n");
    let steps: String = (0..STEPS).map(step).collect();
    server.register(&format!("name: noisy\nsteps:\n{steps}")).await;
    let id = server.begin("noisy").await;
    let message = "m".repeat(60_000);
    for _ in 0..STEPS {
        let task = server.poll().await;
        let error = v1::Error { message: message.clone(), ..permanent("a.b") };
        server.fail(&task, error).await.expect("it is open");
    }
    let check = |warnings: &[v1::Warning]| {
        assert_eq!(warnings.len(), STEPS);
        let errors = warnings.iter().map(|warning| warning.error.as_ref().expect("an error"));
        let whole = errors.clone().filter(|error| !error.abridged);
        assert!(whole.clone().all(|error| error.message == message));
        assert!((50..STEPS).contains(&whole.count()), "errors that fit are whole");
        let mut abridged = errors.filter(|error| error.abridged);
        assert!(abridged.all(|error| error.r#type == "a.b" && error.non_retryable()));
    };
    check(&server.outcome(&id).await.warnings);
    check(&get(&server, &id).await.warnings);
    let (mut page_token, mut whole) = (String::new(), 0);
    loop {
        let execution_id = id.clone();
        let request =
            v1::ListExecutionHistoryRequest { execution_id, page_size: 1_000, page_token };
        let page = server.executions().list_execution_history(request).await.expect("it fits");
        let page = page.into_inner();
        whole += page.entries.iter().filter(|entry| is_whole(entry, &message)).count();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(whole, STEPS);
}

fn is_whole(entry: &v1::HistoryEntry, message: &str) -> bool {
    match &entry.event {
        Some(v1::history_entry::Event::StepIgnored(ignored)) => {
            ignored.error.as_ref().is_some_and(|error| error.message == message)
        }
        _ => false,
    }
}

#[tokio::test]
async fn a_page_of_a_list_ends_before_it_exceeds_a_message() {
    const NAMESPACES: usize = 1_000;
    let server = Server::start().await;
    let create = |n: usize| {
        let request = v1::CreateNamespaceRequest {
            namespace: Some(v1::Namespace {
                name: format!("{}{n:04}", "n".repeat(120)),
                description: "d".repeat(4 * 1024),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut namespaces = server.namespaces();
        async move { namespaces.create_namespace(request).await.expect("it is new") }
    };
    for n in 0..NAMESPACES {
        create(n).await;
    }
    let (mut page_token, mut pages, mut listed) = (String::new(), 0, 0);
    loop {
        let request =
            v1::ListNamespacesRequest { page_size: 1_000, page_token, ..Default::default() };
        let page = server.namespaces().list_namespaces(request).await.expect("it fits");
        let page = page.into_inner();
        (pages, listed) = (pages + 1, listed + page.namespaces.len());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((pages, listed), (2, NAMESPACES + 1), "with `default`");
}
