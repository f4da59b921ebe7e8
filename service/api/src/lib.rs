//! The services of `recoup.v1` over an engine: messages in, messages out, reasons for what is refused.
//!
//! One file per service, a folder for that of workers. [`convert`] stands between the messages and the types of core, [`status`]
//! says how errors look on the wire. Nothing here decides about executions: that is core's, through
//! the engine.

mod ack_token;
mod compression;
mod context;
pub mod convert;
pub mod definition_check;
mod digest;
mod durable;
mod execution_service;
mod failure_service;
mod feed;
mod health;
mod metadata;
mod mutation;
mod namespace_service;
mod page;
mod starting;
pub mod status;
mod subscriptions;
mod transport;
mod unread;
mod worker;
mod workflow_service;

use std::sync::Arc;
use std::time::Duration;

use recoup_engine::Engine;
use recoup_proto::v1::execution_service_server::ExecutionServiceServer;
use recoup_proto::v1::failure_service_server::FailureServiceServer;
use recoup_proto::v1::namespace_service_server::NamespaceServiceServer;
use recoup_proto::v1::worker_service_server::WorkerServiceServer;
use recoup_proto::v1::workflow_service_server::WorkflowServiceServer;
use tokio::sync::watch;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;

use compression::Compression;
use context::Context;
pub use starting::starting;
pub use transport::transport;
pub use unread::Unread;

/// Bytes of one message, either way: 4 MiB.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// What this service puts into one message of many items, at most: leaves room for the frame.
pub(crate) const BATCH_BYTES_MAX: usize = 3 << 20 | 512 << 10;
/// What one reader of the feed is sent at once, in bytes: 1 MiB.
pub const FEED_PAGE_BYTES: usize = 1 << 20;
/// Feed streams that one server has open: 256.
pub const FEED_STREAMS_MAX: usize = 256;
/// Of namespaces that name none, and of `default`: 30 days.
pub const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Clone, Debug)]
pub struct ApiOptions {
    /// Turns true when the server is going to stop: streams say so and end when they are idle, long
    /// polls answer at once.
    pub shutdown: watch::Receiver<bool>,
    /// Retention of namespaces that name none. Default: [`RETENTION`].
    pub retention: Duration,
    /// Bytes of stored events that are read for one reader of the feed at once; one event at least,
    /// however large. Default: [`FEED_PAGE_BYTES`]. A reader that takes nothing holds about two pages.
    pub feed_page_bytes: usize,
    /// Feed streams open at once; one more is refused with `LIMIT_REACHED`. Default:
    /// [`FEED_STREAMS_MAX`].
    pub feed_streams_max: usize,
}

impl ApiOptions {
    pub fn new(shutdown: watch::Receiver<bool>) -> Self {
        Self {
            shutdown,
            retention: RETENTION,
            feed_page_bytes: FEED_PAGE_BYTES,
            feed_streams_max: FEED_STREAMS_MAX,
        }
    }
}

/// All services, with grpc.health.v1 and server reflection. Must be called within a Tokio runtime:
/// the health of the store is watched by a task, until the shutdown.
pub fn router(engine: Engine, options: ApiOptions) -> Routes {
    let health = health::service(engine.clone(), options.shutdown.clone());
    let known = "the descriptors are those that this binary was built with";
    let context = Arc::new(Context::new(engine, options));
    macro_rules! limited {
        ($server:ident, $service:expr) => {
            Compression(
                $server::new($service)
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX)
                    .accept_compressed(CompressionEncoding::Gzip)
                    .send_compressed(CompressionEncoding::Gzip),
            )
        };
    }
    Routes::new(limited!(ExecutionServiceServer, execution_service::Service::new(context.clone())))
        .add_service(worker::Delivery(limited!(
            WorkerServiceServer,
            worker::Service::new(context.clone())
        )))
        .add_service(limited!(
            WorkflowServiceServer,
            workflow_service::Service::new(context.clone())
        ))
        .add_service(limited!(FailureServiceServer, failure_service::Service::new(context.clone())))
        .add_service(limited!(NamespaceServiceServer, namespace_service::Service::new(context)))
        .add_service(health)
        .add_service(reflection().build_v1().expect(known))
        .add_service(reflection().build_v1alpha().expect(known))
        .prepare()
}

/// With the details of errors: clients that know the services by reflection alone, such as grpcurl, read
/// from it what a refusal carries.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(recoup_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}
