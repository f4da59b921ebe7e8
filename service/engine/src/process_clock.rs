//! The clock that everything in this process uses.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use recoup_core::time::Timestamp;

use crate::clock::{Now, Reading, Step, StoreClock, Tick};
use crate::node::io::Loaded;

/// The time for everything in this process. Only the driver corrects it.
pub struct Clock {
    origin: Instant,
    following: Mutex<Following>,
}

struct Following {
    store: StoreClock,
    suspended: Duration,
    /// How many steps of the database's clock have not been recorded in the store yet.
    unnoted: u32,
}

impl Clock {
    pub(crate) fn new(now: Timestamp) -> Self {
        let store = StoreClock::new(now, Tick::default());
        let following = Following { store, suspended: suspended(), unnoted: 0 };
        Self { origin: Instant::now(), following: Mutex::new(following) }
    }

    /// The present store time.
    pub fn now(&self) -> Timestamp {
        self.both().time
    }

    /// The store time for deleting old data. `None` while this clock has seen a step of the database's clock
    /// that is not recorded in the store yet.
    pub fn for_retention(&self) -> Option<Timestamp> {
        let following = self.lock();
        (following.unnoted == 0).then(|| following.store.now(self.tick()).time)
    }

    pub(crate) fn both(&self) -> Now {
        self.lock().store.now(self.tick())
    }

    fn tick(&self) -> Tick {
        Tick::after(self.origin.elapsed())
    }

    pub(crate) fn correct(&self, lease: &recoup_store::Lease, under_way: Duration) -> Option<Step> {
        let mut following = self.lock();
        let suspended = suspended();
        let before = std::mem::replace(&mut following.suspended, suspended);
        let reading = Reading {
            database: lease.now,
            reached: lease.reached,
            renewed_before: lease.renewed_before,
            under_way,
            suspended: suspended.saturating_sub(before),
        };
        let step = following.store.correct(reading, self.tick()).step;
        following.unnoted += u32::from(step.is_some());
        step
    }

    pub(crate) fn read(&self, loaded: &[Loaded]) {
        self.lock().store.read(loaded.iter().filter_map(Loaded::decided_at), self.tick());
    }

    pub(crate) fn step_noted(&self) {
        self.lock().unnoted -= 1;
    }

    /// A panic cannot leave the value half changed, so a poisoned lock is safe to use.
    fn lock(&self) -> MutexGuard<'_, Following> {
        self.following.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long this machine has been suspended since it was booted, which the monotonic clock does not count. If
/// the operating system does not report it, a suspension looks like a step of the database's clock.
fn suspended() -> Duration {
    #[cfg(target_os = "linux")]
    {
        use rustix::time::{ClockId, clock_gettime};
        let read = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
        // The boot-time clock is read second, so the difference is never negative.
        let monotonic = read(ClockId::Monotonic);
        read(ClockId::Boottime).saturating_sub(monotonic)
    }
    #[cfg(not(target_os = "linux"))]
    Duration::ZERO
}
