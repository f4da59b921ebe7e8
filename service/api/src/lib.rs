//! The services of `recoup.v1` on top of an engine: they translate messages and report why a call is refused.
//!
//! This crate decides nothing about executions. Core does that, through the engine.
//!
//! # Map
//!
//! | module | holds |
//! | --- | --- |
//! | `execution_service` | ExecutionService |
//! | `workflow_service` | WorkflowService |
//! | `namespace_service` | NamespaceService |
//! | `failure_service` | FailureService |
//! | `admin_service` | AdminService |
//! | `worker` | WorkerService: polls, streams, results and sessions |
//! | `health` | grpc.health.v1 |
//! | `context` | the engine and the options that all services share |
//! | `convert` | conversions between the messages and the types of core, one file per subject |
//! | `status` | why a call is refused, and how that looks on the wire |
//! | `mutation` | request ids, digests and the fields that all changes of an execution have |
//! | `definition_check` | the checks of a definition before it is registered |
//! | `page` | pages of lists and their tokens |
//! | `digest` | the hash that is stored beside request ids and travels in page tokens |
//! | `feed` | reading the failure feed: pages, and streams of readers that keep their cursor themselves |
//! | `feed_streams` | how many streams of the feed are open at once |
//! | `subscriptions` | creating, reading, listing and deleting durable subscriptions |
//! | `durable` | delivering the feed to a durable subscription |
//! | `ack_token` | the tokens that acknowledge a delivery |
//! | `metadata` | the deadline and the trace context of a call |
//! | `compression` | which answers are compressed |
//! | `transport` | the limits of one connection to the server |
//! | `unread` | how many bytes of answers a connection may leave unread |
//! | `options` | the settings of the services, and the sizes of messages |
//! | `starting` | the answers of a server that waits for its store |

mod ack_token;
mod admin_service;
mod compression;
mod context;
pub mod convert;
pub mod definition_check;
mod digest;
mod durable;
mod execution_service;
mod failure_service;
mod feed;
mod feed_streams;
mod health;
mod metadata;
mod mutation;
mod namespace_service;
mod options;
mod page;
mod starting;
pub mod status;
mod subscriptions;
mod transport;
mod unread;
mod worker;
mod workflow_service;

use std::sync::Arc;

use recoup_engine::Engine;
use recoup_proto::v1::admin_service_server::AdminServiceServer;
use recoup_proto::v1::execution_service_server::ExecutionServiceServer;
use recoup_proto::v1::failure_service_server::FailureServiceServer;
use recoup_proto::v1::namespace_service_server::NamespaceServiceServer;
use recoup_proto::v1::worker_service_server::WorkerServiceServer;
use recoup_proto::v1::workflow_service_server::WorkflowServiceServer;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;

use compression::Compression;
use context::Context;
pub(crate) use options::BATCH_BYTES_MAX;
pub use options::{ApiOptions, FEED_PAGE_BYTES, FEED_STREAMS_MAX, MESSAGE_BYTES_MAX, RETENTION};
pub use starting::starting;
pub use transport::transport;
pub use unread::Unread;

/// All services, with grpc.health.v1 and server reflection. Must be called within a Tokio runtime: a task
/// watches the health of the store until shutdown.
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
        .add_service(limited!(
            NamespaceServiceServer,
            namespace_service::Service::new(context.clone())
        ))
        .add_service(limited!(AdminServiceServer, admin_service::Service::new(context)))
        .add_service(health)
        .add_service(reflection().build_v1().expect(known))
        .add_service(reflection().build_v1alpha().expect(known))
        .prepare()
}

/// Reflection that includes the details of errors. Clients that know the services only by reflection, such
/// as grpcurl, need them to show why a call was refused.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(recoup_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}
