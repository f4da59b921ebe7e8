//! How many feed streams a server has open at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::status::{Error, Result};

/// A reader that finds no room for its stream is told to come again after this time.
const STREAM_RETRY: Duration = Duration::from_secs(1);

/// The feed streams that a server has open, of both kinds. They are bounded because each holds memory
/// for what its reader has not taken.
pub struct FeedStreams {
    free: Arc<Semaphore>,
    max: usize,
}

impl FeedStreams {
    pub fn new(max: usize) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(max)), max }
    }

    /// Counts a stream for as long as the permit lives.
    pub fn open(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().map_err(|_| Error {
            retry_after: Some(STREAM_RETRY),
            ..Error::limit_reached("open feed streams", self.max)
        })
    }
}
