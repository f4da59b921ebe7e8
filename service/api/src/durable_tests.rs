//! Two servers on one store serve the same subscription at the same time. The server that loses the race
//! for a write reads the subscription again and decides again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use recoup_core::failure_event::worker_lost;
use recoup_core::id::ExecutionId;
use recoup_store::format::encode_failure_event;
use recoup_store::sqlite::SqliteStore;
use recoup_store::{Batch, FeedRow, Store};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::*;
use crate::{ApiOptions, subscriptions};

const EXECUTIONS: usize = 40;
const EVENTS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

struct Servers {
    one: Arc<Context>,
    two: Arc<Context>,
    name: Name,
    _folder: tempfile::TempDir,
    _running: watch::Sender<bool>,
}

impl Servers {
    /// Starts two servers with a subscription `ops` to all events, whose deliveries are never repeated by
    /// themselves, and stores `EVENTS` events for each of `executions` executions.
    async fn start(executions: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = SqliteStore::open(folder.path()).expect("it is empty");
        let store: Arc<dyn Store> = Arc::new(store);
        let (running, stopping) = watch::channel(false);
        let server = async || {
            let engine = recoup_engine::driver::start(store.clone(), Default::default()).await;
            let engine = engine.expect("the store is open");
            Arc::new(Context::new(engine, ApiOptions::new(stopping.clone())))
        };
        let (one, two) = (server().await, server().await);
        let subscription = v1::Subscription {
            name: "ops".into(),
            ack_deadline: Some(Duration::from_secs(3600).into()),
            start: Some(v1::subscription::Start::Position(v1::FeedPosition::Beginning.into())),
            window: 30,
            ..Default::default()
        };
        let subscription = Some(subscription);
        let request = v1::CreateSubscriptionRequest { subscription, ..Default::default() };
        subscriptions::create(&one, request).await.expect("it is new");

        let node = store.join("writer", Duration::from_secs(60)).await.expect("it may join").node;
        let feed = (0..EVENTS).flat_map(|event| {
            let now = one.engine.now();
            (0..executions).map(move |execution| row(execution, event, now))
        });
        let batch = Batch { feed: feed.collect(), ..Batch::default() };
        store.commit(node, &batch).await.expect("commits");
        let name = Name { namespace: "default".into(), name: "ops".into() };
        Self { one, two, name, _folder: folder, _running: running }
    }

    fn races_lost(&self) -> u64 {
        let lost = |context: &Context| context.races_lost.load(Ordering::Relaxed);
        lost(&self.one) + lost(&self.two)
    }
}

fn row(execution: usize, event: usize, at: Timestamp) -> FeedRow {
    let lost = worker_lost("default".into(), "w".into(), format!("{execution}.{event}"), 1, 1, at);
    let Encoded { format, data } = encode_failure_event(&lost);
    FeedRow {
        id: lost.id,
        namespace: lost.namespace,
        kind: lost.kind.into(),
        workflow: String::new(),
        error_type: String::new(),
        execution: Some(ExecutionId(Uuid::from_u128(execution as u128))),
        fingerprint: lost.fingerprint,
        at,
        format,
        data,
    }
}

