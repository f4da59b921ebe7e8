//! grpc.health.v1: SERVING only while the store answers and takes what is written.

use std::time::Duration;

use recoup_engine::Engine;
use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

/// The whole server, and each service.
const SERVICES: [&str; 6] = [
    "",
    "recoup.v1.ExecutionService",
    "recoup.v1.FailureService",
    "recoup.v1.NamespaceService",
    "recoup.v1.WorkerService",
    "recoup.v1.WorkflowService",
];
const INTERVAL: Duration = Duration::from_secs(1);
/// A store that takes longer does not answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Says the same of the server and of each service.
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
                        "not ready: the store does not answer, or takes nothing"
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
                // An error is the end of whoever could stop the server.
                _ = shutdown.wait_for(|stop| *stop) => {}
            }
        }
    });
    server
}
