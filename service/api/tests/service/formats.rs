//! The rules by which servers of different versions share a store.

use std::sync::Arc;
use std::time::SystemTime;

use recoup_core::time::Timestamp;
use recoup_proto::v1;
use recoup_store::format::Formats;
use recoup_store::memory::{MemoryStore, Options};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::server::{ORDER, PATIENCE, Server, source, start};

/// A server on a store whose rows may be written up to these formats.
async fn server(writable: Formats) -> Server {
    let clock = Arc::new(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
    });
    let options = Options { writable: Some(writable), ..Options::default() };
    Server::on(Arc::new(MemoryStore::with_options(clock, options)), |_| {}).await
}

fn assert_not_finalized(status: &Status, row: &str) {
    assert_needs(status, row, 1);
}

/// Checks that the call was refused because the store may only hold rows of the format before `needed`.
fn assert_needs(status: &Status, row: &str, needed: u16) {
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("recoup admin finalize"), "{status:?}");
    let details = status.get_error_details();
    let info = details.error_info().expect("every error has one");
    assert_eq!(info.reason, "FORMAT_NOT_FINALIZED");
    let metadata = ["row", "needed", "writable"].map(|name| info.metadata[name].as_str());
    let (needed, writable) = (needed.to_string(), (needed - 1).to_string());
    assert_eq!(metadata, [row, &needed, &writable]);
}

async fn subscribe(server: &Server) -> Result<(), Status> {
    let subscription = v1::Subscription { name: "ops".into(), ..Default::default() };
    let request =
        v1::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
    server.failures().create_subscription(request).await.map(drop)
}

#[tokio::test]
async fn unfinalized_formats_are_refused_until_an_operator_finalizes_them() {
    // Format 0 is older than the first one, so that every row of these kinds needs a newer format than is
    // allowed.
    let server = server(Formats { definition: 0, subscription: 0, ..Formats::NEWEST }).await;
    let refused = server.workflows().register_workflow(source(ORDER)).await.expect_err("refused");
    assert_not_finalized(&refused, "definition");
    assert_not_finalized(&subscribe(&server).await.expect_err("refused"), "subscription");

    let formats = server.admin().get_formats(v1::GetFormatsRequest {}).await;
    let formats = formats.expect("it answers").into_inner();
    assert_eq!(formats.writable.expect("always there").definition, 0);
    let newest = u32::from(Formats::NEWEST.definition);
    assert_eq!(formats.readable.expect("a server is running").definition, newest);
    assert_eq!(formats.nodes.len(), 1);

    let finalized = server.admin().finalize_formats(v1::FinalizeFormatsRequest {}).await;
    let finalized = finalized.expect("it answers").into_inner();
    assert_eq!(finalized.writable, finalized.readable);
    server.register(ORDER).await;
    subscribe(&server).await.expect("allowed");
}

#[tokio::test]
async fn start_is_refused_until_the_history_format_is_finalized() {
    let server = server(Formats { history: 0, ..Formats::NEWEST }).await;
    server.register(ORDER).await;
    let keyed = |key: &str| {
        let mut request = start("order", "");
        request.execution.as_mut().expect("a start has one").execution_key = key.to_owned();
        request
    };
    for key in ["", "a"] {
        let refused = server.executions().start_execution(keyed(key)).await.expect_err("refused");
        assert_not_finalized(&refused, "history");
    }

    let finalized = server.admin().finalize_formats(v1::FinalizeFormatsRequest {}).await;
    finalized.expect("it answers");
    // The server learns that the format is allowed when it next renews its lease.
    let allowed = async {
        while let Err(refused) = server.executions().start_execution(keyed("a")).await {
            // It must not say that nothing was done: a server that has renewed its lease already may have
            // accepted the same start.
            assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        }
    };
    tokio::time::timeout(PATIENCE, allowed).await.expect("in time");
}

const BLOCKS: &str =
    "{name: blocks, steps: [{id: a, set: 1}, {id: b, try: {steps: [{id: c, set: 2}]}}]}";

#[tokio::test]
async fn workflow_with_blocks_needs_newer_formats_of_definitions_and_histories() {
    let server = server(Formats { definition: 1, history: 2, ..Formats::NEWEST }).await;
    let refused = server.workflows().register_workflow(source(BLOCKS)).await.expect_err("refused");
    assert_needs(&refused, "definition", 2);
    server.register(ORDER).await;

    let server = self::server(Formats { history: 2, ..Formats::NEWEST }).await;
    server.register(BLOCKS).await;
    let started = server.executions().start_execution(start("blocks", "")).await;
    assert_needs(&started.expect_err("refused"), "history", 3);
    server.register(ORDER).await;
    server
        .executions()
        .start_execution(start("order", ""))
        .await
        .expect("it needs no newer format");
}
