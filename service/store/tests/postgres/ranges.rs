//! Replaces ranges of the history table under load, while they contain executions that must be kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use recoup_core::execution::{CompensationState, State};
use recoup_core::id::{ExecutionId, TransitionId};
use recoup_core::quarantine::{Quarantine, QuarantineReason};
use recoup_core::time::Timestamp;
use recoup_store::conformance::World;
use recoup_store::postgres::{Options, PostgresStore};
use recoup_store::{
    Batch, Executions, IndexRow, Namespaces, NewQuarantine, NodeId, Registry, Retention, Settled,
    Transition, Transitions,
};
use recoup_test_postgres::{Database, Server};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

const WIDTH: Duration = Duration::from_millis(1500);
const RANGES_WANTED: u64 = 4;
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// Ends at once, in the namespace `brief`, whose retention is short. These executions are the reason to
    /// replace a range.
    Forgotten,
    /// Ends at once, in the namespace `default`, whose retention is longer than the test.
    Recent,
    /// Ends with a parked compensation, in `brief`.
    Parked,
    /// Ends at once, in `brief`, and is quarantined.
    Quarantined,
    /// Stays open until the end of the test.
    Open,
}

struct Load {
    world: World,
    store: PostgresStore,
    node: NodeId,
    /// Distinguishes the ids of this load from those of the other one.
    number: u8,
    /// The store's time when the latest id was made.
    now: Timestamp,
    kept: BTreeMap<ExecutionId, (Fate, Vec<TransitionId>)>,
    forgotten: Vec<ExecutionId>,
    made: u64,
    stall_us_max: Arc<AtomicU64>,
}

impl Load {
    /// A new id with the store's current time.
    async fn id(&mut self) -> ExecutionId {
        self.made += 1;
        self.now = self.store.now().await.expect("answers");
        let mut random = [0; 10];
        random[1] = self.number;
        random[2..].copy_from_slice(&self.made.to_be_bytes());
        ExecutionId::new(self.now, random)
    }

    fn ended(&self, fate: Fate) -> IndexRow {
        let (state, compensation, namespace) = match fate {
            Fate::Forgotten | Fate::Quarantined => {
                (State::Succeeded, CompensationState::None, "brief")
            }
            Fate::Recent => (State::Failed, CompensationState::Done, "default"),
            Fate::Parked => (State::Failed, CompensationState::Parked, "brief"),
            Fate::Open => (State::Running, CompensationState::None, "brief"),
        };
        let (namespace, ended_at) = (namespace.into(), state.is_ended().then_some(self.now));
        IndexRow { namespace, ended_at, ..self.world.in_state(state, compensation) }
    }

    /// Starts some executions, ends some, and adds a transition to all that are open.
    async fn round(&mut self) {
        let mut batch = Batch::default();
        let open = self.kept.iter().filter(|(_, (fate, _))| *fate == Fate::Open);
        for (id, (_, history)) in open {
            batch.transitions.push(self.world.next(*id, history.len() as u64 + 1));
        }
        self.commit(&batch).await;

        let rare = if self.made.is_multiple_of(100) { Fate::Open } else { Fate::Forgotten };
        let fates = [Fate::Forgotten, Fate::Quarantined, rare, Fate::Recent, Fate::Parked];
        let fates = fates.into_iter().chain([Fate::Forgotten; 8]);
        let (mut starts, mut ends, mut new) = (Batch::default(), Batch::default(), Vec::new());
        for fate in fates {
            let id = self.id().await;
            let index = Some(self.ended(Fate::Open));
            starts.transitions.push(Transition { index, ..self.world.start(id) });
            let index = Some(self.ended(fate));
            ends.transitions.push(Transition { index, ..self.world.next(id, 2) });
            new.push((id, fate));
        }
        self.commit(&starts).await;
        let quarantined = new.iter().filter(|(_, fate)| *fate == Fate::Quarantined);
        let quarantined = quarantined.map(|(id, _)| self.damaged(*id)).collect();
        for (id, fate) in new {
            match fate {
                Fate::Forgotten => self.forgotten.push(id),
                fate => {
                    let started = starts.transitions.iter().find(|start| start.execution == id);
                    let started = started.expect("just started").transition_id;
                    self.kept.insert(id, (fate, vec![started]));
                }
            }
        }
        self.commit(&ends).await;
        self.commit(&Batch { quarantined, ..Batch::default() }).await;
    }

    fn damaged(&self, execution: ExecutionId) -> NewQuarantine {
        let quarantine = Quarantine::new(QuarantineReason::HistoryGap, "a gap", self.now);
        let event = self.world.event(&format!("quarantine of {execution}"), execution);
        NewQuarantine { execution, quarantine, event }
    }

