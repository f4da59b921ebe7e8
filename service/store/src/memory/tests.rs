//! Tests of what the conformance suite cannot ask of every store: transactions that stay open, a clock that the
//! test controls, and that the mutants are indeed wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use recoup_core::execution::{CompensationState, Phase, State as ExecutionState};
use recoup_core::failure_event::FailureKind;
use recoup_core::id::{ExecutionId, TransitionId};
use recoup_core::time::Timestamp;
use uuid::Uuid;

use super::{Clock, MemoryStore, Options};
use crate::contract::*;

const TTL: Duration = Duration::from_secs(10);

/// A clock that stands still until the test moves it.
#[derive(Clone, Default)]
struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    fn at(micros: i64) -> Self {
        Self(Arc::new(AtomicI64::new(micros)))
    }

    fn set(&self, micros: i64) {
        self.0.store(micros, Ordering::SeqCst);
    }

    fn clock(&self) -> Clock {
        let time = self.0.clone();
        Arc::new(move || Timestamp::from_micros(time.load(Ordering::SeqCst)))
    }
}

fn id(number: u128) -> ExecutionId {
    ExecutionId(Uuid::from_u128(number))
}

fn event(name: &str, execution: Option<ExecutionId>) -> FeedRow {
    FeedRow {
        id: name.into(),
        namespace: "default".into(),
        kind: FailureKind::AttemptFailed.into(),
        workflow: "w".into(),
        error_type: "e".into(),
        execution,
        fingerprint: "f".into(),
        at: Timestamp::from_micros(i64::MAX / 2),
        format: 1,
        data: Bytes::from_static(b"event"),
    }
}

/// A transition with one event, called `name`.
fn transition(execution: ExecutionId, sequence: u64, name: &str) -> Transition {
    let index = IndexRow {
        format: 1,
        namespace: "default".into(),
        workflow: "w".into(),
        version: 1,
        key: None,
        state: ExecutionState::Running.into(),
        phase: Phase::Steps.into(),
        compensation: CompensationState::None.into(),
        run: 1,
        error_type: None,
        started_at: Timestamp::from_micros(1),
        ended_at: None,
        wake_at: None,
    };
    let seed: u128 = name.bytes().fold(7, |seed, byte| seed * 257 + u128::from(byte));
    Transition {
        execution,
        sequence,
        transition_id: TransitionId(Uuid::from_u128(seed)),
        format: 1,
        data: Bytes::from_static(b"transition"),
        index: (sequence == 1).then_some(index),
        request: None,
        feed: vec![event(name, Some(execution))],
        overflow_done: vec![],
        may_be_gone: true,
    }
}

fn batch(transitions: impl IntoIterator<Item = Transition>) -> Batch {
    Batch { transitions: transitions.into_iter().collect(), ..Batch::default() }
}

async fn join(store: &MemoryStore) -> NodeId {
    store.join("test", TTL).await.expect("joins").node
}

async fn read_on(store: &MemoryStore, cursor: &mut Cursor) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        let page = store.read_feed(cursor, PageLimit::events(2)).await.expect("reads");
        let count = page.events.len();
        names.extend(page.events.into_iter().map(|event| event.row.id));
        // In the form in which clients hold it.
        *cursor = Cursor::decode(&page.cursor.encode()).expect("own text");
        if count < 2 {
            return names;
        }
    }
}

/// The events that a reader sees if it reads once while A's transaction is open and B's is committed, and once
/// again after A's commit.
async fn seen_around_an_open_transaction(options: Options) -> Vec<String> {
    let store = MemoryStore::with_options(ManualClock::at(1000).clock(), options);
    let (a, b) = (join(&store).await, join(&store).await);
    let open = store.begin_commit(a, &batch([transition(id(1), 1, "a1")])).expect("begins");
    let two = batch([transition(id(2), 1, "b1"), transition(id(3), 1, "b2")]);
    store.commit(b, &two).await.expect("commits");

    let mut cursor = store.feed_start().await.expect("start");
    let mut seen = read_on(&store, &mut cursor).await;
    assert_eq!(seen, ["b1", "b2"], "an open transaction hides only its own events");
    store.finish(open).expect("commits");
    seen.extend(read_on(&store, &mut cursor).await);
    seen
}

#[tokio::test]
async fn events_of_an_open_transaction_are_read_once_it_commits() {
    let seen = seen_around_an_open_transaction(Options::default()).await;
    assert_eq!(seen, ["b1", "b2", "a1"]);
}

#[tokio::test]
async fn mutant_with_a_scalar_cursor_skips_events_of_an_open_transaction() {
    let options = Options { mutant_scalar_cursor: true, ..Options::default() };
    let seen = seen_around_an_open_transaction(options).await;
    assert_eq!(seen, ["b1", "b2"]);
}

