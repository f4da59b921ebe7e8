//! Commits, in one step or in two.
//!
//! A real transaction gets its feed numbers before it becomes visible. So a commit of another node in between
//! is visible earlier, with a higher number. [`MemoryStore::begin_commit`] and [`MemoryStore::finish`] let a
//! simulation do the same.

use async_trait::async_trait;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;

use super::MemoryStore;
use super::state::{Indexed, Quarantined, Request, State};
use crate::contract::{
    Batch, FeedRow, Holder, KeySettled, KeyedStart, NewQuarantine, NodeId, Position, QuarantineRow,
    Reminder, Result, Settled, StoredTransition, Transition, Transitions,
};
use crate::settle::{self, Found, TakenRequest};

/// A batch that has its feed numbers but is not visible to any reader yet. Dropping it rolls it back.
#[derive(Debug)]
#[must_use = "nothing is written before `finish`"]
pub struct PendingCommit {
    node: NodeId,
    batch: Batch,
    /// The first of the numbers; there is one for each event of the batch.
    first: i64,
}

impl PendingCommit {
    pub fn node(&self) -> NodeId {
        self.node
    }

    pub fn batch(&self) -> &Batch {
        &self.batch
    }
}

impl MemoryStore {
    /// Opens a transaction: checks the lease and assigns feed numbers. [`MemoryStore::finish`] decides which
    /// transition wins a place. The order of those calls is the order of the commits.
    pub fn begin_commit(&self, node: NodeId, batch: &Batch) -> Result<PendingCommit> {
        let now = self.time();
        let mut state = self.lock();
        let first = state.live(node)?.lane.take(event_count(batch), now);
        Ok(PendingCommit { node, batch: batch.clone(), first })
    }

    /// Commits the transaction. [`crate::Error::LeaseLost`] if the lease was closed since it began: closing a
    /// lease rolls back its open transactions.
    pub fn finish(&self, pending: PendingCommit) -> Result<Vec<Settled>> {
        let PendingCommit { node, batch, mut first } = pending;
        let now = self.time();
        let mut state = self.lock();
        let reached = state.reached_beside_history(&batch).unwrap_or(0);
        let lane = &mut state.live(node)?.lane;
        if lane.end().max(reached) >= first {
            // A later transaction of this node is visible already. Real transactions of one node queue for its
            // lane, so this one gets new numbers now.
            lane.last = lane.last.max(reached);
            first = lane.take(event_count(&batch), now);
        }
        let mut write = Write { state: &mut state, node, now };
        let mut settled = Vec::with_capacity(batch.transitions.len());
        for transition in &batch.transitions {
            let outcome = write.settle(transition, first);
            if outcome == Settled::Lost && self.options.mutant_companions_for_losers {
                write.companions(transition, first);
            }
            settled.push(outcome);
            first += len(&transition.feed);
        }
        for row in &batch.feed {
            write.offer(row, first);
            first += 1;
        }
        for new in &batch.quarantined {
            write.quarantine(new, first);
            first += 1;
        }
        for Reminder { execution, wake_at } in &batch.reminders {
            if let Some(indexed) = write.state.executions.get_mut(execution)
                && indexed.owner == node
            {
                indexed.row.wake_at = *wake_at;
            }
        }
        Ok(settled)
    }

    /// Rolls the transaction back.
    pub fn abort(&self, pending: PendingCommit) {
        drop(pending);
    }
}

#[async_trait]
impl Transitions for MemoryStore {
    async fn commit(&self, node: NodeId, batch: &Batch) -> Result<Vec<Settled>> {
        self.finish(self.begin_commit(node, batch)?)
    }

    async fn start_keyed(&self, node: NodeId, starts: &[KeyedStart]) -> Result<Vec<KeySettled>> {
        let now = self.time();
        let mut state = self.lock();
        let count = starts.iter().map(|start| start.transition.feed.len()).sum();
        let mut first = state.live(node)?.lane.take(count, now);
        let mut write = Write { state: &mut state, node, now };
        let mut settled = Vec::with_capacity(starts.len());
        for start in starts {
            settled.push(write.settle_keyed(start, first));
            first += len(&start.transition.feed);
        }
        Ok(settled)
    }
}

fn event_count(batch: &Batch) -> usize {
    batch.transitions.iter().map(|transition| transition.feed.len()).sum::<usize>()
        + batch.feed.len()
        + batch.quarantined.len()
}

fn len(feed: &[FeedRow]) -> i64 {
    i64::try_from(feed.len()).unwrap_or(i64::MAX)
}

/// The writes of one node at one moment.
struct Write<'a> {
    state: &'a mut State,
    node: NodeId,
    now: Timestamp,
}

