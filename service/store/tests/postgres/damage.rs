//! Rows that were changed by something other than the store.

use std::sync::Arc;

use recoup_store::conformance::World;
use recoup_store::postgres::{Options, PostgresStore};
use recoup_store::{Executions, Transition, format};
use recoup_test_postgres::Server;

#[tokio::test]
async fn every_damaged_byte_of_a_history_row_is_noticed() {
    let database = Server::shared().database().await;
    let store = PostgresStore::connect(&database.url(), Options::default()).await;
    let store = store.expect("a new database takes the schema");
    let world = World::open(Arc::new(store.clone())).await;
    let (node, id) = (world.node().await, world.id());
    let data = format::encode_transition(world.now, &[]).data;
    world.won(node, [Transition { data: data.clone(), ..world.start(id) }]).await;
    let decoded = async || {
        let history = store.load(node, &[id]).await.expect("loads").remove(0);
        let read = store.history(id, 0, 1).await.expect("reads").remove(0);
        let decoded = history.transitions[0].decode(id);
        assert_eq!(read.decode(id), decoded, "both ways of reading agree");
        decoded
    };
    assert!(decoded().await.is_ok());

    let client = database.client().await;
    let mut damages = vec![
        ("format = format + 1".to_owned(), "format = format - 1".to_owned()),
        ("checksum = checksum # 1".to_owned(), "checksum = checksum # 1".to_owned()),
    ];
    for at in 0..data.len() {
        let flip = format!("data = set_byte(data, {at}, get_byte(data, {at}) # 4)");
        damages.push((flip.clone(), flip));
    }
    for (damage, repair) in damages {
        let update = async |change: &str| {
            let sql = format!("update recoup.history set {change}");
            assert_eq!(client.execute(&sql, &[]).await.expect("is valid"), 1);
        };
        update(&damage).await;
        assert_eq!(decoded().await, Err(format::Error::Damaged), "after {damage}");
        update(&repair).await;
        assert!(decoded().await.is_ok(), "after {repair}");
    }
}
