//! The answers of a server that is still waiting for its store.

use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::ServingStatus;

use crate::health;
use crate::status::Error;

/// Answers health checks with NOT_SERVING, and every other call with `STORE_UNAVAILABLE`.
pub async fn starting() -> Routes {
    let (reporter, health) = tonic_health::server::health_reporter();
    health::report(&reporter, ServingStatus::NotServing).await;
    let refuse = async || {
        let status =
            Status::from(Error::store_unavailable("the server is waiting for its database"));
        status.into_http::<Body>()
    };
    Routes::from(Routes::new(health).into_axum_router().fallback(refuse))
}
