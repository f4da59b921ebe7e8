//! The clock of a machine. It runs fast or slow, stands still while the machine is suspended, and learns
//! store time from leases, as the driver's clock does.

use std::time::Duration;

use recoup_core::time::Timestamp;
use recoup_engine::clock::{Now, Reading, StoreClock, Tick};
use recoup_engine::node::io::Loaded;
use recoup_store::Lease;

pub struct MachineClock {
    /// The world's time at which `own` was read. It lies in the future while the clock stands still.
    read_at: Timestamp,
    own: Duration,
    /// How many microseconds the clock gains in a second.
    gain: i64,
    store: StoreClock,
}

impl MachineClock {
    /// The clock of a process that begins now and believes that this is database time.
    pub fn new(now: Timestamp, database: Timestamp, gain: i64) -> Self {
        let store = StoreClock::new(database, Tick::default());
        Self { read_at: now, own: Duration::ZERO, gain, store }
    }

    /// The time on the machine's own clock, which is never set.
    pub fn elapsed(&self, now: Timestamp) -> Duration {
        let passed = now.since(self.read_at).as_micros();
        let rate = u128::from((1_000_000 + self.gain).unsigned_abs());
        self.own + Duration::from_micros(u64::try_from(passed * rate / 1_000_000).unwrap_or(0))
    }

    /// The time that its node is given.
    pub fn says(&self, now: Timestamp) -> Now {
        self.store.now(Tick::after(self.elapsed(now)))
    }

    /// The world's time at which this clock will show a given time, or a little earlier, because the clock
    /// may run slower for a while.
    pub fn when(&self, says: Timestamp, now: Timestamp) -> Timestamp {
        let wait = says.since(self.says(now).time).as_micros();
        let rate = u128::from((1_000_000 + self.gain).unsigned_abs()).max(1);
        let wait = (wait * 1_000_000).div_ceil(rate);
        // A clock that stands still must start again first.
        now.max(self.read_at) + Duration::from_micros(u64::try_from(wait).unwrap_or(0))
    }

    pub fn set_gain(&mut self, gain: i64, now: Timestamp) {
        self.own = self.elapsed(now);
        self.read_at = self.read_at.max(now);
        self.gain = gain;
    }

    pub fn stand_still(&mut self, now: Timestamp, until: Timestamp) {
        self.own = self.elapsed(now);
        self.read_at = self.read_at.max(until);
    }

    pub fn go_on(&mut self, now: Timestamp) {
        self.read_at = self.read_at.min(now);
    }

    /// Executions have been read: see [`StoreClock::read`].
    pub fn read(&mut self, loaded: &[Loaded], now: Timestamp) {
        let tick = Tick::after(self.elapsed(now));
        self.store.read(loaded.iter().filter_map(Loaded::decided_at), tick);
    }

    /// A lease has been granted or renewed: see [`StoreClock::correct`].
    pub fn correct(&mut self, lease: &Lease, asked: Duration, now: Timestamp) -> Duration {
        let elapsed = self.elapsed(now);
        let under_way = elapsed.saturating_sub(asked);
        let (database, reached) = (lease.now, lease.reached);
        let reading = Reading { database, reached, under_way, ..Reading::default() };
        self.store.correct(reading, Tick::after(elapsed)).forward
    }
}
