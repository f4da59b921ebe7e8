//! The executions in memory, and those of them that need attention.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use recoup_core::id::ExecutionId;

use super::slot::Slot;

pub(super) struct Slots<R> {
    by_id: BTreeMap<ExecutionId, Slot<R>>,
    /// About how many bytes their states take.
    resident_bytes: usize,
    /// Executions that have commands to decide.
    ready: VecDeque<ExecutionId>,
    /// Executions that other nodes may have written to unnoticed. Some may no longer be in doubt. A round of
    /// head queries covers these, not everything in memory.
    doubtful: BTreeSet<ExecutionId>,
    /// The last execution that a round covered.
    asked: ExecutionId,
}

impl<R> Default for Slots<R> {
    fn default() -> Self {
        Self {
            by_id: BTreeMap::new(),
            resident_bytes: 0,
            ready: VecDeque::new(),
            doubtful: BTreeSet::new(),
            asked: ExecutionId(uuid::Uuid::nil()),
        }
    }
}

impl<R> Slots<R> {
    pub fn get(&self, id: ExecutionId) -> Option<&Slot<R>> {
        self.by_id.get(&id)
    }

    pub fn get_mut(&mut self, id: ExecutionId) -> Option<&mut Slot<R>> {
        self.by_id.get_mut(&id)
    }

    /// Returns the slot of an execution, and creates one that has not been read if there is none.
    pub fn open(&mut self, id: ExecutionId) -> &mut Slot<R> {
        self.by_id.entry(id).or_insert_with(Slot::unread)
    }

    pub fn insert(&mut self, id: ExecutionId, slot: Slot<R>) {
        self.by_id.insert(id, slot);
    }

    pub fn remove(&mut self, id: ExecutionId) -> Option<Slot<R>> {
        let slot = self.by_id.remove(&id)?;
        self.resident_bytes = self.resident_bytes.saturating_sub(slot.bytes());
        self.doubtful.remove(&id);
        Some(slot)
    }

    pub fn ids(&self) -> Vec<ExecutionId> {
        self.by_id.keys().copied().collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = (ExecutionId, &Slot<R>)> {
        self.by_id.iter().map(|(id, slot)| (*id, slot))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ExecutionId, &mut Slot<R>)> {
        self.by_id.iter_mut().map(|(id, slot)| (*id, slot))
    }

    /// The slots of the executions that this node owns.
    pub fn owned(&self) -> impl Iterator<Item = &Slot<R>> {
        self.by_id.values().filter(|slot| slot.owned)
    }

    /// Weighs the state of an execution, which has arrived, changed or gone.
    pub fn weigh(&mut self, id: ExecutionId) {
        let Some((before, after)) = self.by_id.get_mut(&id).and_then(Slot::weigh) else {
            return;
        };
        self.resident_bytes = (self.resident_bytes + after).saturating_sub(before);
    }

    /// How many more executions there is room for, whatever their size. None if those in memory take as many
    /// bytes as they may.
    pub fn room(&self, executions_max: usize, bytes_max: usize) -> usize {
        if self.resident_bytes >= bytes_max {
            return 0;
        }
        executions_max.saturating_sub(self.by_id.len())
    }

    /// Notes that the execution has something to decide.
    pub fn push_ready(&mut self, id: ExecutionId) {
        self.ready.push_back(id);
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next execution that may have something to decide, first come, first served.
    pub fn next_ready(&mut self) -> Option<ExecutionId> {
        self.ready.pop_front()
    }

    /// Notes that another node may have written to the execution.
    pub fn doubt(&mut self, id: ExecutionId) {
        self.doubtful.insert(id);
    }

    /// Stops asking the store about the execution.
    pub fn trust(&mut self, id: ExecutionId) {
        self.doubtful.remove(&id);
    }

    /// The next executions to ask about. Each call continues where the last one ended, so every execution
    /// gets its turn.
    pub fn next_doubtful(&mut self, max: usize) -> Vec<ExecutionId> {
        let ahead = self.doubtful.range((Bound::Excluded(self.asked), Bound::Unbounded));
        let behind = self.doubtful.range(..=self.asked);
        let round: Vec<_> = ahead.chain(behind).take(max).copied().collect();
        self.asked = round.last().copied().unwrap_or(self.asked);
        round
    }

    #[cfg(feature = "mutants")]
    pub fn in_doubt(&self) -> usize {
        self.doubtful.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> ExecutionId {
        ExecutionId(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn executions_in_doubt_are_checked_in_turn() {
        let mut slots = Slots::<()>::default();
        for number in 1..=5 {
            slots.open(id(number));
            slots.doubt(id(number));
        }
        assert_eq!(slots.next_doubtful(2), [id(1), id(2)]);
        assert_eq!(slots.next_doubtful(2), [id(3), id(4)]);
        slots.remove(id(5));
        assert_eq!(slots.next_doubtful(2), [id(1), id(2)]);
        slots.trust(id(3));
        assert_eq!(slots.next_doubtful(9), [id(4), id(1), id(2)]);
    }

    #[test]
    fn room_is_the_remaining_number_of_executions_and_zero_without_bytes_left() {
        let mut slots = Slots::<()>::default();
        slots.open(id(1));
        slots.open(id(1));
        assert_eq!(slots.room(3, 1), 2);
        assert_eq!(slots.room(3, 0), 0);
    }
}
