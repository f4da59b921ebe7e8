//! The clock that all of this process goes by.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use recoup_core::time::Timestamp;

use crate::clock::{Now, Reading, Step, StoreClock, Tick};
use crate::node::io::Loaded;

/// The time for everybody in this process: corrected by the driver alone.
pub struct Clock {
    origin: Instant,
    following: Mutex<Following>,
}

struct Following {
    store: StoreClock,
    suspended: Duration,
    /// Steps of the database's clock that the store does not know of yet.
    unnoted: u32,
}

impl Clock {
    pub(crate) fn new(now: Timestamp) -> Self {
        let store = StoreClock::new(now, Tick::default());
        let following = Following { store, suspended: suspended(), unnoted: 0 };
        Self { origin: Instant::now(), following: Mutex::new(following) }
    }

    /// Store time.
    pub fn now(&self) -> Timestamp {
        self.both().time
    }

    /// Store time for whoever deletes what is old; none while it has taken in a step of the database's
    /// clock of which the store does not know yet.
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

    /// No panic leaves it half changed, so a poisoned lock is as good as a whole one.
    fn lock(&self) -> MutexGuard<'_, Following> {
        self.following.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For how long this machine has been suspended since it was booted: what the monotonic clock leaves
/// out. Where the system does not tell, a suspension looks like a step of the database's clock.
fn suspended() -> Duration {
    #[cfg(target_os = "linux")]
    {
        use rustix::time::{ClockId, clock_gettime};
        let read = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
        // The later one is read later: never less than nothing.
        let monotonic = read(ClockId::Monotonic);
        read(ClockId::Boottime).saturating_sub(monotonic)
    }
    #[cfg(not(target_os = "linux"))]
    Duration::ZERO
}
