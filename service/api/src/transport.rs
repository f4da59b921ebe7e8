//! The limits of one connection to the server.

use std::time::Duration;

use tonic::transport::Server;
use tower::layer::util::{Identity, Stack};

use crate::unread::BoundUnread;

/// After this much silence, the server pings a connection. It closes it after the same time again without
/// an answer.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How many calls one connection may have open at the same time. The transport makes further ones wait.
const STREAMS_MAX: u32 = 1_000;
/// How many bytes of requests one stream may send before the server has read them.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same limit for all streams of a connection together. It is larger than that of one stream, so that a
/// stream whose requests are not read does not hold up the others.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// The largest headers of a call, counted as HTTP/2 counts them.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// How many streams of a connection may break the protocol before it is closed. If this were unset, tonic
/// would turn hyper's default off. The limit on streams that the client resets is h2's own.
const ERROR_RESETS_MAX: usize = 1_024;
/// A call without an answer after this time ends with CANCELLED. It is longer than the longest poll, and
/// cuts off requests whose bodies do not arrive.
const CALL_MAX: Duration = Duration::from_secs(90);

/// An HTTP/2 server with limits on its connections.
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
