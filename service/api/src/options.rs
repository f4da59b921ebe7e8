//! What a server may choose about its services, and the sizes of messages.

use std::time::Duration;

use tokio::sync::watch;

/// Bytes of one message, either way: 4 MiB.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// What this service puts into one message of many items, at most: leaves room for the frame.
pub(crate) const BATCH_BYTES_MAX: usize = 3 << 20 | 512 << 10;
/// What one reader of the feed is sent at once, in bytes: 1 MiB.
pub const FEED_PAGE_BYTES: usize = 1 << 20;
/// Feed streams that one server has open: 256.
pub const FEED_STREAMS_MAX: usize = 256;
/// Of namespaces that name none, and of `default`: 30 days.
pub const RETENTION: Duration = recoup_store::RETENTION_DEFAULT;

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
