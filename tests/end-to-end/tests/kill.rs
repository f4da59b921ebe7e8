//! Faults on real processes under load, twenty of each kind in a run. After the faults every execution must
//! end, and the histories, the workers' records and the events that the subscriber received must agree.
//!
//! The tests take long, so they are ignored by default: `tests/steps/70-kill` runs them. `RECOUP_KILL_HITS`
//! sets the number of faults in a run (default 20).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use recoup_end_to_end::connect;
use recoup_end_to_end::invariants::{
    self, Evidence, Violations, listed_failures, starts_again, until_all_ended,
};
use recoup_end_to_end::load::Load;
use recoup_end_to_end::order;
use recoup_end_to_end::server::{Folder, Server};
use recoup_end_to_end::subscriber::Subscriber;
use recoup_end_to_end::workers::Workers;
use recoup_proto::v1::FinalizeFormatsRequest;
use recoup_test_postgres::proxy::{Fault, Proxy};
use recoup_test_postgres::{Database, Server as Postgres};

const CLIENTS: usize = 24;
/// For each set of task types, one worker by stream and one by unary calls.
const WORKERS: usize = 4;
/// How many starts must be acknowledged between two faults, so that each fault strikes under load.
const STARTS_BETWEEN: usize = 15;
/// How much time must also pass between two faults, so that work which was held up can resume.
const TIME_BETWEEN: Duration = Duration::from_millis(1500);
/// If fewer starts are acknowledged within this time, the service counts as unavailable.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// A lease (6 s), a grace period (5 s) and the longest attempt (20 s), several times over.
const END_WITHIN: Duration = Duration::from_secs(120);
const FEED_WITHIN: Duration = Duration::from_secs(30);
/// How many of the starts are repeated at the end.
const SENT_AGAIN: usize = 300;

/// Load on one or more servers.
struct Run {
    name: &'static str,
    urls: Vec<String>,
    load: Load,
    workers: Workers,
    subscriber: Subscriber,
    hits: usize,
    began: Instant,
}

impl Run {
    async fn start(name: &'static str, folder: &Folder, servers: &[Server]) -> Self {
        let urls: Vec<String> = servers.iter().map(Server::url).collect();
        connect::register(connect::channel(&urls[0]), order::DEFINITION).await;
        let workers = Workers::start(folder.path(), &urls, WORKERS);
        let subscriber = Subscriber::start(&urls);
        let load = Load::start(&urls, CLIENTS);
        Self { name, urls, load, workers, subscriber, hits: 0, began: Instant::now() }
    }

    /// Waits until the next fault may strike. Returns false once there have been enough faults.
    async fn next_hit(&mut self) -> bool {
        if self.hits == hits() {
            self.until_started().await;
            return false;
        }
        self.until_started().await;
        self.hits += 1;
        true
    }

