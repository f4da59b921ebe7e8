//! The store's two drivers open connections at different times. They must not reach two different servers, nor
//! one that cannot be written to.

use std::sync::Arc;
use std::time::Duration;

use recoup_store::conformance::World;
use recoup_store::postgres::{Options, PostgresStore};
use recoup_store::{Batch, Error, Nodes, Registry, Transitions};
use recoup_test_postgres::proxy::Proxy;
use recoup_test_postgres::{Database, Server};

const LONG: Duration = Duration::from_secs(600);

async fn histories(database: &Database) -> i64 {
    let row = database.client().await.query_one("select count(*) from recoup.history", &[]).await;
    row.expect("asks").get(0)
}

fn options() -> Options {
    // How long the store tries to open a connection.
    Options { connect_timeout: Duration::from_secs(2), ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drivers_that_reach_two_different_servers_are_refused() {
    let (first, second) = (Server::start(&[]), Server::start(&[]));
    let (database, other) = (first.database().await, second.database().await);
    assert_eq!(database.name, other.name, "they differ in nothing but the server");
    PostgresStore::connect(&other.url(), options()).await.expect("makes the schema");
    let proxy = Proxy::start(database.port).await;
    let url = database.url_through(proxy.port());
    let store = PostgresStore::connect(&url, options()).await.expect("opens");
    let world = World::open(Arc::new(store.clone())).await;
    let node = world.node().await;
    let start = || Batch { transitions: vec![world.start(world.id())], ..Batch::default() };
    store.commit(node, &start()).await.expect("the lane is with the first server");
    assert_eq!(histories(&database).await, 1);

    // A new handle has no idle connections to the first server.
    let fresh = PostgresStore::connect(&url, options()).await.expect("opens");
    proxy.lead_to(&[other.port, database.port]);
    let refused = fresh.now().await.expect_err("its pool and its lane reach different servers");
    assert!(matches!(&refused, Error::Unavailable(_)), "{refused:?}");
    assert!(refused.to_string().contains("two servers"), "{refused}");

    // Now both drivers reach the other server. The node joined the first server and is unknown to this one, and
    // its lane must not stay connected to the first server alone.
    proxy.lead_to(&[other.port]);
    fresh.now().await.expect("both drivers reach the other server");
    store.suspect_idle();
    store.now().await.expect("both drivers reach the other server");
    let committed = store.commit(node, &start()).await;
    assert!(matches!(committed, Err(Error::LeaseLost)), "{committed:?}");
    assert_eq!((histories(&database).await, histories(&other).await), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_refused_until_it_is_promoted() {
    let mut server = Server::start(&[]);
    let database = server.database().await;
    let store = PostgresStore::connect(&database.url(), options()).await.expect("opens");
    let lease = store.join("test:1", LONG).await.expect("joins");

    // Restarts the server as a standby that follows no other server.
    let signal = "copy (select) to program 'touch standby.signal'";
    database.client().await.batch_execute(signal).await.expect("the folder is the server's");
    server.crash();
    let refused = PostgresStore::connect(&database.url(), options()).await;
    assert!(matches!(&refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert!(format!("{refused:?}").contains("standby"), "{refused:?}");
    // The first call may fail because its connection is broken. The second call opens a new one.
    let mut refused = store.now().await.expect_err("it is a standby");
    if !refused.to_string().contains("standby") {
        refused = store.now().await.expect_err("it is a standby");
    }
    assert!(refused.to_string().contains("standby"), "{refused}");

    database.client().await.query_one("select pg_promote()", &[]).await.expect("it may");
    store.now().await.expect("it is the primary now");
    let renewed = store.renew(lease.node, LONG, lease.now).await.expect("the lease is open");
    assert_ne!(renewed.timeline, lease.timeline);
}
