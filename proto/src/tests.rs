//! What holds for the whole package.

use prost::Message;
use prost_types::FileDescriptorSet;

use crate::v1::{
    Error, ExecutionInfo, ExecutionState, FailureEvent, FailureKind, Payload, StreamTasksRequest,
    Task, TaskResult, payload, task_result,
};
use crate::{Duration, FILE_DESCRIPTOR_SET, Timestamp};

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the build wrote it")
}

#[test]
fn reflection_knows_every_service_and_what_the_files_import() {
    let set = descriptors();
    let services: Vec<_> =
        set.file.iter().flat_map(|file| &file.service).map(|service| service.name()).collect();
    for name in ["Execution", "Failure", "Namespace", "Worker", "Workflow"] {
        assert!(services.contains(&format!("{name}Service").as_str()), "{services:?}");
    }
    let files: Vec<_> = set.file.iter().map(|file| file.name()).collect();
    for dependency in set.file.iter().flat_map(|file| &file.dependency) {
        assert!(files.contains(&dependency.as_str()), "{dependency}");
    }
}

/// protoc-gen-go refuses a file without `go_package`.
#[test]
fn every_file_says_where_its_generated_code_goes() {
    let set = descriptors();
    let own: Vec<_> = set.file.iter().filter(|file| file.package() == "recoup.v1").collect();
    assert!(own.len() >= 12, "{} files", own.len());
    for file in own {
        let options = file.options.as_ref().expect("it has options");
        let name = file.name();
        assert_eq!(options.go_package(), "recoup/v1;recoupv1", "{name}");
        assert_eq!(options.java_package(), "recoup.v1", "{name}");
        assert!(options.java_multiple_files(), "{name}");
        assert_eq!(options.csharp_namespace(), "Recoup.V1", "{name}");
    }
}

/// The tag of a field numbered below 16 is one byte.
#[test]
fn hot_messages_are_small() {
    let token = vec![7; 40];
    let payload = Payload {
        content: Some(payload::Content::Json("{\"ok\":true}".to_owned())),
        ..Payload::default()
    };
    let result = TaskResult {
        task_token: token.into(),
        result: Some(task_result::Result::Completed(payload)),
    };
    let message = StreamTasksRequest { credit: 1, results: vec![result], ..Default::default() };
    // Token 42, payload 2 + 13, result 2, credit 2.
    assert_eq!(message.encoded_len(), 61);
}

