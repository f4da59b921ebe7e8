use super::lane::Held;
use super::value;
use crate::contract::{Batch, Transition};

/// The feed numbers of a batch. `transitions` has the number of the first event of each transition. `rest` is
/// the first number for the batch's own events: the events of no execution, followed by those of quarantines.
pub(super) struct Numbers {
    pub transitions: Vec<i64>,
    pub rest: i64,
}

impl Numbers {
    pub fn new<'a>(
        held: &Held,
        transitions: impl Iterator<Item = &'a Transition> + Clone,
        rest: usize,
    ) -> Self {
        let count = transitions.clone().map(|transition| transition.feed.len()).sum::<usize>();
        let mut next = held.lane.numbers(count + rest);
        let mut take = |transition: &Transition| {
            let first = next;
            next += value::limit(transition.feed.len());
            first
        };
        let transitions = transitions.map(&mut take).collect();
        Self { transitions, rest: next }
    }

    pub fn quarantine(&self, batch: &Batch, at: usize) -> i64 {
        self.rest + value::limit(batch.feed.len() + at)
    }
}
