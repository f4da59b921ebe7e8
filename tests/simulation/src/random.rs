//! The only source of randomness in a run.

use std::time::Duration;

/// The random numbers of core, and the values that a run draws from them.
#[derive(Clone, Debug)]
pub struct Random(recoup_core::random::Random);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(recoup_core::random::Random::new(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0.number()
    }

    /// A number below `bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    pub fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_micros(self.between(low * 1000, high * 1000))
    }

    /// True with this chance, per thousand.
    pub fn permille(&mut self, chance: u32) -> bool {
        self.below(1000) < u64::from(chance)
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }
}
