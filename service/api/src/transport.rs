//! What one connection may ask of the server.

use std::time::Duration;

use tonic::transport::Server;
use tower::layer::util::{Identity, Stack};

use crate::unread::BoundUnread;

/// A silent connection is asked for a sign of life after this time, and cut after as much again.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Calls that one connection has open at the same time; the transport makes further ones wait.
const STREAMS_MAX: u32 = 1_000;
/// Bytes of requests that one stream may send before they are read.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same for all streams of a connection: more than one stream has, so that a stream whose requests
/// are not read does not hold up the others.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Bytes of the headers of a call, counted as HTTP/2 counts them.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// Streams of one connection that may break the protocol before it is closed. Unset, tonic turns hyper's
/// default off; the limit on streams that the client resets is h2's own.
const ERROR_RESETS_MAX: usize = 1_024;
/// A call that has no answer by then ends with CANCELLED: longer than the longest poll, it cuts requests
/// whose bodies do not come.
const CALL_MAX: Duration = Duration::from_secs(90);

/// A server of HTTP/2 whose connections are bounded.
pub fn transport() -> Server<Stack<BoundUnread, Identity>> {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_max_local_error_reset_streams(Some(ERROR_RESETS_MAX))
        .timeout(CALL_MAX)
        .layer(BoundUnread)
}
