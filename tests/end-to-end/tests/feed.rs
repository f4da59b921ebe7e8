//! Compares the failure feed with the histories. Two servers run on one Postgres under load, while a
//! transaction is open that is older than everything they write and that ends only after they are done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use recoup_core::command::StartExecution;
use recoup_core::id::{ExecutionId, Namespace};
use recoup_core::payload::Payload;
use recoup_end_to_end::auditor::Auditor;
use recoup_end_to_end::connect;
use recoup_end_to_end::fold::{EventIds, failure_events_of_histories};
use recoup_end_to_end::invariants::until_all_ended;
use recoup_end_to_end::mishap::{self, Workers};
use recoup_end_to_end::server::{Folder, Server};
use recoup_end_to_end::subscriber::Subscriber;
use recoup_engine::{Engine, StartSpec};
use recoup_proto::v1::{FailureEvent, FailureKind};
use recoup_store::Store;
use recoup_store::postgres::{Options, PostgresStore};
use recoup_test_postgres::{Database, Server as Postgres};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use uuid::Uuid;

/// How many executions there are of each of the twelve fates.
const OF_EACH: usize = 40;
/// How many executions the slow node starts.
const SLOW: usize = 3;
/// How long the test waits before it fails.
const PATIENCE: Duration = Duration::from_secs(90);
/// Every kind of event that the executions of this test produce.
const KINDS: [FailureKind; 13] = [
    FailureKind::AttemptFailed,
    FailureKind::StepFailed,
    FailureKind::StepIgnored,
    FailureKind::ExecutionFailed,
    FailureKind::ExecutionTimedOut,
    FailureKind::ExecutionWarning,
    FailureKind::ExecutionCancelled,
    FailureKind::ExecutionTerminated,
    FailureKind::CompensationStarted,
    FailureKind::CompensationDone,
    FailureKind::CompensationParked,
    FailureKind::HandlerFailed,
    FailureKind::WorkerLost,
];

/// A separate node whose first commit hangs inside COMMIT. Its history, index and feed rows are written, on a
/// lane of its own and with the lowest numbers of all, but no other transaction can see them yet.
struct SlowNode {
    engine: Engine,
    lane: i64,
    /// The connection that holds the lock for which the commit waits.
    brake: Client,
    starting: JoinSet<ExecutionId>,
}

impl SlowNode {
    async fn start(store: Arc<dyn Store>, database: &Database) -> Self {
        let options = recoup_engine::Options {
            address: "slow".into(),
            // The commit takes as long as the load does.
            commit_wait: 2 * PATIENCE,
            ..recoup_engine::Options::default()
        };
        let engine = recoup_engine::driver::start(store, options).await.expect("the node joins");
        let brake = database.client().await;
        let row = brake.query_one("select id from recoup.node where address = 'slow'", &[]).await;
        let lane: i64 = row.expect("the node has joined").get(0);
        // The trigger is deferred. Postgres runs it last, inside COMMIT, when everything else has been written.
        let trigger = format!(
            "create function recoup.brake() returns trigger language plpgsql as $$
            begin
                perform pg_advisory_xact_lock_shared(7);
                return null;
            end $$;
            create constraint trigger brake after insert on recoup.feed
                deferrable initially deferred
                for each row when (new.lane = {lane}) execute function recoup.brake();
            select pg_advisory_lock(7)"
        );
        brake.batch_execute(&trigger).await.expect("the test owns the database");
        let mut slow = Self { engine, lane, brake, starting: JoinSet::new() };
        slow.begin().await;
        slow
    }

