//! The feed at its limits, on every store: pages limited by bytes, streams limited in number, and gaps left by
//! retention. The tests write events directly to the store, because they are about readers.

use std::sync::Arc;
use std::time::Duration;

use recoup_core::failure_event::{FailureEvent, worker_lost};
use recoup_core::time::Timestamp;
use recoup_proto::v1;
use recoup_store::format::{Encoded, Row, encode_failure_event};
use recoup_store::memory::MemoryStore;
use recoup_store::postgres::PostgresStore;
use recoup_store::sqlite::SqliteStore;
use recoup_store::{Batch, FeedRow, NodeId, Store};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::server::{PATIENCE, Server, refusal};

type Responses = Streaming<v1::SubscribeFailuresResponse>;
type Start = v1::subscribe_failures_request::Start;

const HOUR: Duration = Duration::from_secs(3600);

/// A node with a lane of its own, to write to beside the server's lane.
struct Writer {
    store: Arc<dyn Store>,
    node: NodeId,
}

impl Writer {
    async fn new(store: Arc<dyn Store>) -> Self {
        let node = store.join("writer", HOUR).await.expect("it may join").node;
        Self { store, node }
    }

    /// Writes events in one commit. The tests recognise them by their workers' names.
    async fn write(&self, events: impl IntoIterator<Item = FailureEvent>) {
        let feed = events.into_iter().map(row).collect();
        let batch = Batch { feed, ..Batch::default() };
        self.store.commit(self.node, &batch).await.expect("commits");
    }

    async fn now(&self) -> Timestamp {
        self.store.now().await.expect("it has a clock")
    }
}

fn event(worker: &str, at: Timestamp) -> FailureEvent {
    worker_lost("default".into(), worker.into(), format!("session of {worker}"), 1, 1, at)
}

fn row(event: FailureEvent) -> FeedRow {
    let Encoded { format, data } = encode_failure_event(&event);
    FeedRow {
        id: event.id,
        namespace: event.namespace,
        kind: event.kind.into(),
        workflow: String::new(),
        error_type: event.error.map(|error| error.error_type).unwrap_or_default(),
        execution: None,
        fingerprint: event.fingerprint,
        at: event.at,
        format,
        data,
    }
}

fn from(start: Start) -> v1::SubscribeFailuresRequest {
    v1::SubscribeFailuresRequest { start: Some(start), ..Default::default() }
}

fn beginning() -> Start {
    Start::Position(v1::FeedPosition::Beginning.into())
}

fn from_beginning() -> v1::subscription::Start {
    v1::subscription::Start::Position(v1::FeedPosition::Beginning.into())
}

fn durable(name: &str) -> Start {
    Start::Subscription(v1::SubscriptionRef { name: name.into(), ..Default::default() })
}

async fn subscribe(server: &Server, start: Start) -> Result<Responses, Status> {
    Ok(server.failures().subscribe_failures(from(start)).await?.into_inner())
}

/// The deliveries of the next message that is not a keep-alive.
async fn message(responses: &mut Responses) -> Vec<v1::FailureDelivery> {
    loop {
        let next = tokio::time::timeout(PATIENCE, responses.message()).await.expect("in time");
        let message = next.expect("the stream is open").expect("the stream is open");
        if !message.deliveries.is_empty() {
            return message.deliveries;
        }
    }
}

async fn create(server: &Server, name: &str, start: v1::subscription::Start) {
    let subscription =
        v1::Subscription { name: name.into(), start: Some(start), ..Default::default() };
    let request =
        v1::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
    server.failures().create_subscription(request).await.expect("it is new");
}

fn workers(deliveries: &[v1::FailureDelivery]) -> Vec<&str> {
    let workers = deliveries.iter().map(|delivery| {
        let event = delivery.event.as_ref().expect("always set");
        event.worker.as_str()
    });
    workers.collect()
}

/// The gap that a delivery reports.
fn gap(delivery: &v1::FailureDelivery) -> &v1::FeedGap {
    let event = delivery.event.as_ref().expect("always set");
    assert_eq!(event.kind(), v1::FailureKind::FeedGap);
    event.gap.as_ref().expect("set on a gap")
}