#[test]
fn every_message_has_the_json_form_of_proto3() {
    let info = ExecutionInfo {
        execution_id: "x".to_owned(),
        state: ExecutionState::TimedOut.into(),
        started_at: Some(Timestamp { seconds: 1, nanos: 500_000_000 }),
        ..Default::default()
    };
    let json = serde_json::to_value(&info).expect("it has a JSON form");
    assert_eq!(
        json,
        serde_json::json!({
            "executionId": "x",
            "state": "EXECUTION_STATE_TIMED_OUT",
            "startedAt": "1970-01-01T00:00:01.500+00:00",
        })
    );

    let event = FailureEvent {
        kind: FailureKind::AttemptFailed.into(),
        history_sequence: u64::MAX,
        error: Some(Error {
            r#type: "a.b".to_owned(),
            non_retryable: Some(false),
            next_retry_delay: Some(Duration { seconds: 2, nanos: 0 }),
            cause: Some(Box::new(Error { r#type: "c".to_owned(), ..Default::default() })),
            ..Default::default()
        }),
        ..Default::default()
    };
    let json = serde_json::to_value(&event).expect("it has a JSON form");
    assert_eq!(json["historySequence"], "18446744073709551615");
    assert_eq!(json["error"]["nextRetryDelay"], "2s");
    assert_eq!(json["error"]["nonRetryable"], false);
    assert_eq!(json["error"]["cause"]["type"], "c");
    assert_eq!(serde_json::from_value::<FailureEvent>(json).ok(), Some(event));
}

#[test]
fn enum_values_are_read_with_or_without_prefix_or_as_numbers() {
    for text in ["\"TIMED_OUT\"", "\"EXECUTION_STATE_TIMED_OUT\"", "9"] {
        let state: ExecutionState = serde_json::from_str(text).expect("each names the same");
        assert_eq!(state, ExecutionState::TimedOut, "{text}");
    }
    for text in ["\"timed_out\"", "\"\"", "12", "-1", "true", "4294967305"] {
        assert!(serde_json::from_str::<ExecutionState>(text).is_err(), "{text}");
    }
}

/// A start that is repeated is compared by its bytes.
#[test]
fn messages_encode_the_same_each_time() {
    let metadata = || (0..50).map(|number| (format!("k{number}"), String::new())).collect();
    let encode = || {
        let input = Payload { metadata: metadata(), ..Default::default() };
        Task { input: Some(input), ..Default::default() }.encode_to_vec()
    };
    assert_eq!(encode(), encode());
    assert!(encode().windows(2).any(|pair| pair == b"k9"));
}

const CLIENTS: &str = include_str!("../../docs/clients.md");

/// Unary calls and streams that a client repeats in its own loop.
const OWN_LOOP: [&str; 4] = ["PollTasks", "StreamTasks", "PullFailures", "SubscribeFailures"];

#[test]
fn the_documented_service_config_names_every_method_once_or_says_why_not() {
    let block = CLIENTS.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
    let config: serde_json::Value =
        serde_json::from_str(block.expect("the page has a config")).expect("it is JSON");
    let entry = &config["methodConfig"][0];
    let mut named = Vec::new();
    for name in entry["name"].as_array().expect("a list of names") {
        let service = name["service"].as_str().expect("each has a service");
        named.push((service.to_owned(), name["method"].as_str().map(str::to_owned)));
    }
    let set = descriptors();
    for file in &set.file {
        for service in &file.service {
            let whole = format!("{}.{}", file.package(), service.name());
            for method in &service.method {
                let is_named = |(own, name): &&(String, Option<String>)| {
                    *own == whole && name.as_deref().is_none_or(|name| name == method.name())
                };
                let times = named.iter().filter(is_named).count();
                let in_a_loop = OWN_LOOP.contains(&method.name());
                assert_eq!(times, usize::from(!in_a_loop), "{whole}/{}", method.name());
                if in_a_loop {
                    let told = format!("`{}.{}`", service.name(), method.name());
                    assert!(CLIENTS.contains(&told), "{told} is not explained");
                }
                assert!(in_a_loop || !method.server_streaming(), "{whole}/{}", method.name());
            }
        }
    }
    for (service, method) in named {
        let known = set.file.iter().flat_map(|file| {
            file.service.iter().map(move |own| (format!("{}.{}", file.package(), own.name()), own))
        });
        let found = known.into_iter().find(|(name, _)| *name == service);
        let (_, found) = found.unwrap_or_else(|| panic!("there is no service {service}"));
        let exists = |name: &String| found.method.iter().any(|own| own.name() == name);
        assert!(method.as_ref().is_none_or(exists), "there is no {service}/{method:?}");
    }
    // What gRFC A6 asks of a policy.
    let policy = &entry["retryPolicy"];
    assert!((2..=5).contains(&policy["maxAttempts"].as_u64().expect("a number")));
    assert!(policy["backoffMultiplier"].as_f64().is_some_and(|factor| factor > 0.0));
    for wait in ["initialBackoff", "maxBackoff"] {
        let seconds = policy[wait].as_str().and_then(|text| text.strip_suffix('s'));
        assert!(seconds.is_some_and(|text| text.parse::<f64>().is_ok()), "{wait}");
    }
    let codes = &policy["retryableStatusCodes"];
    assert_eq!(*codes, serde_json::json!(["UNAVAILABLE", "RESOURCE_EXHAUSTED"]));
}