    /// Starts executions that fail in their first transition, and waits until the commit hangs.
    async fn begin(&mut self) {
        let (namespace, workflow) = (Namespace::from("default"), "broken".into());
        let plan = self.engine.plan(&namespace, &workflow, None).await.expect("the store answers");
        let plan = plan.expect("it is registered");
        for number in 0..SLOW {
            let start = StartExecution {
                id: ExecutionId::new(self.engine.now(), [number as u8; 10]),
                namespace: namespace.clone(),
                key: None,
                input: Payload::json("{\"numbers\":[1]}"),
                timeout: None,
                trace: Default::default(),
            };
            let spec = StartSpec {
                start,
                plan: plan.clone(),
                on_running: Default::default(),
                on_ended: Default::default(),
                request: None,
                until: None,
            };
            let engine = self.engine.clone();
            self.starting.spawn(async move {
                engine.start(spec).await.expect("the start is committed").outcome.execution
            });
        }
        let deadline = Instant::now() + PATIENCE;
        while !self.hangs().await {
            assert!(Instant::now() < deadline, "the slow commit does not hang");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether the node's transaction is open, has an id, and waits.
    async fn hangs(&self) -> bool {
        const WAITS: &str = "
            select from pg_stat_activity
            where datname = current_database() and backend_xid is not null
                and wait_event_type = 'Lock' and wait_event = 'advisory'
                and (query = 'commit' or query like 'with part%')";
        self.brake.query(WAITS, &[]).await.expect("it answers").len() == 1
    }

    /// Lets the transaction commit. Returns the executions that it started.
    async fn release(&mut self) -> Vec<ExecutionId> {
        self.brake
            .batch_execute("select pg_advisory_unlock(7)")
            .await
            .expect("this connection holds the lock");
        let ended = tokio::time::timeout(PATIENCE, async {
            let mut ids = Vec::new();
            while let Some(id) = self.starting.join_next().await {
                ids.push(id.expect("no panic"));
            }
            ids
        });
        ended.await.expect("it commits")
    }
}

/// The events that must be on the feed: those of the histories, and those of lost sessions. The latter belong
/// to no execution, so no history contains them.
struct Wanted {
    by_execution: EventIds,
    sessions: BTreeSet<String>,
}

impl Wanted {
    async fn scan(store: &dyn Store, client: &Client) -> Self {
        let rows = client.query("select distinct execution_id from recoup.history", &[]).await;
        let rows = rows.expect("scans");
        let executions: Vec<_> =
            rows.iter().map(|row| ExecutionId(row.get::<_, Uuid>(0))).collect();
        let by_execution = failure_events_of_histories(store, &executions).await;
        let sessions = "select id from recoup.feed where execution_id is null";
        let sessions = client.query(sessions, &[]).await.expect("scans");
        Self { by_execution, sessions: sessions.iter().map(|row| row.get(0)).collect() }
    }

    fn ids(&self) -> BTreeSet<&str> {
        self.by_execution.values().flatten().map(String::as_str).collect()
    }

    fn total(&self) -> usize {
        self.ids().len() + self.sessions.len()
    }

    /// Checks that the same events were received, and those of each execution in the same order. Returns the
    /// differences.
    fn compare(&self, received: &[FailureEvent]) -> Vec<String> {
        let mut wrong = Vec::new();
        let (lost, of_executions): (Vec<_>, Vec<_>) =
            received.iter().partition(|event| event.execution_id.is_empty());
        let mut own: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for event in of_executions {
            own.entry(&event.execution_id).or_default().push(&event.id);
        }
        for (execution, wanted) in &self.by_execution {
            let got = own.remove(execution.as_str()).unwrap_or_default();
            if got != *wanted {
                wrong.push(format!("{execution}: its history has {wanted:?}, received {got:?}"));
            }
        }
        wrong.extend(own.into_values().map(|ids| format!("in no history: {ids:?}")));
        let lost: BTreeSet<&str> = lost.iter().map(|event| event.id.as_str()).collect();
        let sessions: BTreeSet<&str> = self.sessions.iter().map(String::as_str).collect();
        if lost != sessions {
            wrong.push(format!("sessions: {sessions:?} are on the feed, received {lost:?}"));
        }
        wrong
    }
}

/// The test was verified by breaking the server in three ways, each of which it found: a cursor with one number
/// for all lanes (36 events never arrived, among them those of the slow node), pages that leave out a row (4
/// events), and a stream that takes over a subscription and forgets the outstanding events of the previous
/// stream (43 events of the durable subscription).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_get_every_event_despite_a_slow_older_transaction() {
    let folder = Folder::new("feed");
    let postgres = Postgres::start(&[]);
    let (database, elsewhere) = (postgres.database().await, postgres.database().await);
    let servers = [(); 2].map(|()| Server::on_postgres(folder.path(), &database.url()));
    let urls = servers.each_ref().map(Server::url);
    let channels = urls.each_ref().map(|url| connect::channel(url));
    mishap::register(&channels[0]).await;

    // A write transaction in another database. It holds back every transaction horizon of the Postgres server.
    let other = elsewhere.client().await;
    let open = "create table t (n int); begin; insert into t values (1)";
    other.batch_execute(open).await.expect("no other client uses this database");
    let patient = Options {
        lock_timeout: Duration::from_secs(600),
        commit_timeout: Duration::from_secs(600),
        ..Options::default()
    };
    let store = PostgresStore::connect(&database.url(), patient).await.expect("connects");
    let store: Arc<dyn Store> = Arc::new(store);
    let mut slow = SlowNode::start(store.clone(), &database).await;

    let subscriber = Subscriber::start(&urls[..1]);
    let auditor = Auditor::start(channels[1].clone(), channels[0].clone()).await;
    let workers = Workers::start(&channels, 4);
    mishap::start(&channels, OF_EACH).await;
    until_all_ended(channels[0].clone(), PATIENCE).await;
    assert!(slow.hangs().await, "the slow commit ended before the load did");
    let scanner = database.client().await;
    let before = subscriber.ids().len();
    let of_slow = slow.release().await;
    let abandoned = workers.abandoned();

    let wanted = Wanted::scan(&*store, &scanner).await;
    let deadline = Instant::now() + PATIENCE;
    while (subscriber.ids().len() < wanted.total() || auditor.acknowledged() < wanted.total())
        && Instant::now() < deadline
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let received = subscriber.stop();
    let (audited, outstanding) = auditor.stop().await;
    let of_executions =
        |events: &[FailureEvent]| events.iter().filter(|it| !it.execution_id.is_empty()).count();
    println!(
        "{} executions; their histories hold {} failure events; the subscriber received {} of \
         executions, {before} of all before the slow transaction ended; the durable one received {} \
         over {} connections, {} of them again; there were also {} events of lost sessions",
        wanted.by_execution.len(),
        wanted.ids().len(),
        of_executions(&received.events),
        of_executions(&audited.events),
        audited.connections,
        audited.repeated,
        wanted.sessions.len(),
    );
    let wrong = wanted.compare(&received.events);
    assert!(
        wrong.is_empty(),
        "ephemeral, {} wrong: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(10)]
    );
    assert_eq!((received.repeated, received.connections), (0, 1));
    assert!(received.refusals.is_empty(), "{:?}", received.refusals);
    let wrong = wanted.compare(&audited.events);
    assert!(
        wrong.is_empty(),
        "durable, {} wrong: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(10)]
    );
    assert!(audited.wrong.is_empty(), "{:#?}", audited.wrong);
    assert_eq!((audited.acknowledged.len(), outstanding), (wanted.total(), 0));
    assert!(audited.repeated > 0, "no event was redelivered");

    // The test produced every kind of event that it claims to cover.
    let kinds: BTreeSet<_> = received.events.iter().map(|event| event.kind()).collect();
    let missing: Vec<_> = KINDS.iter().filter(|kind| !kinds.contains(kind)).collect();
    assert!(missing.is_empty(), "no event of {missing:?}");
    let sessions: BTreeSet<_> = received
        .events
        .iter()
        .filter(|event| event.execution_id.is_empty())
        .map(|event| event.session_id.clone())
        .collect();
    assert_eq!(sessions, abandoned);
    for id in &of_slow {
        assert_eq!(
            wanted.by_execution[&id.to_string()].len(),
            2,
            "one event of the step and one of the execution"
        );
    }
    const OLDER: &str = "
        select count(*) from recoup.feed
        where lane <> $1 and number > (select min(number) from recoup.feed where lane = $1)";
    let younger: i64 = scanner.query_one(OLDER, &[&slow.lane]).await.expect("counts").get(0);
    assert!(younger > 1_000, "{younger} events are younger than the first of the slow transaction");
    assert!(before as i64 >= younger * 9 / 10, "{before} of {younger} arrived while it was open");
    other.batch_execute("rollback").await.expect("it is open");
    slow.engine.stop().await;
}