#[tokio::test]
async fn two_transactions_of_one_node_finish_in_any_order() {
    let store = MemoryStore::new(ManualClock::at(1000).clock());
    let a = join(&store).await;
    let first = store.begin_commit(a, &batch([transition(id(1), 1, "first")])).expect("begins");
    let second = store.begin_commit(a, &batch([transition(id(2), 1, "second")])).expect("begins");
    let mut cursor = store.feed_start().await.expect("start");
    store.finish(second).expect("commits");
    assert_eq!(read_on(&store, &mut cursor).await, ["second"]);
    store.finish(first).expect("commits");
    assert_eq!(read_on(&store, &mut cursor).await, ["first"]);
}

#[tokio::test]
async fn first_transaction_to_finish_wins_and_an_aborted_one_writes_nothing() {
    let store = MemoryStore::new(ManualClock::at(1000).clock());
    let (a, b) = (join(&store).await, join(&store).await);
    let of_a = store.begin_commit(a, &batch([transition(id(1), 1, "a")])).expect("begins");
    let of_b = store.begin_commit(b, &batch([transition(id(1), 1, "b")])).expect("begins");
    let aborted = store.begin_commit(b, &batch([transition(id(2), 1, "c")])).expect("begins");
    store.abort(aborted);
    assert_eq!(store.finish(of_b).expect("commits"), [Settled::Won]);
    assert_eq!(store.finish(of_a).expect("commits"), [Settled::Lost]);
    let names: Vec<_> = store.events().into_iter().map(|event| event.row.id).collect();
    assert_eq!(names, ["b"]);
    assert_eq!(store.heads(&[id(1), id(2)]).await.expect("heads").len(), 1);
}

#[tokio::test]
async fn mutant_writes_events_of_lost_transitions() {
    let options = Options { mutant_companions_for_losers: true, ..Options::default() };
    let store = MemoryStore::with_options(ManualClock::at(1000).clock(), options);
    let (a, b) = (join(&store).await, join(&store).await);
    store.commit(a, &batch([transition(id(1), 1, "won")])).await.expect("commits");
    store.commit(b, &batch([transition(id(1), 1, "lost")])).await.expect("commits");
    let names: Vec<_> = store.events().into_iter().map(|event| event.row.id).collect();
    assert_eq!(names, ["won", "lost"]);
}

#[tokio::test]
async fn closing_a_lease_rolls_back_its_open_transactions() {
    let time = ManualClock::at(1000);
    let store = MemoryStore::new(time.clock());
    let (a, b) = (join(&store).await, join(&store).await);
    store.commit(a, &batch([transition(id(1), 1, "a1")])).await.expect("commits");
    let open = store.begin_commit(a, &batch([transition(id(1), 2, "a2")])).expect("begins");

    time.set(1000 + 11_000_000);
    let late = store.commit(a, &batch([transition(id(2), 1, "late")])).await;
    assert_eq!(late.expect("silent, not closed"), [Settled::Won]);
    let seen = store.leases(b, &[]).await.expect("asks");
    assert_eq!(store.leases(b, &seen).await.expect("closes"), []);
    assert_eq!(store.adopt(b, 10).await.expect("adopts"), [id(1), id(2)]);
    assert!(matches!(store.finish(open), Err(Error::LeaseLost)));
    assert!(matches!(store.begin_commit(a, &Batch::default()), Err(Error::LeaseLost)));
    assert!(matches!(store.renew(a, TTL, Timestamp::default()).await, Err(Error::LeaseLost)));
}

#[tokio::test]
async fn closed_lane_that_was_read_is_removed_from_the_cursor() {
    let store = MemoryStore::new(ManualClock::at(1000).clock());
    let a = join(&store).await;
    store.commit(a, &batch([transition(id(1), 1, "a")])).await.expect("commits");
    let mut cursor = store.feed_start().await.expect("start");
    read_on(&store, &mut cursor).await;
    assert_eq!((cursor.floor, cursor.lanes.len()), (a, 1));
    store.leave(a).await.expect("leaves");
    let b = join(&store).await;
    read_on(&store, &mut cursor).await;
    assert_eq!((cursor.floor, cursor.lanes.len()), (b, 0));
    store.commit(b, &batch([transition(id(2), 1, "b")])).await.expect("commits");
    assert_eq!(read_on(&store, &mut cursor).await, ["b"]);
}

#[tokio::test]
async fn events_keep_their_order_across_lanes_when_the_clock_goes_back() {
    let time = ManualClock::at(9_000_000);
    let store = MemoryStore::new(time.clock());
    let (a, b) = (join(&store).await, join(&store).await);
    store.commit(a, &batch([transition(id(1), 1, "1")])).await.expect("commits");
    time.set(1000);
    store.load(b, &[id(1)]).await.expect("loads");
    store.commit(b, &batch([transition(id(1), 2, "2")])).await.expect("commits");
    let mut cursor = store.feed_start().await.expect("start");
    assert_eq!(read_on(&store, &mut cursor).await, ["1", "2"]);
}

