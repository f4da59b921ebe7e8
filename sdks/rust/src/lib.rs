//! The Rust SDK of Recoup: a [`Client`] with a method for every call of the service, a [`Worker`] that runs
//! handlers for tasks, and [`Failures`], a subscriber to the failure feed.
//!
//! ```no_run
//! use recoup_sdk::{Client, TaskContext, TaskError, Worker};
//!
//! async fn greet(_context: TaskContext, name: String) -> Result<String, TaskError> {
//!     if name.is_empty() {
//!         return Err(TaskError::new("greeting.nobody").non_retryable());
//!     }
//!     Ok(format!("Hello, {name}!"))
//! }
//!
//! # async fn example() -> Result<(), recoup_sdk::Error> {
//! let client = Client::connect("http://127.0.0.1:7430").await?;
//! Worker::builder(client).task("greeting.say", greet).run(async { /* until this ends */ }).await?;
//! # Ok(())
//! # }
//! ```

// Map, for people who work on the SDK:
//
// | module | holds |
// | --- | --- |
// | `client` | `Client`: every RPC, with retries and typed errors |
// | `worker` | `Worker`: sessions by stream or by unary calls, and the handlers that they run |
// | `failures` | `Failures`: the subscriber to the failure feed |
// | `error` | `Error`: why a call of the service failed |
// | `task_error` | `TaskError`: what a handler reports |
// | `payload` | the conversion of values to payloads and back |
// | `backoff` | whether and when a call is repeated |

mod backoff;
mod client;
mod error;
mod failures;
mod payload;
mod task_error;
mod worker;

pub use recoup_proto::v1 as proto;

pub use self::client::{
    AckOutcome, Client, ClientBuilder, Ended, Pages, Run, Start, Started, TraceContext,
    WorkflowSource,
};
pub use self::error::{Error, FieldViolation};
pub use self::failures::{Delivery, Failures, FailuresBuilder};
pub use self::payload::{PAYLOAD_BYTES_MAX, from_payload, to_payload};
pub use self::task_error::{ErrorCategory, TaskError};
pub use self::worker::{CancelReason, RawTask, TaskContext, Transport, Worker, WorkerBuilder};

/// Compiles the examples of the README together with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
