//! The failure feed, read by ephemeral readers and by consumers of a durable subscription.

use std::time::Duration;

use recoup_proto::v1;
use tonic::{Code, Streaming};

use crate::server::{ORDER, PATIENCE, Server, assert_refused, completed, json, permanent, session};
use crate::server::{TaskStream, refusal};

type Responses = Streaming<v1::SubscribeFailuresResponse>;

fn reference(name: &str) -> v1::SubscriptionRef {
    v1::SubscriptionRef { name: name.into(), ..Default::default() }
}

async fn create(server: &Server, subscription: v1::Subscription) -> v1::Subscription {
    let request =
        v1::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
    let created = server.failures().create_subscription(request).await.expect("it is new");
    created.into_inner().subscription.expect("always set")
}

fn pull_request(name: &str, wait: Duration) -> v1::PullFailuresRequest {
    let start = v1::pull_failures_request::Start::Subscription(reference(name));
    v1::PullFailuresRequest { start: Some(start), wait: Some(wait.into()), ..Default::default() }
}

async fn pull(server: &Server, name: &str, wait: Duration) -> Vec<v1::FailureDelivery> {
    let pulled = server.failures().pull_failures(pull_request(name, wait)).await;
    pulled.expect("it exists").into_inner().deliveries
}

async fn ack(server: &Server, name: &str, token: &str) -> v1::ErrorReason {
    let ack_tokens = vec![token.to_owned()];
    let request = v1::AckFailuresRequest { subscription: Some(reference(name)), ack_tokens };
    let acked = server.failures().ack_failures(request).await.expect("it exists").into_inner();
    acked.results[0].reason()
}

async fn subscribe(server: &Server, request: v1::SubscribeFailuresRequest) -> Responses {
    server.failures().subscribe_failures(request).await.expect("it streams").into_inner()
}

async fn next(responses: &mut Responses) -> v1::SubscribeFailuresResponse {
    let next = tokio::time::timeout(PATIENCE, responses.message()).await.expect("in time");
    next.expect("the stream is open").expect("the stream is open")
}

async fn delivered(responses: &mut Responses, count: usize) -> Vec<v1::FailureDelivery> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(next(responses).await.deliveries);
    }
    all
}

fn kinds(deliveries: &[v1::FailureDelivery]) -> Vec<v1::FailureKind> {
    let kinds = deliveries.iter().map(|delivery| delivery.event.as_ref().expect("an event").kind());
    kinds.collect()
}

fn execution(delivery: &v1::FailureDelivery) -> &str {
    &delivery.event.as_ref().expect("an event").execution_id
}

#[tokio::test]
async fn ephemeral_reader_starts_from_now_a_cursor_or_the_beginning() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let mut now = subscribe(&server, v1::SubscribeFailuresRequest::default()).await;
    assert!(!next(&mut now).await.cursor.is_empty(), "the first message has a cursor");
    let first = server.failed_execution().await;
    let live = delivered(&mut now, 2).await;
    assert_eq!(kinds(&live), [v1::FailureKind::StepFailed, v1::FailureKind::ExecutionFailed]);
    assert!(live.iter().all(|delivery| execution(delivery) == first));
    let event = live[0].event.as_ref().expect("an event");
    assert_eq!(event.error.as_ref().expect("an error is set").r#type, "payment.declined");
    assert_eq!((event.step_path.as_str(), event.attempt, event.max_attempts), ("charge", 1, 5));

    let start = v1::subscribe_failures_request::Start::Cursor(live[0].cursor.clone());
    let request = v1::SubscribeFailuresRequest { start: Some(start), ..Default::default() };
    let mut resumed = subscribe(&server, request).await;
    let resumed = delivered(&mut resumed, 1).await;
    assert_eq!(resumed[0].event, live[1].event);

    let beginning = v1::FeedPosition::Beginning.into();
    let start = v1::subscribe_failures_request::Start::Position(beginning);
    let filter = v1::FailureFilter {
        kinds: vec![v1::FailureKind::ExecutionFailed.into()],
        error_types: vec!["payment".into()],
        ..Default::default()
    };
    let request = v1::SubscribeFailuresRequest {
        start: Some(start),
        filter: Some(filter),
        ..Default::default()
    };
    let mut filtered = subscribe(&server, request).await;
    let filtered = delivered(&mut filtered, 1).await;
    assert_eq!(filtered[0].event, live[1].event);
}

