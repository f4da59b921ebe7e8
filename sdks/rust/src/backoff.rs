//! Whether and when a call to the service is repeated. Waits between tries grow exponentially, are
//! jittered, and have an upper bound.

use std::time::Duration;

use recoup_proto::v1::ErrorReason;
use tonic::Code;

use crate::Error;

/// How long to wait before the service is called again. This concerns only the connection. Whether and when
/// a failed attempt of a step is retried is decided by the service, from the workflow's retry policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Backoff {
    pub(crate) initial: Duration,
    pub(crate) max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_millis(50), max: Duration::from_secs(5) }
    }
}

impl Backoff {
    /// The wait before retry number `retry`, counted from 1. `random` is from 0 up to 1. Half of the wait
    /// is fixed and half is random, so that the many clients of a server that went away do not all come
    /// back at the same moment.
    pub(crate) fn delay(self, retry: u32, random: f64) -> Duration {
        let doublings = retry.saturating_sub(1).min(31);
        let full = self.initial.saturating_mul(1 << doublings).min(self.max);
        full.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }

    /// [`Self::delay`] with a random draw, but never shorter than the wait that the service asked for.
    pub(crate) fn next(self, retry: u32, asked: Option<Duration>) -> Duration {
        self.delay(retry, fastrand::f64()).max(asked.unwrap_or_default())
    }
}

/// Whether a later try may succeed. If so, the caller keeps trying without a limit on the number of tries.
pub(crate) fn passes(error: &Error) -> bool {
    error.is_transient()
        || matches!(
            error.reason(),
            // The session may still belong to an older stream of this worker, and a limit may be freed by
            // other clients.
            ErrorReason::SessionSuperseded | ErrorReason::LimitReached | ErrorReason::Overloaded
        )
        // A proxy, or a server that failed in the middle of the call.
        || matches!(error.code(), Some(Code::Internal | Code::Unknown | Code::Aborted))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff =
        Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(10) };

    #[test]
    fn the_delay_doubles_up_to_the_maximum() {
        let waits: Vec<u64> = [1, 2, 3, 7, 8, 9, 1_000, u32::MAX]
            .into_iter()
            .map(|retry| BACKOFF.delay(retry, 1.0).as_millis() as u64)
            .collect();
        assert_eq!(waits, [100, 200, 400, 6_400, 10_000, 10_000, 10_000, 10_000]);
    }

    #[test]
    fn jitter_takes_at_most_half_of_the_delay() {
        assert_eq!(BACKOFF.delay(1, 0.0), Duration::from_millis(50));
        assert_eq!(BACKOFF.delay(1, 0.5), Duration::from_millis(75));
        for retry in 1..20 {
            let wait = BACKOFF.next(retry, None);
            assert!(wait >= BACKOFF.delay(retry, 0.0) && wait <= BACKOFF.delay(retry, 1.0));
        }
    }

    #[test]
    fn waits_at_least_as_long_as_the_service_asks() {
        let asked = Duration::from_secs(60);
        assert_eq!(BACKOFF.next(1, Some(asked)), asked);
        assert!(BACKOFF.next(8, Some(Duration::from_millis(1))) >= Duration::from_secs(5));
    }
}
