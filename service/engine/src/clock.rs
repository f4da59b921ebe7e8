//! The two clocks of a node.
//!
//! | clock | measures | set by |
//! | --- | --- | --- |
//! | [`Tick`] | silence, attempts, the node's own lease: whatever begins and ends in this process | nothing |
//! | store time ([`Timestamp`]) | when something is due, and when it happened | the database, forward only |
//!
//! The database's clock may step, because an operator sets it or because the database moves to another
//! machine. Ticks are not affected. Store time follows a step forward at once and never goes back. After a
//! step back it runs a little slower until the database has caught up.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use recoup_core::time::Timestamp;

/// While store time is ahead of the database, it runs slower by one part in this many.
const SLOWER: u32 = 16;
/// A clock that is further away than this was set, or belongs to a different machine. Running fast or slow
/// does not explain such a difference.
const STEP: Duration = Duration::from_secs(60);

/// A moment on the monotonic clock of this process. It has no meaning in another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(i64);

impl Tick {
    /// The moment this long after the process began.
    pub fn after(elapsed: Duration) -> Self {
        Self(micros(elapsed))
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).max(0).unsigned_abs())
    }
}

impl Add<Duration> for Tick {
    type Output = Self;

    /// Saturates: a deadline beyond the end of time never expires.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(micros(duration)))
    }
}

impl Sub<Duration> for Tick {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(micros(duration)))
    }
}

/// The same moment on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    pub tick: Tick,
    pub time: Timestamp,
}

impl Now {
    /// A stored time in the past, as a tick of this process.
    pub fn tick_of(self, past: Timestamp) -> Tick {
        self.tick - self.time.since(past)
    }

    /// The store time at a tick; the present store time if the tick has passed.
    pub fn time_of(self, tick: Tick) -> Timestamp {
        self.time + tick.since(self.tick)
    }

    /// The later moment on each clock separately, so neither clock goes back.
    pub fn max(self, other: Self) -> Self {
        Self { tick: self.tick.max(other.tick), time: self.time.max(other.time) }
    }
}

/// What the database reported about the time, at some moment during a call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// The database's clock.
    pub database: Timestamp,
    /// The latest store time that any life of a node has reached.
    pub reached: Timestamp,
    /// The database's clock when another life was last renewed, if one was.
    pub renewed_before: Option<Timestamp>,
    /// How long the call took.
    pub under_way: Duration,
    /// How long the machine has been suspended since the last reading. Ticks do not count that time.
    pub suspended: Duration,
}

/// The database's clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Forward(Duration),
    Back(Duration),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward(by) => write!(f, "{by:?} forward"),
            Self::Back(by) => write!(f, "{by:?} back"),
        }
    }
}

/// How a reading has changed the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Correction {
    /// How far store time jumped forward.
    pub forward: Duration,
    pub step: Option<Step>,
}

/// Store time: the time of the last reading, plus what the monotonic clock has added since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreClock {
    time: Timestamp,
    /// When store time was `time`, and the database's clock was `database` or a little later.
    read_at: Tick,
    /// How far store time was ahead of the database then.
    ahead: Duration,
    database: Timestamp,
    uncertain: Duration,
}

impl StoreClock {
    pub fn new(database: Timestamp, tick: Tick) -> Self {
        let (ahead, uncertain) = (Duration::ZERO, Duration::ZERO);
        Self { time: database, read_at: tick, ahead, database, uncertain }
    }

    pub fn now(&self, tick: Tick) -> Now {
        let passed = tick.since(self.read_at);
        let lost = (passed / SLOWER).min(self.ahead);
        Now { tick, time: self.time + (passed - lost) }
    }

    /// Transitions have been read that other lives decided at these times. Those lives had reached these
    /// times, and may have ended before they reported them. Rows carry checksums, so a time that was read is
    /// one that a node really had.
    pub fn read(&mut self, decided_at: impl Iterator<Item = Timestamp>, tick: Tick) {
        self.go_on(tick);
        let known = self.time;
        let furthest = decided_at.max();
        self.time = known.max(furthest.unwrap_or_default());
        self.ahead += self.time.since(known);
    }

