//! Opening a store: when it is refused, and that several servers may do it at the same time.

use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use recoup_store::postgres::{Options, PostgresStore};
use recoup_store::{Error, Feed, Nodes, PageLimit, Registry, until_available};
use recoup_test_postgres::proxy::Proxy;
use recoup_test_postgres::{Database, Server};
use tokio_postgres::NoTls;

async fn sql(database: &Database, sql: &str) -> Vec<tokio_postgres::Row> {
    let (client, connection) =
        tokio_postgres::connect(&database.url(), NoTls).await.expect("connects");
    let driver = tokio::spawn(connection);
    let rows = client.query(sql, &[]).await.expect("is valid");
    drop(client);
    driver.await.expect("no panic").expect("ends in peace");
    rows
}

async fn connect(database: &Database) -> Result<PostgresStore, Error> {
    PostgresStore::connect(&database.url(), Options::default()).await
}

async fn refused(database: &Database, because: &str) {
    match connect(database).await {
        Err(Error::Incompatible(reason)) => assert!(reason.contains(because), "{reason}"),
        other => panic!("not refused because of {because:?}: {other:?}"),
    }
}

#[tokio::test]
async fn server_with_unsafe_durability_settings_is_refused() {
    let careless = Server::start(&[("fsync", "off")]);
    let database = careless.database().await;
    refused(&database, "fsync is off").await;
    let tables = sql(&database, "select from pg_namespace where nspname = 'recoup'").await;
    assert!(tables.is_empty(), "it was refused, but has the schema");

    let options = Options { allow_unsafe_durability: true, ..Options::default() };
    PostgresStore::connect(&database.url(), options).await.expect("unsafe durability is allowed");

    let database = Server::shared().database().await;
    let name = &database.name;
    sql(&database, &format!("alter database {name} set synchronous_commit = off")).await;
    refused(&database, "synchronous_commit is off").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_open_concurrently_migrate_once() {
    let database = Server::shared().database().await;
    let stores = join_all((0..6).map(|_| connect(&database))).await;
    let mut incarnations = Vec::new();
    for store in stores {
        let store = store.expect("one migrates, the others find it done");
        incarnations.push(store.feed_start().await.expect("reads").incarnation);
    }
    incarnations.dedup();
    assert_eq!(incarnations.len(), 1, "{incarnations:?}");
    let rows = sql(&database, "select count(*), max(version)::int8 from recoup.migration").await;
    assert_eq!(rows[0].get::<_, i64>(0), rows[0].get::<_, i64>(1));
    let ranges = "select count(*) from pg_inherits where inhparent = 'recoup.history'::regclass";
    let rows = sql(&database, ranges).await;
    assert_eq!(
        rows[0].get::<_, i64>(0),
        1 + 4,
        "the default range, the current one, and three ahead"
    );
}

#[tokio::test]
async fn changed_or_incompatible_newer_migration_is_refused() {
    let database = Server::shared().database().await;
    connect(&database).await.expect("a new database takes the schema");
    connect(&database).await.expect("and is opened again");

    let newer = "with newer as (
            insert into recoup.migration (version, description, success, checksum, execution_time)
            select max(version) + 1, 'later', true, 'x', 0 from recoup.migration
            returning version)
        insert into recoup.migration_oldest (version, oldest) select version, version from newer";
    sql(&database, newer).await;
    refused(&database, "is from a newer version").await;
    let accepts = "update recoup.migration_oldest set oldest = version - 1
        where version = (select max(version) from recoup.migration)";
    sql(&database, accepts).await;
    let store = connect(&database).await.expect("the newer schema accepts this binary");
    store.now().await.expect("answers");

    sql(&database, "update recoup.migration set checksum = 'x' where version = 3").await;
    refused(&database, "migration 3 (namespace) is not the one that was applied").await;
}

#[tokio::test]
async fn unreachable_server_or_malformed_connection_string_is_an_error() {
    let nowhere = "postgres://recoup@127.0.0.1:1/test";
    let unreachable = PostgresStore::connect(nowhere, Options::default()).await;
    assert!(matches!(unreachable, Err(Error::Unavailable(_))), "{unreachable:?}");
    let garbage = PostgresStore::connect("postgres://[", Options::default()).await;
    assert!(matches!(garbage, Err(Error::Incompatible(_))), "{garbage:?}");
    let database = Server::shared().database().await;
    let encrypted = format!("{}?sslmode=require", database.url());
    match PostgresStore::connect(&encrypted, Options::default()).await {
        Err(Error::Unavailable(reason)) => assert!(reason.contains("TLS"), "{reason}"),
        other => panic!("the server has no certificate: {other:?}"),
    }
}

/// After a dump is restored into another database, that database refuses cursors of the old one. Its lease has
/// another timeline, which tells servers to drop the states that they have cached.
#[tokio::test]
async fn restored_dump_has_another_timeline_and_refuses_old_cursors() {
    let server = Server::shared();
    let (old, new) = (server.database().await, server.database().await);
    let before = connect(&old).await.expect("opens");
    let lease = before.join("test:1", Duration::from_secs(60)).await.expect("joins");
    let cursor = before.feed_end().await.expect("reads");

    let tool = |name: &str, database: &Database| {
        let mut command = Command::new(server.bin().join(name));
        command.args(["--dbname", &database.url()]).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command
    };
    let mut dump = tool("pg_dump", &old).spawn().expect("starts");
    let dumped = dump.stdout.take().expect("piped");
    let restored = tool("psql", &new)
        .args(["--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1"])
        .stdin(dumped)
        .output()
        .expect("starts");
    assert!(restored.status.success() && dump.wait().expect("ours").success());

    let after = connect(&new).await.expect("opens");
    let read = after.read_feed(&cursor, PageLimit::events(10)).await;
    assert!(matches!(read, Err(Error::ForeignCursor)), "{read:?}");
    let renewed =
        after.renew(lease.node, Duration::from_secs(60), lease.now).await.expect("still open");
    assert_ne!(renewed.timeline, lease.timeline);
    assert_eq!(
        before
            .renew(lease.node, Duration::from_secs(60), lease.now)
            .await
            .expect("renews")
            .timeline,
        lease.timeline
    );
    before.read_feed(&cursor, PageLimit::events(10)).await.expect("it is its own cursor");
    assert!(after.now().await.expect("answers") > lease.now);
}

/// The connection comes and goes while a server starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_waits_for_an_unavailable_database() {
    let database = Server::shared().database().await;
    let proxy = Proxy::start(database.port).await;
    let url = database.url_through(proxy.port());
    proxy.refuse(3);
    let open = async || PostgresStore::connect(&url, Options::default()).await;
    let store = until_available(Duration::from_secs(600), open).await.expect("it comes");
    assert_eq!(proxy.refuses(), 0, "every refused connection was retried");
    store.now().await.expect("it answers");

    proxy.refuse(usize::MAX);
    let gone = until_available(Duration::ZERO, open).await.expect_err("it is away");
    assert!(matches!(gone, Error::Unavailable(_)), "{gone:?}");
    // An error that waiting cannot resolve is returned at once.
    let mut attempts = 0;
    let refused = until_available(Duration::from_secs(600), async || {
        attempts += 1;
        PostgresStore::connect("no connection string", Options::default()).await
    });
    assert!(matches!(refused.await, Err(Error::Incompatible(_))));
    assert_eq!(attempts, 1);
}
