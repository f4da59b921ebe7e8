//! What every store promises, and the comparison with the model.

use std::sync::Arc;

use async_trait::async_trait;
use recoup_store::conformance::Harness;
use recoup_store::postgres::{Options, PostgresStore};
use recoup_test_postgres::Server;

struct Postgres;

#[async_trait]
impl Harness for Postgres {
    async fn fresh(&self) -> Arc<dyn recoup_store::Store> {
        let database = Server::shared().database().await;
        let store = PostgresStore::connect(&database.url(), Options::default()).await;
        Arc::new(store.expect("a new database takes the schema"))
    }
}

recoup_store::conformance!(Postgres);

/// Other orders of operations than the one that every store is compared with.
#[tokio::test]
async fn agrees_with_the_model_in_other_orders() {
    for seed in 2..=5 {
        recoup_store::conformance::differential::compare(Postgres.fresh().await, seed).await;
    }
}