    fn go_on(&mut self, tick: Tick) {
        let time = self.now(tick).time;
        let passed = tick.since(self.read_at);
        self.ahead = self.ahead.saturating_sub(passed.saturating_sub(time.since(self.time)));
        self.database = self.database + passed;
        (self.time, self.read_at) = (time, tick);
    }

    /// Takes in the answer to a call. A clock that may be right stays as it is: a slow answer does not move it.
    pub fn correct(&mut self, reading: Reading, tick: Tick) -> Correction {
        let Reading { database, reached, renewed_before, under_way, suspended } = reading;
        self.go_on(tick);
        let before = self.time;
        self.time = before.max(database).max(reached);
        self.ahead = self.time.since(database + under_way);
        let expected = self.database + suspended;
        let earliest = expected.max(renewed_before.unwrap_or_default());
        let latest = expected + self.uncertain;
        (self.database, self.uncertain) = (database, under_way);
        // Another life may have seen a step forward that was taken back since. If this life is only
        // beginning, that step was recorded by the life that saw it, and an operator who has confirmed it is
        // not asked again.
        let seen = match renewed_before {
            Some(_) => Duration::ZERO,
            None => reached.since(before.max(database) + suspended),
        };
        let forward = database.since(latest).max(seen);
        let back = earliest.since(database + under_way);
        let step = match (forward > STEP, back > STEP) {
            (_, true) => Some(Step::Back(back)),
            (true, _) => Some(Step::Forward(forward)),
            _ => None,
        };
        Correction { forward: self.time.since(before), step }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_micros(millis * 1000)
    }

    fn tick(millis: u64) -> Tick {
        Tick::after(ms(millis))
    }

    fn read(database: Timestamp, reached: Timestamp, under_way: Duration) -> Reading {
        Reading { database, reached, under_way, ..Reading::default() }
    }

    #[test]
    fn store_time_moves_forward_only_if_it_is_certainly_late() {
        let mut clock = StoreClock::new(at(5_000), tick(100));
        assert_eq!(clock.now(tick(1_100)).time, at(6_000));
        // Asked 300 ms ago, and granted at some moment since.
        let corrected = clock.correct(read(at(5_800), at(0), ms(300)), tick(1_100));
        assert_eq!(corrected.forward, ms(0));
        assert_eq!(clock.now(tick(1_100)).time, at(6_000));
        // The clock is behind, because the machine slept and its monotonic clock stopped.
        let corrected = clock.correct(read(at(9_000), at(0), ms(10)), tick(1_200));
        assert_eq!(corrected.forward, ms(2_900));
        assert_eq!(clock.now(tick(1_300)).time, at(9_100));
    }

    #[test]
    fn store_time_slows_after_a_step_back_until_the_database_catches_up() {
        let mut clock = StoreClock::new(at(100_000), tick(0));
        let corrected = clock.correct(read(at(41_600), at(0), ms(0)), tick(1_600));
        assert_eq!(corrected.forward, ms(0));
        assert_eq!(clock.now(tick(1_600)).time, at(101_600));
        // Time continues, at 15 sixteenths of its speed.
        assert_eq!(clock.now(tick(1_601)).time, at(101_600) + Duration::from_micros(937));
        assert_eq!(clock.now(tick(17_600)).time, at(116_600));
        // Once nothing is left of the 60 s, it runs at full speed again.
        assert_eq!(clock.now(tick(1_600 + 960_000)).time, at(101_600 + 900_000));
        assert_eq!(clock.now(tick(1_600 + 961_000)).time, at(101_600 + 901_000));
        // A later reading finds how much is left.
        clock.correct(read(at(57_600), at(0), ms(0)), tick(17_600));
        assert_eq!(clock.ahead, ms(59_000));
    }

    #[test]
    fn store_time_is_at_least_what_another_node_has_reached() {
        let mut clock = StoreClock::new(at(10_000), tick(0));
        let hour = ms(3_600_000);
        let corrected = clock.correct(read(at(10_000), at(10_000) + hour, ms(5)), tick(0));
        assert_eq!(corrected.forward, hour);
        assert_eq!(clock.now(tick(0)).time, at(10_000) + hour);
        assert_eq!(clock.ahead, hour - ms(5));
    }