/// The numbers of the execution and the event, which [`row`] has put into the session id.
fn place(delivery: &v1::FailureDelivery) -> (usize, usize) {
    let event = delivery.event.as_ref().expect("always set");
    let (execution, number) = event.session_id.split_once('.').expect("a session id made by `row`");
    (execution.parse().expect("a number"), number.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_concurrent_servers_deliver_every_event_once_and_in_order() {
    let servers = Servers::start(EXECUTIONS).await;
    let total = EXECUTIONS * EVENTS;
    let seen: Arc<Mutex<BTreeMap<(usize, usize), u32>>> = Arc::default();
    let (done, mut acknowledged) = mpsc::unbounded_channel();
    let mut readers = tokio::task::JoinSet::new();
    for turn in 0..4 {
        let (own, other) = match turn % 2 {
            0 => (servers.one.clone(), servers.two.clone()),
            _ => (servers.two.clone(), servers.one.clone()),
        };
        let (name, seen, done) = (servers.name.clone(), seen.clone(), done.clone());
        readers.spawn(async move {
            loop {
                let pulled = pull(&own, &name, "", 3, Duration::from_millis(50)).await;
                for delivery in pulled.expect("it exists").deliveries {
                    let delivery = delivery.delivery;
                    let (place, tokens) = (place(&delivery), [delivery.ack_token.clone()]);
                    *seen
                        .lock()
                        .expect("no test panics while it is held")
                        .entry(place)
                        .or_default() += 1;
                    assert_eq!(delivery.delivery, 1, "{place:?}");
                    // Sent to both servers at the same time, it still counts as one acknowledgement.
                    let said = tokio::join!(ack(&own, &name, &tokens), ack(&other, &name, &tokens));
                    for reasons in [said.0, said.1] {
                        assert_eq!(reasons.expect("it exists"), [ErrorReason::Unspecified]);
                    }
                    done.send(place).expect("the test receives every event");
                }
            }
        });
    }
    let mut order: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for _ in 0..total {
        let next = tokio::time::timeout(PATIENCE, acknowledged.recv()).await.expect("in time");
        let (execution, number) = next.expect("the readers are still running");
        order.entry(execution).or_default().push(number);
    }
    readers.shutdown().await;
    let seen = std::mem::take(&mut *seen.lock().expect("no test panics while it is held"));
    assert_eq!(seen.len(), total, "no event is lost");
    let doubled: Vec<_> = seen.iter().filter(|(_, count)| **count != 1).collect();
    assert_eq!(doubled, [], "no event is delivered twice");
    let in_order: Vec<usize> = (0..EVENTS).collect();
    assert!(order.values().all(|numbers| *numbers == in_order), "{order:?}");
    let (_, state) = load(&servers.one, &servers.name).await.expect("it exists");
    assert_eq!(state.outstanding, []);
    let end = servers.one.store().feed_end().await.expect("reads").encode();
    assert_eq!(state.watermark, end);
    println!("{total} events; {} times another writer was faster", servers.races_lost());
    assert!(servers.races_lost() > 0, "no race was lost: the test shows nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ack_racing_with_redelivery_is_either_accepted_or_expired() {
    const ROUNDS: usize = 60;
    let servers = Servers::start((2 * ROUNDS).div_ceil(EVENTS)).await;
    let name = &servers.name;
    let (mut accepted, mut expired, mut gone) = (0, 0, BTreeSet::new());
    let mut epoch = open(&servers.one, name, "pager").await.expect("no consumer is reading");
    for round in 0..ROUNDS {
        let had = fetch(&servers.one, name, Reader::Stream { epoch }, 1)
            .await
            .expect("the stream is current");
        let had = &had.deliveries.first().expect("enough for all rounds").delivery;
        assert!(!gone.contains(&place(had)), "{:?} was acknowledged", place(had));
        // The consumer reconnects through the other server, and this server learns only later that its own
        // stream has been taken over.
        epoch = open(&servers.two, name, "pager").await.expect("the consumer reconnects");
        let stale = fetch(&servers.one, name, Reader::Stream { epoch: epoch - 1 }, 1).await;
        let stale = stale.err().map(|error| error.reason);
        assert_eq!(stale, Some(ErrorReason::SubscriptionTaken));
        let tokens = [had.ack_token.clone()];
        let (said, again) = tokio::join!(
            ack(&servers.one, name, &tokens),
            fetch(&servers.two, name, Reader::Stream { epoch }, 1),
        );
        let again = &again.expect("the stream is current").deliveries;
        let again = &again.first().expect("enough for all rounds").delivery;
        let came_again = again.event.as_ref().map(|event| &event.id)
            == had.event.as_ref().map(|event| &event.id);
        match said.expect("it exists")[0] {
            ErrorReason::Unspecified => {
                assert!(!came_again, "round {round}: acknowledged and delivered again");
                accepted += 1;
                gone.insert(place(had));
            }
            ErrorReason::AckExpired => {
                assert!(came_again, "round {round}: neither acknowledged nor delivered again");
                assert_eq!(again.delivery, had.delivery + 1);
                expired += 1;
            }
            other => panic!("round {round}: {other:?}"),
        }
        let last = ack(&servers.two, name, std::slice::from_ref(&again.ack_token))
            .await
            .expect("it exists");
        assert_eq!(last, [ErrorReason::Unspecified]);
        gone.insert(place(again));
    }
    println!(
        "{ROUNDS} races: {accepted} acknowledged, {expired} delivered again; {} writes lost",
        servers.races_lost()
    );
    assert_eq!(accepted + expired, ROUNDS);
    assert!(servers.races_lost() > 0, "no race was lost: the test shows nothing");
}
