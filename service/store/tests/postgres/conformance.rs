//! The suite that every store passes, and the comparison with the model.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use recoup_store::NodeId;
use recoup_store::conformance::Harness;
use recoup_store::format::Formats;
use recoup_store::postgres::{Options, PostgresStore};
use recoup_test_postgres::Server;

#[derive(Default)]
struct Postgres(Mutex<Option<PostgresStore>>);

#[async_trait]
impl Harness for Postgres {
    async fn fresh(&self) -> Arc<dyn recoup_store::Store> {
        let database = Server::shared().database().await;
        let store = PostgresStore::connect(&database.url(), Options::default()).await;
        let store = store.expect("a new database takes the schema");
        *self.0.lock().expect("one test has it") = Some(store.clone());
        Arc::new(store)
    }

    async fn set_lane(&self, node: NodeId, last: i64) {
        let store = self.0.lock().expect("one test has it").clone();
        store.expect("made before").set_lane(node, last);
    }

    fn reading(&self, formats: Formats) -> Arc<dyn recoup_store::Store> {
        let store = self.0.lock().expect("one test has it").clone();
        Arc::new(store.expect("made before").reading(formats))
    }
}

recoup_store::conformance!(Postgres::default());

/// Compares with the model in further orders of operations, beside the one that every store is tested with.
#[tokio::test]
async fn agrees_with_the_model_in_other_orders() {
    for seed in 2..=5 {
        recoup_store::conformance::differential::compare(&Postgres::default(), seed).await;
    }
}
