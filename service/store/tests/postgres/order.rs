//! The order in which a batch writes, and so locks, the rows of its tables.

use std::sync::Arc;

use recoup_core::execution::{CompensationState, State};
use recoup_store::conformance::World;
use recoup_store::postgres::{Options, PostgresStore};
use recoup_store::{Settled, Transition};
use recoup_test_postgres::Server;

/// Records which tables a statement writes, in the order in which it begins with each.
const NOTE: &str = "
    create table recoup.written (at bigserial, name text);
    create function recoup.note() returns trigger language plpgsql as $$
    begin
        insert into recoup.written (name) values (tg_table_name || ' ' || lower(tg_op));
        return null;
    end $$;
    create trigger note before insert on recoup.start_request
        for each statement execute function recoup.note();
    create trigger note before insert on recoup.history
        for each statement execute function recoup.note();
    create trigger note before insert or update on recoup.execution
        for each statement execute function recoup.note();
    create trigger note before insert on recoup.feed
        for each statement execute function recoup.note();
    create trigger note before delete on recoup.overflow_task
        for each statement execute function recoup.note()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_statement_commit_writes_tables_in_the_multi_statement_order() {
    let database = Server::shared().database().await;
    let store = PostgresStore::connect(&database.url(), Options::default()).await;
    let world = World::open(Arc::new(store.expect("connects"))).await;
    let node = world.node().await;
    let client = database.client().await;
    client.batch_execute(NOTE).await.expect("the test owns the database");

    let mut written = Vec::new();
    for has_overflow in [false, true] {
        let begun = world.begun(node, world.index()).await;
        client.batch_execute("delete from recoup.written").await.expect("forgets the start");
        let id = world.id();
        let request = Some(world.request(&format!("start of {id}"), 7));
        let start = Transition { request, ..world.start(id) };
        let next = Transition {
            index: Some(world.in_state(State::Succeeded, CompensationState::None)),
            feed: vec![world.event(&format!("of {begun}"), begun)],
            overflow_done: has_overflow.then(|| world.task(begun, "s").key()).into_iter().collect(),
            ..world.next(begun, 2)
        };
        assert_eq!(world.commit(node, [start, next]).await, [Settled::Won, Settled::Won]);
        let rows = client.query("select name from recoup.written order by at", &[]).await;
        let names = rows.expect("reads").into_iter().map(|row| row.get::<_, String>(0));
        written.push(names.collect::<Vec<_>>());
    }
    let inserts = [
        "start_request insert",
        "history insert",
        "execution insert",
        "execution update",
        "feed insert",
    ];
    assert_eq!(written[0], inserts, "one statement");
    assert_eq!(written[1][..5], inserts, "several statements");
    assert_eq!(written[1][5..], ["overflow_task delete"]);
}