impl Write<'_> {
    fn settle(&mut self, transition: &Transition, first: i64) -> Settled {
        if let Some(settled) = settle::verdict(transition, &self.found(transition)) {
            return settled;
        }
        self.write(transition, first);
        Settled::Won
    }

    fn settle_keyed(&mut self, start: &KeyedStart, first: i64) -> KeySettled {
        let KeyedStart { transition, key, .. } = start;
        let index = transition.index.as_ref();
        let place = index.map(|index| (index.namespace.clone(), key.clone()));
        let holder = place.as_ref().and_then(|place| {
            let execution = *self.state.keys.get(place)?;
            let row = &self.state.executions.get(&execution)?.row;
            let (state, compensation) = (row.state.clone(), row.compensation.clone());
            Some(Holder { execution, state, compensation })
        });
        let settled = settle::key_verdict(start, &self.found(transition), holder.as_ref());
        if let Some(settled) = settled {
            if let KeySettled::UseExisting { execution } = settled {
                self.settle_request(transition, execution);
            }
            return settled;
        }
        if let Some(place) = place {
            self.state.keys.insert(place, transition.execution);
        }
        self.write(transition, first);
        KeySettled::Won
    }

    fn found(&self, transition: &Transition) -> Found {
        let Transition { execution, sequence, ref feed, .. } = *transition;
        let continues = sequence > 1;
        let mut events = feed.iter().map(|event| &event.id);
        Found {
            winner: self.at(execution, sequence).map(|there| there.transition_id),
            quarantined: self.state.quarantine(execution).is_some(),
            gone: continues
                && transition.may_be_gone
                && !self.state.executions.contains_key(&execution),
            request: self.taken(transition),
            gap: continues && self.at(execution, sequence - 1).is_none(),
            event: events.find(|id| self.state.event_ids.contains_key(*id)).cloned(),
        }
    }

    fn at(&self, execution: ExecutionId, sequence: u64) -> Option<&StoredTransition> {
        self.state.history.get(&execution)?.get(&sequence)
    }

    fn taken(&self, transition: &Transition) -> Option<TakenRequest> {
        let request = transition.request.as_ref()?;
        let taken = self.state.request(&request.namespace, &request.request_id, self.now)?;
        let Request { execution, digest, started, .. } = taken;
        Some(TakenRequest { execution, digest, started, repeated: false })
    }

    fn write(&mut self, transition: &Transition, first: i64) {
        let stored = StoredTransition {
            sequence: transition.sequence,
            transition_id: transition.transition_id,
            format: transition.format,
            checksum: transition.checksum(),
            data: transition.data.clone(),
        };
        let history = self.state.history.entry(transition.execution).or_default();
        history.insert(transition.sequence, stored);
        self.companions(transition, first);
    }

    /// Writes the rows that belong to a transition.
    fn companions(&mut self, transition: &Transition, first: i64) {
        if let Some(row) = &transition.index {
            let indexed = Indexed { row: row.clone(), owner: self.node };
            self.state.executions.insert(transition.execution, indexed);
        }
        self.settle_request(transition, transition.execution);
        for (number, row) in (first..).zip(&transition.feed) {
            self.event(row, number);
        }
        for task in &transition.overflow_done {
            self.state.overflow.remove(task);
        }
    }

    fn settle_request(&mut self, transition: &Transition, execution: ExecutionId) {
        if let Some(request) = &transition.request {
            let place = (request.namespace.clone(), request.request_id.clone());
            let started = execution == transition.execution;
            let settled = Request { execution, digest: request.digest, started, at: self.now };
            self.state.requests.insert(place, settled);
        }
    }

    fn quarantine(&mut self, new: &NewQuarantine, number: i64) {
        let NewQuarantine { execution, quarantine, event } = new;
        let request = match self.state.quarantines.get(execution) {
            Some(there) if there.row.in_force() || there.row.quarantine.at >= quarantine.at => {
                return;
            }
            Some(there) => there.request.clone(),
            None if !self.state.executions.contains_key(execution) => return,
            None => None,
        };
        let row = QuarantineRow { quarantine: quarantine.clone(), released: None };
        self.state.quarantines.insert(*execution, Quarantined { row, request });
        self.offer(event, number);
    }

    /// Writes an event unless one with its id exists.
    fn offer(&mut self, row: &FeedRow, number: i64) {
        if !self.state.event_ids.contains_key(&row.id) {
            self.event(row, number);
        }
    }

    fn event(&mut self, row: &FeedRow, number: i64) {
        let position = Position { number, lane: self.node };
        self.state.event_ids.insert(row.id.clone(), position);
        if let Some(execution) = row.execution {
            let last = self.state.last_numbers.entry(execution).or_insert(number);
            *last = number.max(*last);
        }
        if let Some(node) = self.state.nodes.get_mut(&self.node) {
            node.lane.events.insert(number, row.clone());
        }
    }
}
