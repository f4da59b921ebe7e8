//! A reader of the feed beside writers, and beside transactions that are older than the events it reads.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use recoup_store::conformance::World;
use recoup_store::postgres::{Options, PostgresStore};
use recoup_store::{Batch, Feed, NodeId, PageLimit, Transition, Transitions};
use recoup_test_postgres::Server;

const BATCHES: usize = 150;
const EVENTS: usize = 4;

async fn write(store: PostgresStore, world: Arc<World>, node: NodeId) {
    for number in 0..BATCHES {
        let id = world.id();
        let feed = (0..EVENTS)
            .map(|event| world.event(&format!("lane {} batch {number} event {event}", node.0), id));
        let start = Transition { feed: feed.collect(), ..world.start(id) };
        let free = world.free_event(&format!("lane {} batch {number}", node.0));
        let batch = Batch { transitions: vec![start], feed: vec![free], ..Batch::default() };
        store.commit(node, &batch).await.expect("commits");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_older_transactions_neither_hide_events_nor_delay_readers() {
    let server = Server::shared();
    let (database, elsewhere) = (server.database().await, server.database().await);
    let store =
        PostgresStore::connect(&database.url(), Options::default()).await.expect("connects");
    let world = Arc::new(World::open(Arc::new(store.clone())).await);
    let slow_lane = world.node().await;
    let lanes = [world.node().await, world.node().await];

    // A write transaction in another database. It holds back every transaction horizon of the Postgres server.
    let other = elsewhere.client().await;
    other
        .batch_execute("create table t (n int); begin; insert into t values (1)")
        .await
        .expect("ok");
    // A lane whose commit takes long. Its events have the lowest numbers of all.
    let slow = database.client().await;
    slow.batch_execute("set search_path = recoup; begin").await.expect("ok");
    const SLOW: &str = "
        insert into feed (lane, number, id, namespace, kind, workflow, error_type, fingerprint, at,
            format, data)
        select $1, (extract(epoch from clock_timestamp()) * 1000000)::int8 + n, 'slow ' || n,
            'default', 'worker_lost', '', '', '', clock_timestamp(), 1, ''
        from generate_series(1, 5) as n";
    slow.execute(SLOW, &[&slow_lane.0]).await.expect("ok");

    let start = store.feed_start().await.expect("reads");
    let writers = lanes.map(|node| tokio::spawn(write(store.clone(), Arc::clone(&world), node)));
    let written = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (store, written) = (store.clone(), Arc::clone(&written));
        async move {
            let (mut seen, mut cursor, mut doubled) = (BTreeSet::new(), start, 0);
            let mut before_the_slow_one = 0;
            loop {
                // Read the flag before the page, so that the last page is read after everything was written.
                let is_last = written.load(Ordering::SeqCst);
                let page = store.read_feed(&cursor, PageLimit::events(7)).await.expect("reads");
                let is_full = page.events.len() == 7;
                for event in page.events {
                    if event.row.id.starts_with("slow") && before_the_slow_one == 0 {
                        before_the_slow_one = seen.len();
                    }
                    doubled += usize::from(!seen.insert(event.row.id));
                }
                assert_eq!(page.gap, None);
                cursor = page.cursor;
                if !is_full {
                    if is_last {
                        return (seen, before_the_slow_one, doubled);
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    });
    for writer in writers {
        writer.await.expect("no panic");
    }
    slow.batch_execute("commit").await.expect("commits");
    written.store(true, Ordering::SeqCst);
    let (read, before_the_slow_one, doubled) = reader.await.expect("no panic");

    let scanned = database.client().await.query("select id from recoup.feed", &[]).await;
    let scanned: BTreeSet<String> = scanned.expect("scans").iter().map(|row| row.get(0)).collect();
    println!(
        "the reader received {} events, a scan gives {}; {before_the_slow_one} of them came before \
         the slow transaction",
        read.len(),
        scanned.len()
    );
    assert_eq!(read, scanned);
    assert_eq!(scanned.len(), lanes.len() * BATCHES * (EVENTS + 1) + 5);
    assert_eq!(doubled, 0);
    assert!(before_the_slow_one > 0, "the open transactions held up the reader");
    other.batch_execute("rollback").await.expect("ok");
}