    async fn commit(&mut self, batch: &Batch) {
        let began = Instant::now();
        let settled = self.store.commit(self.node, batch).await.expect("commits");
        let took = u64::try_from(began.elapsed().as_micros()).expect("short");
        self.stall_us_max.fetch_max(took, Ordering::Relaxed);
        assert_eq!(settled, vec![Settled::Won; batch.transitions.len()]);
        for transition in &batch.transitions {
            if transition.sequence > 1
                && let Some((_, history)) = self.kept.get_mut(&transition.execution)
            {
                history.push(transition.transition_id);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_are_replaced_under_load_without_losing_transitions() {
    let database = Server::shared().database().await;
    let options = Options { partition_width: WIDTH, partitions_ahead: 4, ..Options::default() };
    let store = PostgresStore::connect(&database.url(), options).await.expect("connects");
    store.create_namespace(&"brief".into(), "", WIDTH * 3, None).await.expect("is new");

    let stop = Arc::new(AtomicBool::new(false));
    let stall_us_max = Arc::new(AtomicU64::new(0));
    let mut loads = Vec::new();
    for number in 0..2 {
        let world = World::open(Arc::new(store.clone())).await;
        let node = world.node().await;
        let mut load = Load {
            now: world.now,
            world,
            store: store.clone(),
            node,
            number,
            kept: BTreeMap::new(),
            forgotten: Vec::new(),
            made: 0,
            stall_us_max: Arc::clone(&stall_us_max),
        };
        let stop = Arc::clone(&stop);
        loads.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                load.round().await;
            }
            load
        }));
    }

    let began = Instant::now();
    let mut expired = 0;
    while store.counts().ranges_replaced < RANGES_WANTED && began.elapsed() < GIVE_UP_AFTER {
        expired += store.expire(Timestamp::MAX, 10_000).await.expect("expires").executions;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut done = Vec::new();
    for load in loads {
        done.push(load.await.expect("no panic"));
    }

    let counts = store.counts();
    let mut fates: BTreeMap<Fate, usize> = BTreeMap::new();
    for load in &done {
        let ids: Vec<ExecutionId> = load.kept.keys().copied().collect();
        let histories = store.load(load.node, &ids).await.expect("loads");
        assert_eq!(histories.len(), ids.len(), "a history is gone");
        for history in histories {
            let (fate, written) = &load.kept[&history.execution];
            assert_eq!(history.quarantine.is_some(), *fate == Fate::Quarantined);
            let found: Vec<TransitionId> =
                history.transitions.iter().map(|stored| stored.transition_id).collect();
            assert_eq!(found, *written, "{fate:?} {}", history.execution);
            *fates.entry(*fate).or_default() += 1;
        }
        let heads = store.heads(&load.forgotten).await.expect("reads");
        *fates.entry(Fate::Forgotten).or_default() += load.forgotten.len() - heads.len();
    }
    let stall_us_max = stall_us_max.load(Ordering::Relaxed);
    println!(
        "{} ranges replaced under load, {expired} executions expired; kept whole: {fates:?}; the \
         longest stall of a commit was {:.1} ms, the longest lock {:.1} ms",
        counts.ranges_replaced,
        stall_us_max as f64 / 1000.0,
        counts.replace_us_max as f64 / 1000.0,
    );
    assert!(counts.ranges_replaced >= RANGES_WANTED, "{counts:?}");
    for fate in [Fate::Forgotten, Fate::Recent, Fate::Parked, Fate::Quarantined, Fate::Open] {
        assert!(fates.get(&fate).is_some_and(|count| *count > 0), "none {fate:?}: {fates:?}");
    }
    // The store gives up a commit that takes longer than this.
    assert!(stall_us_max < 2_000_000, "a commit stalled for {stall_us_max} µs");

    let client = database.client().await;
    let default = client.query_one("select count(*) from recoup.history_default", &[]).await;
    assert_eq!(default.expect("counts").get::<_, i64>(0), 0, "rows outside of all ranges");
}

/// A range whose copy is complete, and cannot take the range's place until a reader is done.
struct Copied {
    database: Database,
    store: PostgresStore,
    world: World,
    node: NodeId,
    /// An execution that ended hours ago with a parked compensation.
    parked: ExecutionId,
    namespace: &'static str,
    reader: Client,
    /// Whether more was due, for each call of `expire` until the range was replaced.
    replacing: JoinHandle<Vec<bool>>,
}

const HOUR: Duration = Duration::from_secs(3600);

fn narrow() -> Options {
    Options { partition_width: WIDTH, partitions_ahead: 4, ..Options::default() }
}

impl Copied {
    async fn of(namespace: &'static str) -> Self {
        let database = Server::shared().database().await;
        let store = PostgresStore::connect(&database.url(), narrow()).await.expect("connects");
        store.create_namespace(&"brief".into(), "", HOUR, None).await.expect("is new");
        let world = World::open(Arc::new(store.clone())).await;
        let node = world.node().await;
        // The ids lie in the first range, so that no empty range comes before theirs.
        let first = first_range(&database).await;
        let (parked, forgotten) =
            (ExecutionId::new(first, [1; 10]), ExecutionId::new(first, [2; 10]));
        let reader = database.client().await;
        // This lock holds up only the exchange of the range with its copy.
        const READ: &str = "begin; lock table only recoup.history in access share mode";
        reader.batch_execute(READ).await.expect("locks");
        let replacing = tokio::spawn(replace_one(store.clone(), first + WIDTH * 2));
        let this = Self { database, store, world, node, parked, namespace, reader, replacing };

        let index = this.ended(namespace, CompensationState::Parked);
        this.world.won(node, [Transition { index, ..this.world.start(parked) }]).await;
        let index = this.ended("brief", CompensationState::None);
        this.world.won(node, [Transition { index, ..this.world.start(forgotten) }]).await;
        this.until_the_exchange_waits().await;
        this
    }

