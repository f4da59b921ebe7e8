//! Database time as a node follows it between two looks at the database.

use std::time::Duration;

use recoup_core::time::Timestamp;

/// Database time: what the last lease said, and what the machine's own clock has added since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseClock {
    /// Database time minus the machine's own, in microseconds.
    offset: i64,
}

impl DatabaseClock {
    /// `elapsed` is what the machine's own clock, which nobody sets, says now.
    pub fn new(database: Timestamp, elapsed: Duration) -> Self {
        Self { offset: database.as_micros() - micros(elapsed) }
    }

    pub fn now(&self, elapsed: Duration) -> Timestamp {
        Timestamp::from_micros(self.offset + micros(elapsed))
    }

    /// The database said `database` at some moment of a call that lasted until now for `under_way`. A
    /// clock that may be right is left alone: how long an answer took moves no clock. Returns by how
    /// much it went forward at once: so much less time has passed than it says.
    pub fn correct(
        &mut self,
        database: Timestamp,
        under_way: Duration,
        elapsed: Duration,
    ) -> Duration {
        let before = self.now(elapsed);
        let after = before.clamp(database, database + under_way);
        self.offset = after.as_micros() - micros(elapsed);
        after.since(before)
    }
}

fn micros(elapsed: Duration) -> i64 {
    i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX / 2)
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

    #[test]
    fn a_clock_that_may_be_right_is_left_alone_and_another_goes_to_the_nearest_time() {
        let mut clock = DatabaseClock::new(at(5_000), ms(100));
        assert_eq!(clock.now(ms(1_100)), at(6_000));
        // Asked 300 ms ago, granted somewhere between.
        assert_eq!(clock.correct(at(5_800), ms(300), ms(1_100)), ms(0));
        assert_eq!(clock.now(ms(1_100)), at(6_000));
        // Behind: the machine slept, and its clock with it.
        assert_eq!(clock.correct(at(9_000), ms(10), ms(1_200)), ms(2_900));
        assert_eq!(clock.now(ms(1_300)), at(9_100));
        // Ahead.
        assert_eq!(clock.correct(at(8_000), ms(50), ms(1_300)), ms(0));
        assert_eq!(clock.now(ms(1_300)), at(8_050));
    }
}
