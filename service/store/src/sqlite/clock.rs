use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use recoup_core::time::Timestamp;

/// Gives the store its time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The time on the machine's clock.
pub(super) fn system_now() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX))
}

/// The same clock, except that it stands still when the original goes back.
pub(super) fn never_back(clock: Clock) -> Clock {
    let latest = AtomicI64::new(i64::MIN);
    Arc::new(move || {
        let now = clock().as_micros();
        Timestamp::from_micros(now.max(latest.fetch_max(now, Ordering::Relaxed)))
    })
}