#[tokio::test]
async fn failure_events_can_be_listed_and_read_by_id() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let execution_id = server.failed_execution().await;
    server.failed_execution().await;
    let request = v1::ListFailuresRequest { execution_id, page_size: 1, ..Default::default() };
    let first = server.failures().list_failures(request.clone()).await.expect("a page");
    let first = first.into_inner();
    assert_eq!(first.failures[0].kind(), v1::FailureKind::ExecutionFailed, "latest first");
    let request = v1::ListFailuresRequest { page_token: first.next_page_token, ..request };
    let second = server.failures().list_failures(request).await.expect("a page").into_inner();
    assert_eq!(second.failures[0].kind(), v1::FailureKind::StepFailed);
    let id = second.failures[0].id.clone();
    let found = server.failures().get_failure(v1::GetFailureRequest { id }).await;
    let found = found.expect("it exists").into_inner();
    assert_eq!(found.failure.as_ref(), Some(&second.failures[0]));
    // The answer's cursor is one from which a reader can continue.
    let start = v1::pull_failures_request::Start::Cursor(found.cursor);
    let request = v1::PullFailuresRequest { start: Some(start), ..Default::default() };
    let pulled = server.failures().pull_failures(request).await.expect("a cursor").into_inner();
    assert_eq!(pulled.deliveries[0].event, Some(first.failures[0].clone()));
}

#[tokio::test]
async fn durable_subscription_redelivers_until_the_event_is_acknowledged() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let kinds = vec![v1::FailureKind::ExecutionFailed.into()];
    let filter = Some(v1::FailureFilter { kinds, ..Default::default() });
    let ack_deadline = Some(Duration::from_secs(1).into());
    let wanted =
        v1::Subscription { name: "ops".into(), filter, ack_deadline, ..Default::default() };
    let created = create(&server, wanted.clone()).await;
    assert_eq!(create(&server, wanted.clone()).await, created, "a repetition changes nothing");
    let other = v1::Subscription { window: 5, ..wanted };
    let request = v1::CreateSubscriptionRequest { subscription: Some(other), ..Default::default() };
    let refused = server.failures().create_subscription(request).await;
    assert_refused(refused, Code::AlreadyExists, "SUBSCRIPTION_EXISTS", &[]);

    let id = server.failed_execution().await;
    let first = pull(&server, "ops", PATIENCE).await;
    assert_eq!((first.len(), execution(&first[0]), first[0].delivery), (1, id.as_str(), 1));
    // An unacknowledged event is redelivered after its deadline, and its previous token is then void.
    let again = pull(&server, "ops", PATIENCE).await;
    assert_eq!((execution(&again[0]), again[0].delivery), (id.as_str(), 2));
    assert_eq!(ack(&server, "ops", &first[0].ack_token).await, v1::ErrorReason::AckExpired);
    let nack = v1::FailureNack { ack_token: again[0].ack_token.clone(), delay: None };
    let request =
        v1::NackFailuresRequest { subscription: Some(reference("ops")), nacks: vec![nack] };
    server.failures().nack_failures(request).await.expect("it exists");
    let third = pull(&server, "ops", PATIENCE).await;
    assert_eq!(third[0].delivery, 3);
    for _ in 0..2 {
        let reason = ack(&server, "ops", &third[0].ack_token).await;
        assert_eq!(reason, v1::ErrorReason::Unspecified, "a repeated ack is accepted");
    }
    assert_eq!(ack(&server, "ops", "garbage").await, v1::ErrorReason::AckTokenInvalid);
    let empty = pull(&server, "ops", Duration::from_millis(1_500)).await;
    assert_eq!(empty, [], "an acknowledged event is never redelivered");

    create(&server, v1::Subscription { name: "other".into(), ..Default::default() }).await;
    let foreign = ack(&server, "other", &third[0].ack_token).await;
    assert_eq!(foreign, v1::ErrorReason::AckTokenInvalid);
}