#[tokio::test]
async fn reader_gets_pages_limited_by_bytes_with_at_least_one_event() {
    const WORKERS: [&str; 7] = ["a", "b", "c", "d", "large", "e", "f"];
    let store: Arc<dyn Store> = Arc::new(MemoryStore::with_system_clock());
    let writer = Writer::new(store.clone()).await;
    let now = writer.now().await;
    let sized = |worker: &str| {
        let mut event = event(worker, now);
        let bytes = if worker == "large" { 60_000 } else { 4_000 };
        event.error.as_mut().expect("it has one").message = "x".repeat(bytes);
        event
    };
    let two = row(sized("a")).data.len() + row(sized("b")).data.len();
    let server = Server::on(store, |options| options.feed_page_bytes = two).await;
    create(&server, "ops", from_beginning()).await;
    writer.write(WORKERS.map(sized)).await;
    for start in [beginning(), durable("ops")] {
        let mut responses = subscribe(&server, start).await.expect("it streams");
        let mut pages = Vec::new();
        while pages.iter().flatten().count() < WORKERS.len() {
            let deliveries = message(&mut responses).await;
            pages.push(workers(&deliveries).into_iter().map(str::to_owned).collect::<Vec<_>>());
        }
        // Two small events fit exactly. The large event exceeds the limit by itself, and is delivered alone.
        assert_eq!(pages, [&["a", "b"][..], &["c", "d"], &["large"], &["e", "f"]]);
    }
}

/// An older server neither skips nor misreads an event that a newer one wrote: its readers stop before that
/// event.
#[tokio::test]
async fn event_in_a_newer_format_stops_readers_before_it() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::with_system_clock());
    let writer = Writer::new(store.clone()).await;
    let server = Server::on(store, |_| {}).await;
    let now = writer.now().await;
    writer.write([event("read", now)]).await;
    let mut read = subscribe(&server, beginning()).await.expect("it streams");
    let first = message(&mut read).await;
    assert_eq!(workers(&first), ["read"]);

    let beyond = Row::FailureEvent.newest() + 1;
    let newer = FeedRow { format: beyond, ..row(event("newer", now)) };
    let batch = Batch { feed: vec![newer.clone()], ..Batch::default() };
    writer.store.commit(writer.node, &batch).await.expect("commits");
    // Both streams must stop: the one that is open, and a new one that starts from the cursor which the first
    // had reached.
    let cursor = first[0].cursor.clone();
    let again = subscribe(&server, Start::Cursor(cursor)).await.expect("it streams");
    for mut responses in [read, again] {
        let refused = loop {
            match tokio::time::timeout(PATIENCE, responses.message()).await.expect("in time") {
                // Keep-alives carry no deliveries.
                Ok(Some(message)) => assert_eq!(message.deliveries, []),
                Ok(None) => panic!("it ended without a status"),
                Err(status) => break status,
            }
        };
        let (code, reason, _) = refusal(Err::<(), _>(refused));
        assert_eq!((code, &*reason), (Code::Unavailable, "EXECUTION_TOO_NEW"));
    }
    let asked = v1::GetFailureRequest { id: newer.id };
    let (code, reason, _) = refusal(server.failures().get_failure(asked).await);
    assert_eq!((code, &*reason), (Code::Unavailable, "EXECUTION_TOO_NEW"));
}

#[tokio::test]
async fn stream_over_the_limit_is_refused_until_another_one_ends() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::with_system_clock());
    let writer = Writer::new(store.clone()).await;
    let server = Server::on(store, |options| options.feed_streams_max = 2).await;
    create(&server, "ops", from_beginning()).await;
    let mut reader = subscribe(&server, durable("ops")).await.expect("the first");
    let second = subscribe(&server, beginning()).await.expect("the last one within the limit");
    for start in [beginning(), durable("ops")] {
        let status = subscribe(&server, start).await.expect_err("over the limit");
        let details = status.get_error_details();
        let info = details.error_info().expect("always there");
        assert_eq!(
            (status.code(), info.reason.as_str()),
            (Code::ResourceExhausted, "LIMIT_REACHED")
        );
        assert_eq!(info.metadata.get("limit").map(String::as_str), Some("open feed streams"));
        assert!(details.retry_info().is_some_and(|retry| retry.retry_delay.is_some()));
        // This header serves clients that retry according to a service config.
        assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
    }
    // The refused durable consumer did not take the subscription over.
    writer.write([event("a", writer.now().await)]).await;
    assert_eq!(workers(&message(&mut reader).await), ["a"]);

    drop(second);
    let again = async {
        loop {
            match subscribe(&server, beginning()).await {
                Ok(responses) => return responses,
                // The server has not noticed yet that the other stream has ended.
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
            }
        }
    };
    let mut again = tokio::time::timeout(PATIENCE, again).await.expect("there is room again");
    assert_eq!(workers(&message(&mut again).await), ["a"]);
    let status = subscribe(&server, beginning()).await.expect_err("over the limit");
    assert_eq!(refusal(Err::<(), _>(status)).1, "LIMIT_REACHED");
}

