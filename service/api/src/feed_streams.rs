//! Limits how many feed streams a server has open at the same time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::status::{Error, Result};

/// When a reader that was refused for lack of room should try again.
const STREAM_RETRY: Duration = Duration::from_secs(1);

/// The open feed streams of a server, of both kinds. Their number is limited because each one holds memory
/// for responses that its reader has not accepted yet.
pub struct FeedStreams {
    free: Arc<Semaphore>,
    max: usize,
}

impl FeedStreams {
    pub fn new(max: usize) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(max)), max }
    }

    /// Opens a stream, which counts for as long as the permit lives.
    pub fn open(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().map_err(|_| Error {
            retry_after: Some(STREAM_RETRY),
            ..Error::limit_reached("open feed streams", self.max)
        })
    }
}