    #[test]
    fn only_differences_that_drift_cannot_explain_count_as_steps() {
        let start = at(10_000_000);
        let minute = Duration::from_secs(60);
        let step = |reading: Reading, passed: Duration| {
            let mut clock = StoreClock::new(start, tick(0));
            clock.correct(reading, Tick::after(passed)).step
        };
        let then = |database: Timestamp| read(database, at(0), ms(0));
        assert_eq!(step(then(start + minute), ms(0)), None);
        assert_eq!(step(then(start + minute * 2), ms(0)), Some(Step::Forward(minute * 2)));
        assert_eq!(step(then(start + minute * 2), minute), None, "time has passed");
        let slept = Reading { suspended: minute * 9, ..then(start + minute * 10) };
        assert_eq!(step(slept, minute), None, "the machine was suspended");
        assert_eq!(step(then(start - minute), ms(0)), None);
        assert_eq!(step(then(start - minute * 2), ms(0)), Some(Step::Back(minute * 2)));
        // Another life has seen a step that was taken back, or one before this process began.
        let other = read(start, start + minute * 3, ms(0));
        assert_eq!(step(other, ms(0)), Some(Step::Forward(minute * 3)));
        let before = Reading { renewed_before: Some(start + minute * 3), ..then(start) };
        assert_eq!(step(before, ms(0)), Some(Step::Back(minute * 3)));
        // A step is reported once.
        let mut clock = StoreClock::new(start, tick(0));
        let stepped = clock.correct(then(start - minute * 2), tick(0));
        assert!(stepped.step.is_some());
        let renewed = read(start - minute * 2, start, ms(0));
        assert_eq!(clock.correct(renewed, tick(10)).step, None);
    }

    #[test]
    fn new_node_does_not_mistake_the_lead_of_earlier_nodes_for_a_step() {
        // Two hours forward and back again, which the lives of that time have recorded.
        let mut clock = StoreClock::new(at(100_000), tick(0));
        let first =
            Reading { renewed_before: Some(at(99_000)), ..read(at(100_000), at(7_300_000), ms(0)) };
        assert_eq!(clock.correct(first, tick(0)).step, None);
        assert_eq!(clock.now(tick(0)).time, at(7_300_000), "store time continues from there");
        // A life that is under way sees another life go forward.
        let seen = clock.correct(read(at(101_000), at(20_000_000), ms(0)), tick(1_000));
        assert!(matches!(seen.step, Some(Step::Forward(_))), "{seen:?}");
        // A clock that was set back while no node was alive is a step.
        let mut clock = StoreClock::new(at(100_000), tick(0));
        let first = Reading {
            renewed_before: Some(at(3_700_000)),
            ..read(at(100_000), at(7_300_000), ms(0))
        };
        assert_eq!(clock.correct(first, tick(0)).step, Some(Step::Back(ms(3_600_000))));
    }

    #[test]
    fn store_time_is_at_least_the_latest_time_read() {
        let mut clock = StoreClock::new(at(10_000), tick(0));
        clock.read([at(9_000), at(12_000)].into_iter(), tick(1_000));
        assert_eq!(clock.now(tick(1_000)).time, at(12_000));
        assert_eq!(clock.ahead, ms(1_000));
        clock.read([at(12_000)].into_iter(), tick(2_600));
        assert_eq!(clock.now(tick(2_600)).time, at(13_500), "the lead shrinks");
        assert_eq!(clock.ahead, ms(900));
        // It does not count as a step of the database's clock.
        let corrected = clock.correct(read(at(12_600), at(0), ms(0)), tick(2_600));
        assert_eq!(corrected, Correction { forward: ms(0), step: None });
    }

    #[test]
    fn stored_times_convert_to_ticks_and_back_by_distance_from_now() {
        let now = Now { tick: tick(500), time: at(90_000) };
        assert_eq!(now.tick_of(at(89_700)), tick(200));
        assert_eq!(now.tick_of(at(80_000)), Tick(-9_500_000), "before the process began");
        assert_eq!(now.time_of(tick(700)), at(90_200));
        assert_eq!(now.time_of(tick(100)), at(90_000));
    }
}
