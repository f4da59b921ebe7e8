//! The embedded store passes the suite of all stores.

use std::sync::Arc;

use async_trait::async_trait;
use recoup_store::Store;
use recoup_store::conformance::Harness;
use recoup_store::sqlite::SqliteStore;
use tempfile::TempDir;

/// The folder goes when the case is over.
struct Embedded(TempDir);

#[async_trait]
impl Harness for Embedded {
    async fn fresh(&self) -> Arc<dyn Store> {
        Arc::new(SqliteStore::open(self.0.path()).expect("an empty folder"))
    }
}

recoup_store::conformance!(Embedded(tempfile::tempdir().expect("a folder")));
