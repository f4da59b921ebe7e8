//! Waiting for a store that does not answer yet.

use std::time::{Duration, Instant};

use crate::contract::{Error, Result};

/// The pause before the second try. It doubles with each further try.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Opens or queries a store until it answers. Tries again with a growing pause until `within` has passed, and
/// logs a warning for each failure.
///
/// Every error except [`Error::Unavailable`] and [`Error::OutcomeUnknown`] is returned at once. `attempt` must
/// be safe to repeat.
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
