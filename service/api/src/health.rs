//! grpc.health.v1: SERVING only while the store answers and accepts writes.

use std::time::Duration;

use recoup_engine::Engine;
use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

/// The server as a whole (the empty name), and each service.
const SERVICES: [&str; 6] = [
    "",
    "recoup.v1.ExecutionService",
    "recoup.v1.FailureService",
    "recoup.v1.NamespaceService",
    "recoup.v1.WorkerService",
    "recoup.v1.WorkflowService",
];
const INTERVAL: Duration = Duration::from_secs(1);
/// A store that takes longer than this counts as not answering.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Reports the same status for the server and for each service.
pub async fn report(reporter: &HealthReporter, status: ServingStatus) {
    for name in SERVICES {
        reporter.set_service_status(name, status).await;
    }
}

pub fn service(engine: Engine, mut shutdown: watch::Receiver<bool>) -> HealthServer<impl Health> {
    let (reporter, server) = tonic_health::server::health_reporter();
    tokio::spawn(async move {
        let mut was: Option<bool> = None;
        loop {
            let answer = tokio::time::timeout(TIMEOUT, engine.store().now()).await;
            let (answers, writing) = (matches!(answer, Ok(Ok(_))), engine.is_writing());
            let is_up = answers && writing && !*shutdown.borrow();
            if was != Some(is_up) {
                match (was, is_up || *shutdown.borrow()) {
                    (None, _) => {}
                    (_, true) => tracing::info!(is_up, "readiness changed"),
                    (_, false) => tracing::warn!(
                        answers,
                        writing,
                        "not ready: the store does not answer, or accepts no writes"
                    ),
                }
                let status = if is_up { ServingStatus::Serving } else { ServingStatus::NotServing };
                report(&reporter, status).await;
                was = Some(is_up);
            }
            if *shutdown.borrow() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                // An error means that the sender is gone, which also means that the server is stopping.
                _ = shutdown.wait_for(|stop| *stop) => {}
            }
        }
    });
    server
}