#[tokio::test]
async fn start_request_id_can_be_used_again_after_a_day() {
    let time = ManualClock::at(0);
    let store = MemoryStore::new(time.clock());
    let a = join(&store).await;
    let start = |number, name| {
        let namespace = "default".into();
        let request = StartRequest { namespace, request_id: "r".into(), digest: 1 };
        batch([Transition { request: Some(request), ..transition(id(number), 1, name) }])
    };
    assert_eq!(store.commit(a, &start(1, "1")).await.expect("commits"), [Settled::Won]);
    let taken = Settled::RequestTaken { execution: id(1), digest: 1, started: true };
    time.set(24 * 3600 * 1_000_000 - 1);
    assert_eq!(store.commit(a, &start(2, "2")).await.expect("commits"), [taken]);
    time.set(24 * 3600 * 1_000_000);
    assert_eq!(store.started_by(&"default".into(), "r").await.expect("asks"), None);
    assert_eq!(store.commit(a, &start(3, "3")).await.expect("commits"), [Settled::Won]);
    let started = store.started_by(&"default".into(), "r").await.expect("asks");
    assert_eq!(started, Some((id(3), 1)));
}

#[tokio::test]
async fn registry_request_id_can_be_used_again_after_a_day() {
    let day = 24 * 3600 * 1_000_000;
    let time = ManualClock::at(0);
    let store = MemoryStore::new(time.clock());
    let create = async |name: &str, request_id: &str, digest| {
        let request_id = request_id.to_owned();
        let request = RegistryRequest { namespace: "".into(), request_id, digest };
        store.create_namespace(&name.into(), "", TTL, Some(&request)).await
    };
    create("a", "r", 1).await.expect("creates");
    create("b", "s", 1).await.expect("creates");
    time.set(day - 1);
    create("a", "r", 1).await.expect("again");
    let reused = create("c", "r", 2).await;
    assert!(matches!(reused, Err(Error::RequestIdReused)), "{reused:?}");
    assert_eq!(store.expire(Timestamp::MAX, 10).await.expect("expires").registry_requests, 0);
    time.set(day);
    let taken = create("a", "r", 1).await;
    assert!(matches!(taken, Err(Error::AlreadyExists)), "{taken:?}");
    create("c", "r", 2).await.expect("the id is free");
    create("d", "t", 1).await.expect("creates");
    time.set(2 * day);
    for more in [true, false] {
        let expired = store.expire(Timestamp::MAX, 2).await.expect("expires");
        assert_eq!((expired.registry_requests, expired.more), (if more { 2 } else { 1 }, more));
    }
}

mod conformance {
    use super::*;
    use crate::conformance::Harness;
    use crate::format::Formats;

    #[derive(Default)]
    struct Memory(std::sync::Mutex<Option<MemoryStore>>);

    #[async_trait::async_trait]
    impl Harness for Memory {
        async fn fresh(&self) -> Arc<dyn Store> {
            let store = MemoryStore::with_system_clock();
            *self.0.lock().expect("one test has it") = Some(store.clone());
            Arc::new(store)
        }

        async fn set_lane(&self, node: NodeId, last: i64) {
            let store = self.0.lock().expect("one test has it").clone();
            store.expect("made before").set_lane(node, last);
        }

        fn reading(&self, formats: Formats) -> Arc<dyn Store> {
            let store = self.0.lock().expect("one test has it").clone();
            Arc::new(store.expect("made before").reading(formats))
        }
    }

    crate::conformance!(Memory::default());

    #[tokio::test]
    async fn the_model_agrees_with_itself_for_many_seeds() {
        for seed in 2..10 {
            crate::conformance::differential::compare(&Memory::default(), seed).await;
        }
    }

    struct Mutant;

    #[async_trait::async_trait]
    impl Harness for Mutant {
        async fn fresh(&self) -> Arc<dyn Store> {
            let options = Options { mutant_companions_for_losers: true, ..Options::default() };
            Arc::new(MemoryStore::with_options(Arc::new(crate::memory::system_now), options))
        }

        async fn set_lane(&self, _: NodeId, _: i64) {}

        fn reading(&self, _: Formats) -> Arc<dyn Store> {
            unimplemented!("no case of the mutant asks for it")
        }
    }

    #[tokio::test]
    #[should_panic(expected = "assertion")]
    async fn suite_detects_events_of_lost_transitions() {
        let world = crate::conformance::World::open(Mutant.fresh().await).await;
        crate::conformance::places::lost_transition_writes_nothing(world).await;
    }

    #[tokio::test]
    #[should_panic(expected = "the store (left) and the model (right) differ")]
    async fn comparison_detects_events_of_lost_transitions() {
        crate::conformance::differential::compare(&Mutant, 1).await;
    }
}
