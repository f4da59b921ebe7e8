//! Waiting for a store that does not answer yet.

use std::time::{Duration, Instant};

use crate::contract::{Error, Result};

/// Before the second try; it doubles with each one.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Opens or asks a store until it answers, trying again with a growing pause for `within`. Each failure is
/// a warning in the log.
///
/// Any error but [`Error::Unavailable`] and [`Error::OutcomeUnknown`] is returned at once, so `attempt` has
/// to be one that can be repeated.
pub async fn until_available<T>(
    within: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let began = Instant::now();
    let mut pause = PAUSE;
    loop {
        let error = match attempt().await {
            Err(error @ (Error::Unavailable(_) | Error::OutcomeUnknown(_))) => error,
            done => return done,
        };
        let left = within.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(error);
        }
        tracing::warn!(%error, ?left, "not ready: waiting for the database");
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