    async fn until_started(&self) {
        let before = self.load.acknowledged();
        let began = Instant::now();
        tokio::time::sleep(TIME_BETWEEN).await;
        while self.load.acknowledged() < before + STARTS_BETWEEN {
            assert!(began.elapsed() < STARTS_WITHIN, "no starts are acknowledged any more");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until every execution has ended, and checks the invariants.
    async fn finish(self) {
        let faults_over = Instant::now();
        let channel = connect::channel(&self.urls[0]);
        let repeated = self.load.repeated();
        let started = self.load.stop().await;
        until_all_ended(channel.clone(), END_WITHIN).await;
        let settled = faults_over.elapsed();

        let listed = listed_failures(channel.clone()).await;
        let deadline = Instant::now() + FEED_WITHIN;
        while !self.subscriber.ids().is_superset(&listed) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let executions = invariants::executions(channel.clone(), &[]).await;
        let mut histories = BTreeMap::new();
        for info in &executions {
            let history = invariants::history(channel.clone(), &info.execution_id).await;
            histories.insert(info.execution_id.clone(), history);
        }
        let mut violations = Violations::default();
        let sample = &started[..started.len().min(SENT_AGAIN)];
        starts_again(channel, sample, &mut violations).await;
        let records = self.workers.records();
        let received = self.subscriber.stop();
        let evidence = Evidence { started, executions, histories, records, received, listed };
        println!(
            "{}: {} hits in {:.0} s, everything ended {:.1} s after the last; {repeated} calls sent \
             again; {}",
            self.name,
            self.hits,
            (faults_over - self.began).as_secs_f64(),
            settled.as_secs_f64(),
            evidence.summary(),
        );
        evidence.check(&mut violations);
        violations.assert_none();
    }
}

fn hits() -> usize {
    let chosen = std::env::var("RECOUP_KILL_HITS").ok();
    chosen.map_or(20, |text| text.parse().expect("RECOUP_KILL_HITS is a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: run by tests/steps/70-kill"]
async fn killing_the_embedded_server_loses_nothing() {
    let folder = Folder::new("kill-server");
    let mut servers = [Server::embedded(folder.path())];
    let mut run = Run::start("kill -9 of the server, SQLite", &folder, &servers).await;
    while run.next_hit().await {
        servers[0].kill();
        servers[0].restart();
    }
    run.finish().await;
    assert_eq!(servers[0].starts(), hits() + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: run by tests/steps/70-kill"]
async fn killing_workers_loses_nothing() {
    let folder = Folder::new("kill-workers");
    let servers = [Server::embedded(folder.path())];
    let mut run = Run::start("kill -9 of workers, SQLite", &folder, &servers).await;
    while run.next_hit().await {
        run.workers.kill_next();
    }
    run.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: run by tests/steps/70-kill"]
async fn killing_either_of_two_servers_on_postgres_loses_nothing() {
    let folder = Folder::new("kill-two-servers");
    let postgres = Postgres::start(&[]);
    let url = postgres.database().await.url();
    let mut servers = [(); 2].map(|()| Server::on_postgres(folder.path(), &url));
    let mut run = Run::start("kill -9 of a server, two on Postgres", &folder, &servers).await;
    for turn in 0.. {
        if !run.next_hit().await {
            break;
        }
        // The killed server restarts at once, or only after the other one has had time to take over its
        // executions; the test alternates between the two.
        servers[turn % 2].kill();
        if turn % 4 >= 2 {
            run.until_started().await;
        }
        servers[turn % 2].restart();
    }
    run.finish().await;
    let starts: usize = servers.iter().map(Server::starts).sum();
    assert_eq!(starts, hits() + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: run by tests/steps/70-kill"]
async fn killing_workers_of_two_servers_on_postgres_loses_nothing() {
    let folder = Folder::new("kill-workers-postgres");
    let postgres = Postgres::start(&[]);
    let url = postgres.database().await.url();
    let servers = [(); 2].map(|()| Server::on_postgres(folder.path(), &url));
    let mut run =
        Run::start("kill -9 of workers, two servers on Postgres", &folder, &servers).await;
    while run.next_hit().await {
        run.workers.kill_next();
    }
    run.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: run by tests/steps/70-kill"]
async fn crashing_postgres_under_two_servers_loses_nothing() {
    let folder = Folder::new("crash-postgres");
    let mut postgres = Postgres::start(&[]);
    let url = postgres.database().await.url();
    let mut servers = [(); 2].map(|()| Server::on_postgres(folder.path(), &url));
    let name = "pg_ctl stop -m immediate, two servers on Postgres";
    let mut run = Run::start(name, &folder, &servers).await;
    while run.next_hit().await {
        postgres.crash();
    }
    run.finish().await;
    assert!(servers.iter_mut().all(|server| server.process.is_alive()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: run by tests/steps/70-kill"]
async fn cutting_postgres_connections_after_commit_loses_nothing() {
    let folder = Folder::new("cut-postgres");
    let postgres = Postgres::start(&[]);
    let database = postgres.database().await;
    let proxy = Proxy::start(database.port).await;
    let url = database.url_through(proxy.port());
    let mut servers = [(); 2].map(|()| Server::on_postgres(folder.path(), &url));
    let name = "cut between COMMIT and its answer, two servers on Postgres";
    let mut run = Run::start(name, &folder, &servers).await;
    while run.next_hit().await {
        proxy.arm(Fault::CutBeforeAnswer);
        let armed = Instant::now();
        while proxy.is_armed() {
            assert!(armed.elapsed() < STARTS_WITHIN, "nothing is committed any more");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    run.finish().await;
    assert!(servers.iter_mut().all(|server| server.process.is_alive()));
}

/// The newest format of any history row in the database.
async fn newest_format(database: &Database) -> i32 {
    let row =
        database.client().await.query_one("select max(format) from recoup.history", &[]).await;
    row.expect("the query is valid").get(0)
}

/// Replaces servers under load, one after the other, by those of a newer version and back, and at the end
/// allows the new formats. Nothing is lost or refused meanwhile. An execution that a server cannot read is not
/// quarantined, and every execution ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: run by tests/steps/70-kill"]
async fn updating_and_rolling_back_servers_under_load_loses_nothing() {
    let folder = Folder::new("two-versions");
    let postgres = Postgres::start(&[]);
    let database = postgres.database().await;
    let url = database.url();
    let mut servers = [(); 2].map(|()| Server::older_on_postgres(folder.path(), &url));
    let name = "two versions, two servers on Postgres";
    let run = Run::start(name, &folder, &servers).await;
    run.until_started().await;
    for server in &mut servers {
        server.update();
        run.until_started().await;
    }
    for server in &mut servers {
        server.roll_back();
        run.until_started().await;
    }
    for server in &mut servers {
        server.update();
        run.until_started().await;
    }
    assert_eq!(
        newest_format(&database).await,
        1,
        "a newer format was written before it was allowed"
    );

    let mut admin = connect::admin(connect::channel(&servers[0].url()));
    let finalized = admin.finalize_formats(FinalizeFormatsRequest {}).await;
    let writable = finalized
        .expect("it answers")
        .into_inner()
        .writable
        .expect("the answer has the writable formats");
    assert!(writable.history > 1, "{writable:?}");
    run.until_started().await;
    run.until_started().await;
    assert!(
        newest_format(&database).await > 1,
        "no newer format is written although it is allowed"
    );
    // After the new formats are allowed, a rollback comes too late, but it does no harm.
    servers[1].roll_back();
    run.until_started().await;
    servers[1].update();
    run.finish().await;
}
