//! The settings of the services, and the size limits of messages.

use std::time::Duration;

use tokio::sync::watch;

/// The largest message in either direction: 4 MiB.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// The most bytes of items that the service puts into one message. Leaves room for the frame.
pub(crate) const BATCH_BYTES_MAX: usize = 3 << 20 | 512 << 10;
/// The most bytes that one reader of the feed is sent at a time: 1 MiB.
pub const FEED_PAGE_BYTES: usize = 1 << 20;
/// The most feed streams that one server keeps open: 256.
pub const FEED_STREAMS_MAX: usize = 256;
/// The retention of `default`, and of namespaces that do not set their own: 30 days.
pub const RETENTION: Duration = recoup_store::RETENTION_DEFAULT;

#[derive(Clone, Debug)]
pub struct ApiOptions {
    /// Becomes true when the server is about to stop. Streams then announce it and end once they are idle;
    /// long polls answer at once.
    pub shutdown: watch::Receiver<bool>,
    /// The retention of namespaces that do not set their own. Default: [`RETENTION`].
    pub retention: Duration,
    /// How many bytes of stored events are read at a time for one reader of the feed. At least one event is
    /// read, however large. A reader that accepts nothing holds about two pages. Default:
    /// [`FEED_PAGE_BYTES`].
    pub feed_page_bytes: usize,
    /// How many feed streams may be open at the same time. A further one is refused with `LIMIT_REACHED`.
    /// Default: [`FEED_STREAMS_MAX`].
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