/// Checks what readers see, on any store, after retention has deleted three events that follow their cursor.
async fn assert_retention_leaves_a_gap(store: Arc<dyn Store>) {
    let server = Server::on(store.clone(), |_| {}).await;
    let writer = Writer::new(store.clone()).await;
    let old = |worker: &str| event(worker, Timestamp::from_micros(1_000_000));
    let now = writer.now().await;

    writer.write([event("first", now)]).await;
    let mut reader = subscribe(&server, beginning()).await.expect("it streams");
    let first = message(&mut reader).await;
    assert_eq!(workers(&first), ["first"]);
    let cursor = first[0].cursor.clone();
    create(&server, "early", v1::subscription::Start::Cursor(cursor.clone())).await;
    drop(reader);
    // Each event is written in a commit of its own. The gap counts deleted events, however they were grouped
    // into commits.
    for worker in ["old 1", "old 2", "old 3"] {
        writer.write([old(worker)]).await;
    }
    writer.write([event("last", now)]).await;
    assert_eq!(store.expire(Timestamp::MAX, 100).await.expect("expires").events, 3);

    let mut reader = subscribe(&server, Start::Cursor(cursor.clone())).await.expect("it streams");
    let told = message(&mut reader).await;
    assert_eq!(told.len(), 2, "the gap and the remaining event");
    let missing = gap(&told[0]);
    assert_eq!((missing.events, missing.from_cursor.as_str()), (3, cursor.as_str()));
    assert_eq!(told[0].cursor, cursor, "a reader that stops at the gap gets it again");
    assert_eq!(workers(&told[1..]), ["last"]);
    let mut behind =
        subscribe(&server, Start::Cursor(told[1].cursor.clone())).await.expect("it streams");
    writer.write([event("new", now)]).await;
    assert_eq!(workers(&message(&mut behind).await), ["new"], "the gap is reported once");

    let pull = v1::PullFailuresRequest {
        start: Some(v1::pull_failures_request::Start::Cursor(cursor.clone())),
        ..Default::default()
    };
    let pulled = server.failures().pull_failures(pull).await.expect("the cursor is valid");
    let pulled = pulled.into_inner().deliveries;
    assert_eq!(gap(&pulled[0]).events, 3);
    assert_eq!(workers(&pulled[1..]), ["last", "new"]);

    let mut late = subscribe(&server, durable("early")).await.expect("no consumer is reading");
    let delivered = message(&mut late).await;
    assert_eq!(gap(&delivered[0]).events, 3);
    assert_eq!(workers(&delivered[1..]), ["last", "new"]);
    let ack = v1::AckFailuresRequest {
        subscription: Some(v1::SubscriptionRef { name: "early".into(), ..Default::default() }),
        ack_tokens: delivered.iter().map(|delivery| delivery.ack_token.clone()).collect(),
    };
    let acked = server.failures().ack_failures(ack).await.expect("it exists").into_inner();
    assert!(acked.results.iter().all(|result| result.reason() == v1::ErrorReason::Unspecified));
    drop(late);

    // A reader that starts at the beginning misses the same events, because they lay between two that are kept.
    let mut reader = subscribe(&server, beginning()).await.expect("it streams");
    let all = message(&mut reader).await;
    assert_eq!(gap(&all[0]).events, 3);
    assert_eq!(workers(&all[1..]), ["first", "last", "new"]);
}

#[tokio::test]
async fn events_deleted_by_retention_are_reported_as_a_gap_in_memory() {
    assert_retention_leaves_a_gap(Arc::new(MemoryStore::with_system_clock())).await;
}

#[tokio::test]
async fn events_deleted_by_retention_are_reported_as_a_gap_on_sqlite() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_retention_leaves_a_gap(Arc::new(SqliteStore::open(folder.path()).expect("it is empty")))
        .await;
}

#[tokio::test]
async fn events_deleted_by_retention_are_reported_as_a_gap_on_postgres() {
    let database = recoup_test_postgres::Server::shared().database().await;
    let store = PostgresStore::connect(&database.url(), Default::default()).await;
    assert_retention_leaves_a_gap(Arc::new(store.expect("connects"))).await;
}