#[tokio::test]
async fn subscription_stream_has_one_consumer_a_window_and_ends_on_deletion() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let wanted = v1::Subscription { name: "ops".into(), window: 1, ..Default::default() };
    create(&server, wanted).await;
    let start = v1::subscribe_failures_request::Start::Subscription(reference("ops"));
    let request = v1::SubscribeFailuresRequest {
        start: Some(start),
        consumer: "one".into(),
        ..Default::default()
    };
    let mut stream = subscribe(&server, request.clone()).await;
    next(&mut stream).await;
    let two = v1::SubscribeFailuresRequest { consumer: "two".into(), ..request.clone() };
    let refused = server.failures().subscribe_failures(two).await.map(drop);
    assert_refused(refused, Code::FailedPrecondition, "SUBSCRIPTION_IN_USE", &[]);
    let pulled = server.failures().pull_failures(pull_request("ops", Duration::ZERO)).await;
    assert_refused(pulled, Code::FailedPrecondition, "SUBSCRIPTION_IN_USE", &[]);
    let filtered = v1::SubscribeFailuresRequest { filter: Some(Default::default()), ..request };
    let refused = server.failures().subscribe_failures(filtered).await.map(drop);
    assert_refused(refused, Code::InvalidArgument, "FIELD_INVALID", &["filter"]);

    server.failed_execution().await;
    let first = delivered(&mut stream, 1).await;
    assert_eq!(kinds(&first), [v1::FailureKind::StepFailed], "the window has room for one");
    assert_eq!(ack(&server, "ops", &first[0].ack_token).await, v1::ErrorReason::Unspecified);
    let second = delivered(&mut stream, 1).await;
    assert_eq!(kinds(&second), [v1::FailureKind::ExecutionFailed]);
    let request = v1::GetSubscriptionRequest { subscription: Some(reference("ops")) };
    let got = server.failures().get_subscription(request).await.expect("it exists").into_inner();
    let got = got.subscription.expect("always set");
    assert_eq!((got.outstanding, got.consumer.as_str()), (1, "one"));

    let request = v1::DeleteSubscriptionRequest {
        subscription: Some(reference("ops")),
        request_id: "d1".into(),
    };
    server.failures().delete_subscription(request.clone()).await.expect("it exists");
    server.failures().delete_subscription(request).await.expect("it repeats");
    let ended = loop {
        match tokio::time::timeout(PATIENCE, stream.message()).await.expect("in time") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a status"),
            Err(status) => break status,
        }
    };
    let (code, reason, _) = refusal(Err::<(), _>(ended));
    assert_eq!((code, reason.as_str()), (Code::NotFound, "SUBSCRIPTION_NOT_FOUND"));
}

#[tokio::test]
async fn large_output_in_an_event_is_a_reference_that_can_be_read() {
    let server = Server::start().await;
    server
        .register("name: big\nsteps:\n- {id: a, task: {type: t}}\n- {id: b, task: {type: u}}\n")
        .await;
    server.begin("big").await;
    let large = json(&format!("\"{}\"", "x".repeat(300 * 1024)));
    let mut stream = TaskStream::open(&server, session("s"), 2).await;
    let task = stream.task().await;
    stream.send(vec![completed(&task, large.clone())]).await;
    let task = stream.task().await;
    server.fail(&task, permanent("a.b")).await.expect("it is open");
    let kinds = vec![v1::FailureKind::ExecutionFailed.into()];
    let position = v1::FeedPosition::Beginning.into();
    let request = v1::PullFailuresRequest {
        filter: Some(v1::FailureFilter { kinds, ..Default::default() }),
        start: Some(v1::pull_failures_request::Start::Position(position)),
        ..Default::default()
    };
    let pulled = server.failures().pull_failures(request).await.expect("it waits").into_inner();
    let event = pulled.deliveries[0].event.clone().expect("an event");
    let output = event.completed_steps[0].output.clone().expect("it completed");
    let Some(v1::payload::Content::Reference(reference)) = output.content else {
        panic!("{:?}", event.completed_steps[0])
    };
    assert_eq!(reference.size_bytes, 300 * 1024 + 2);
    let request = v1::ReadPayloadRequest { payload_id: reference.payload_id };
    let read = server.failures().read_payload(request).await.expect("it is kept").into_inner();
    assert_eq!(read.payload, Some(large));
}

#[tokio::test]
async fn reader_that_never_reads_does_not_hold_up_others() {
    let server = Server::start().await;
    server.register(ORDER).await;
    let _silent = subscribe(&server, v1::SubscribeFailuresRequest::default()).await;
    let mut other = subscribe(&server, v1::SubscribeFailuresRequest::default()).await;
    next(&mut other).await;
    for _ in 0..5 {
        server.failed_execution().await;
    }
    assert_eq!(delivered(&mut other, 10).await.len(), 10);
}
