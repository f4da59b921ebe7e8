//! A database that is unreachable or accepts no writes: callers and health checks learn of it in time.

use std::time::Duration;

use recoup_end_to_end::connect;
use recoup_end_to_end::load::spec;
use recoup_end_to_end::order;
use recoup_end_to_end::server::{Folder, Server};
use recoup_proto::v1;
use recoup_test_postgres::Server as Postgres;
use recoup_test_postgres::proxy::Proxy;
use tonic::Status;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

/// How long the tests wait before they fail.
const PATIENCE: Duration = Duration::from_secs(60);

async fn health(channel: &Channel, service: &str) -> Option<ServingStatus> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel.clone()).check(request).await.ok()?;
    Some(answer.into_inner().status())
}

async fn until_health(channel: &Channel, wanted: ServingStatus) {
    for service in ["", "recoup.v1.ExecutionService"] {
        let waiting = async {
            while health(channel, service).await != Some(wanted) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let became = tokio::time::timeout(PATIENCE, waiting).await;
        became.unwrap_or_else(|_| panic!("`{service}` does not become {wanted:?}"));
    }
}

async fn start(channel: &Channel, number: u64) -> Result<String, Status> {
    let request = v1::StartExecutionRequest {
        execution: Some(spec(number)),
        request_id: format!("request-{number}"),
    };
    let mut executions = connect::executions(channel.clone());
    let answer = tokio::time::timeout(PATIENCE, executions.start_execution(request)).await;
    Ok(answer.expect("a call to a server without a database ends")?.into_inner().execution_id)
}

/// Checks that the call was refused for one of these reasons, with a delay after which to retry.
fn assert_refused_with_retry_delay(status: &Status, reasons: &[&str]) {
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    assert!(reasons.contains(&connect::reason(status).as_str()), "{status:?}");
    let retry = status.get_details_retry_info().and_then(|retry| retry.retry_delay);
    assert!(retry.is_some_and(|delay| !delay.is_zero()), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_reports_not_serving_until_its_database_is_reachable() {
    let folder = Folder::new("waits");
    let database = Postgres::shared().database().await;
    let proxy = Proxy::start(database.port).await;
    proxy.refuse(usize::MAX);
    let server = Server::not_ready_on_postgres(folder.path(), &database.url_through(proxy.port()));
    let channel = connect::channel(&server.url());
    until_health(&channel, ServingStatus::NotServing).await;
    let refused = start(&channel, 1).await.expect_err("there is no database");
    assert_refused_with_retry_delay(&refused, &["STORE_UNAVAILABLE"]);
    assert!(server.process.log().contains("waiting for the database"), "{}", server.process.log());

    proxy.refuse(0);
    server.until_it_listens();
    until_health(&channel, ServingStatus::Serving).await;
    connect::register(channel.clone(), order::DEFINITION).await;
    start(&channel, 1).await.expect("the database is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_accepts_no_writes_fails_calls_and_health_checks() {
    let folder = Folder::new("takes-nothing");
    let database = Postgres::shared().database().await;
    let server = Server::on_postgres(folder.path(), &database.url());
    let channel = connect::channel(&server.url());
    connect::register(channel.clone(), order::DEFINITION).await;
    until_health(&channel, ServingStatus::Serving).await;

    let mut locker = database.client().await;
    let lock = locker.transaction().await.expect("it begins");
    lock.batch_execute("lock table history in access exclusive mode").await.expect("it locks");
    let (first, second) = tokio::join!(start(&channel, 1), start(&channel, 2));
    let reasons = ["OUTCOME_UNKNOWN", "STORE_UNAVAILABLE"];
    assert_refused_with_retry_delay(&first.expect_err("the write is blocked"), &reasons);
    assert_refused_with_retry_delay(&second.expect_err("the write is blocked"), &reasons);
    until_health(&channel, ServingStatus::NotServing).await;

    lock.rollback().await.expect("the lock is released");
    until_health(&channel, ServingStatus::Serving).await;
    for number in [1, 2] {
        start(&channel, number).await.expect("the database accepts writes again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_waiting_for_its_database_stops_when_terminated() {
    let folder = Folder::new("waits-in-vain");
    let database = Postgres::shared().database().await;
    let proxy = Proxy::start(database.port).await;
    proxy.refuse(usize::MAX);
    let url = database.url_through(proxy.port());
    let mut server = Server::not_ready_on_postgres(folder.path(), &url);
    until_health(&connect::channel(&server.url()), ServingStatus::NotServing).await;
    server.process.terminate();
    let status = server.process.exit(PATIENCE).expect("the server exits");
    assert_eq!(status.code(), Some(0), "{}", server.process.log());
}
