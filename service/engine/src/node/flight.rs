//! A call that is under way to the store, until all of it is settled.
//!
//! A batch that was not settled is sent again with the same transition ids. The batch may be too large for
//! the store, in bytes or in time, so it is then sent in parts: half of the last part after each failure and
//! twice as much after each success, in the order in which it was decided. The store makes sure that an
//! earlier try has ended before it works on the next one.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Tick;
use recoup_store::{Batch, KeyedStart, NewQuarantine};

/// How many times the pause before the next try doubles at most: to 800 ms by default.
const COMMIT_RETRY_DOUBLINGS: u32 = 4;

/// Content that the store accepts whole or in parts.
pub(super) trait Divisible: Sized {
    fn len(&self) -> usize;

    /// How many of its places the store answers one by one.
    fn answered(&self) -> usize;

    /// The part of it at these places.
    fn part(&self, places: Range<usize>) -> Self;
}

/// The places are numbered in this order: events, transitions, quarantines, reminders. So the event that a
/// worker was lost is sent before the transitions that follow from it.
impl Divisible for Batch {
    fn len(&self) -> usize {
        self.transitions.len() + self.feed.len() + self.quarantined.len() + self.reminders.len()
    }

    fn answered(&self) -> usize {
        self.transitions.len()
    }

    fn part(&self, places: Range<usize>) -> Self {
        fn within<T: Clone>(all: &[T], before: usize, places: &Range<usize>) -> Vec<T> {
            let at = |place: usize| place.saturating_sub(before).min(all.len());
            all[at(places.start)..at(places.end)].to_vec()
        }
        let transitions = self.feed.len();
        let quarantined = transitions + self.transitions.len();
        let reminders = quarantined + self.quarantined.len();
        Self {
            transitions: within(&self.transitions, transitions, &places),
            feed: within(&self.feed, 0, &places),
            quarantined: within(&self.quarantined, quarantined, &places),
            reminders: within(&self.reminders, reminders, &places),
        }
    }
}

impl Divisible for Vec<KeyedStart> {
    fn len(&self) -> usize {
        self.as_slice().len()
    }

    fn answered(&self) -> usize {
        self.as_slice().len()
    }

    fn part(&self, places: Range<usize>) -> Self {
        self[places].to_vec()
    }
}

/// `E` is what the node keeps about each place that is answered.
pub(super) struct Flight<E, B> {
    batch: Arc<B>,
    /// The entries of the places that are not settled.
    entries: VecDeque<E>,
    /// All places before this one are settled.
    settled: usize,
    /// What was sent last: the whole batch, or the part from `settled` on.
    sent: Arc<B>,
    /// How many places are sent in one call.
    at_once: usize,
    /// It waits to be sent again.
    resting: bool,
    /// Failed tries since a part was last settled.
    failures: u32,
    /// When it was first sent, or when its last part was settled.
    since: Tick,
}

impl<E, B: Divisible> Flight<E, B> {
    pub fn new(batch: Arc<B>, entries: Vec<E>, now: Tick) -> Self {
        let (at_once, sent) = (batch.len(), batch.clone());
        let entries = entries.into();
        let (settled, resting, failures) = (0, false, 0);
        Self { batch, entries, settled, sent, at_once, resting, failures, since: now }
    }

    /// Since when nothing of it has been settled.
    pub fn since(&self) -> Tick {
        self.since
    }

    /// Whether the whole batch is under way for the first time.
    pub fn is_first_try(&self) -> bool {
        self.failures == 0 && self.settled == 0 && !self.resting
    }

    /// The entries that are not settled.
    pub fn entries_mut(&mut self) -> impl Iterator<Item = &mut E> {
        self.entries.iter_mut()
    }

    /// What was sent last.
    #[cfg(feature = "mutants")]
    pub fn sent(&self) -> &Arc<B> {
        &self.sent
    }

    /// Marks it to be sent again at the next call of [`Self::again`].
    pub fn rest(&mut self) {
        self.resting = true;
    }

    /// The last call has failed, or its outcome is unknown. Returns how long to wait before the next try; the
    /// pause grows with each failure, in case the store is unavailable for longer.
    pub fn failed(&mut self, first: Duration) -> Duration {
        self.resting = true;
        self.at_once = (self.sent.len() / 2).max(1);
        let pause = first * (1 << self.failures.min(COMMIT_RETRY_DOUBLINGS));
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// The last call is settled. Returns what was sent, its entries, and whether the batch is now complete;
    /// if not, [`Self::again`] returns the rest.
    pub fn succeeded(&mut self, now: Tick) -> (Arc<B>, Vec<E>, bool) {
        self.since = now;
        self.settled += self.sent.len();
        self.at_once = self.at_once.saturating_mul(2);
        self.failures = 0;
        self.resting = true;
        let entries = self.entries.drain(..self.sent.answered().min(self.entries.len())).collect();
        (self.sent.clone(), entries, self.settled >= self.batch.len())
    }

    /// What to send now, if it is waiting to be sent.
    pub fn again(&mut self) -> Option<Arc<B>> {
        if !std::mem::take(&mut self.resting) {
            return None;
        }
        let end = self.batch.len().min(self.settled.saturating_add(self.at_once));
        self.sent = match self.settled == 0 && end == self.batch.len() {
            true => self.batch.clone(),
            false => Arc::new(self.batch.part(self.settled..end)),
        };
        Some(self.sent.clone())
    }
}

impl<E> Flight<E, Batch> {
    /// The quarantines that are not settled.
    pub fn quarantined(&self) -> impl Iterator<Item = &NewQuarantine> {
        let before = self.batch.transitions.len() + self.batch.feed.len();
        self.batch.quarantined.iter().skip(self.settled.saturating_sub(before))
    }
}