    fn ended(&self, namespace: &str, compensation: CompensationState) -> Option<IndexRow> {
        let ended_at = Some(self.world.now - HOUR * 2);
        let row = self.world.in_state(State::Terminated, compensation);
        Some(IndexRow { namespace: namespace.into(), ended_at, ..row })
    }

    async fn until_the_exchange_waits(&self) {
        const WAITS: &str = "
            select from pg_locks where relation = 'recoup.history'::regclass
                and mode = 'AccessExclusiveLock' and not granted";
        let observer = self.database.client().await;
        let began = Instant::now();
        while observer.query(WAITS, &[]).await.expect("asks").is_empty() {
            assert!(began.elapsed() < GIVE_UP_AFTER, "the range was never replaced");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The compensation is retried and succeeds.
    async fn compensate(&self) {
        let steps = [(2, CompensationState::Running), (3, CompensationState::Done)];
        for (sequence, compensation) in steps {
            let index = self.ended(self.namespace, compensation);
            let next = self.world.next(self.parked, sequence);
            self.world.won(self.node, [Transition { index, ..next }]).await;
        }
    }

    async fn exchanged(&mut self) -> Vec<bool> {
        self.reader.batch_execute("rollback").await.expect("unlocks");
        let more = (&mut self.replacing).await.expect("no panic");
        assert_eq!(self.store.counts().ranges_replaced, 1);
        more
    }
}

/// The start of the oldest range.
async fn first_range(database: &Database) -> Timestamp {
    const FIRST: &str = "
        select substr(min(inhrelid::regclass::name::text), length('history_') + 1)::int8
        from pg_inherits where inhparent = 'recoup.history'::regclass
            and inhrelid <> 'recoup.history_default'::regclass";
    let client = database.client().await;
    client.batch_execute("set search_path = recoup").await.expect("is there");
    let millis: i64 = client.query_one(FIRST, &[]).await.expect("asks").get(0);
    Timestamp::from_micros(millis * 1000)
}

/// Calls `expire` only once the range is old. Before that, `expire` would delete its rows one by one.
async fn replace_one(store: PostgresStore, old_at: Timestamp) -> Vec<bool> {
    while store.now().await.expect("answers") < old_at {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut more = Vec::new();
    let began = Instant::now();
    while store.counts().ranges_replaced == 0 && began.elapsed() < GIVE_UP_AFTER {
        more.push(store.expire(Timestamp::MAX, 100).await.expect("expires").more);
    }
    more
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn execution_compensated_while_its_range_is_copied_is_kept_whole() {
    let mut copied = Copied::of("default").await;
    copied.compensate().await;
    copied.exchanged().await;
    let histories = copied.store.load(copied.node, &[copied.parked]).await.expect("loads");
    let sequences = histories.iter().flat_map(|history| &history.transitions);
    let sequences: Vec<u64> = sequences.map(|transition| transition.sequence).collect();
    assert_eq!(sequences, [1, 2, 3]);
}

/// The rows of the expired execution are in the copy, but are not counted for its range.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn execution_that_expires_while_its_range_is_copied_is_deleted_in_the_end() {
    let mut copied = Copied::of("brief").await;
    copied.compensate().await;
    let other = copied.database.url();
    let other = PostgresStore::connect(&other, narrow()).await.expect("connects");
    assert_eq!(other.expire(Timestamp::MAX, 100).await.expect("expires").executions, 1);
    copied.exchanged().await;

    let observer = copied.database.client().await;
    let rows = format!("select from recoup.history where execution_id = '{}'", copied.parked.0);
    let began = Instant::now();
    while !observer.query(&rows, &[]).await.expect("asks").is_empty() {
        assert!(began.elapsed() < GIVE_UP_AFTER, "rows of an expired execution are never deleted");
        copied.store.expire(Timestamp::MAX, 100).await.expect("expires");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Each attempt to replace a range blocks commits for a moment. While a reader holds the table, the attempts
/// are therefore not repeated at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn range_that_a_reader_holds_is_replaced_later() {
    let mut copied = Copied::of("default").await;
    let observer = copied.database.client().await;
    const COPY: &str = r"select from pg_class where relname like 'history\_%\_next'";
    let began = Instant::now();
    while !observer.query(COPY, &[]).await.expect("asks").is_empty() {
        assert!(began.elapsed() < GIVE_UP_AFTER, "the replacement never stops trying");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let more = copied.exchanged().await;
    assert!(more.len() > 1, "the range was replaced despite the reader");
    assert_eq!(more.first(), Some(&false));
    assert_eq!(more.last(), Some(&true));
}
