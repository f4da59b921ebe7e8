//! Statements that take long. Only their caller waits for them, and not without a limit.

use std::sync::Arc;
use std::time::Duration;

use recoup_store::conformance::World;
use recoup_store::postgres::{Options, PostgresStore};
use recoup_store::{Batch, Error, Executions, ListFilter, Nodes, Registry, Settled, Transitions};
use recoup_test_postgres::{Database, Server};
use tokio_postgres::Client;

/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(120);
/// An event that has not happened after this time counts as not happening.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes a lock with which no other transaction can read the index of executions while this client lives.
async fn lock_executions(database: &Database) -> Client {
    let locker = database.client().await;
    const LOCK: &str = "begin; lock table recoup.execution in access exclusive mode";
    locker.batch_execute(LOCK).await.expect("no transaction uses the table");
    locker
}

/// Waits until exactly this many statements wait for that lock.
async fn waiting(database: &Database, count: i64) {
    const WAITING: &str = "
        select count(*) from pg_locks
        where relation = 'recoup.execution'::regclass and not granted";
    let observer = database.client().await;
    let watch = async {
        while observer.query_one(WAITING, &[]).await.expect("asks").get::<_, i64>(0) != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let watched = tokio::time::timeout(PATIENCE, watch).await;
    watched.unwrap_or_else(|_| panic!("{count} statements never waited"));
}

/// Options with a pool of one connection, for everything except commits and the lease.
fn narrow() -> Options {
    Options { pool_size: 1, lock_timeout: LONG, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_call_frees_its_connection_and_stops_its_statement() {
    let database = Server::shared().database().await;
    let store = PostgresStore::connect(&database.url(), narrow()).await.expect("connects");
    let _locker = lock_executions(&database).await;

    let listing = tokio::spawn({
        let store = store.clone();
        async move { store.list(&ListFilter::default(), None, 10).await }
    });
    waiting(&database, 1).await;
    listing.abort();
    assert!(listing.await.expect_err("it is still waiting").is_cancelled());

    let answer = tokio::time::timeout(PATIENCE, store.now()).await;
    answer.expect("the next caller does not wait for the abandoned statement").expect("answers");
    // The server has stopped executing the statement as well.
    waiting(&database, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_is_renewed_while_the_pool_is_exhausted() {
    let database = Server::shared().database().await;
    let options = Options { connect_timeout: Duration::from_secs(2), ..narrow() };
    let store = PostgresStore::connect(&database.url(), options).await.expect("connects");
    let node = store.join("test:1", LONG).await.expect("joins").node;
    let _locker = lock_executions(&database).await;

    let listing = tokio::spawn({
        let store = store.clone();
        async move { store.list(&ListFilter::default(), None, 10).await }
    });
    waiting(&database, 1).await;
    assert!(
        matches!(store.now().await, Err(Error::Unavailable(_))),
        "the only connection is taken"
    );
    store
        .renew(node, LONG, recoup_core::time::Timestamp::default())
        .await
        .expect("the lease has its own");
    store.leave(node).await.expect("the lease has its own");
    listing.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unanswered_statement_times_out_and_its_connection_is_replaced() {
    let database = Server::shared().database().await;
    let options = Options { answer_timeout: Duration::from_millis(500), ..narrow() };
    let store = PostgresStore::connect(&database.url(), options).await.expect("connects");
    let locker = lock_executions(&database).await;
    let all = ListFilter::default();
    let listing = tokio::time::timeout(PATIENCE, store.list(&all, None, 10));
    let listed = listing.await.expect("it ends by itself");
    assert!(matches!(listed, Err(Error::Unavailable(_))), "{listed:?}");
    drop(locker);
    let listed = tokio::time::timeout(PATIENCE, async {
        // Retries until the server has noticed that the lock's holder is gone.
        while store.list(&all, None, 10).await.is_err() {}
    });
    listed.await.expect("the connection was replaced");
}

/// The answers to a pipeline arrive while they are read. The statements after a failed one fail only because
/// the transaction is broken. If one of these errors were taken for the cause, the store would not see that it
/// must refuse one transition.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn refused_transition_is_found_however_pipelined_answers_arrive() {
    let database = Server::shared().database().await;
    let store =
        PostgresStore::connect(&database.url(), Options::default()).await.expect("connects");
    let world = World::open(Arc::new(store.clone())).await;
    let node = world.node().await;
    for number in 0..500 {
        let mut wrong = world.start(world.id());
        wrong.request = Some(world.request(&format!("{number}\0"), 1));
        wrong.feed = vec![world.event(&format!("event {number}"), wrong.execution)];
        let sound = world.start(world.id());
        let batch = Batch { transitions: vec![wrong, sound], ..Batch::default() };
        let settled = store.commit(node, &batch).await;
        let settled = settled.unwrap_or_else(|error| panic!("batch {number}: {error}"));
        assert!(matches!(settled[0], Settled::Refused(_)), "batch {number}: {settled:?}");
        assert_eq!(settled[1], Settled::Won, "batch {number}");
    }
}
