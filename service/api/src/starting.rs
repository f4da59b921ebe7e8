//! What a server answers while it waits for its store.

use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::ServingStatus;

use crate::health;
use crate::status::Error;

/// NOT_SERVING to health checks, and `STORE_UNAVAILABLE` to every other call.
pub async fn starting() -> Routes {
    let (reporter, health) = tonic_health::server::health_reporter();
    health::report(&reporter, ServingStatus::NotServing).await;
    let refuse = async || {
        let status = Status::from(Error::store_unavailable("the server waits for its database"));
        status.into_http::<Body>()
    };
    Routes::from(Routes::new(health).into_axum_router().fallback(refuse))
}
