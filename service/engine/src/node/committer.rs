//! The parts of the next batch besides transitions, the calls that are under way to the store, and the
//! store's answers. At most one batch is under way, and at most one call that starts executions under keys.
//! While a batch is under way, the node drafts the next one. The draft is sent as soon as the store has
//! answered, before the node settles that answer, so the store and the node work at the same time.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use recoup_core::id::ExecutionId;
use recoup_store::{Batch, Error, FeedRow, KeySettled, KeyedStart, NewQuarantine, Result, Settled};

use super::batch::{Draft, Entry};
use super::flight::{Divisible, Flight};
use super::slot::Pending;
use crate::clock::Tick;
use crate::options::Options;

pub(super) struct Committer<R> {
    batch: Option<Flight<Entry<R>, Batch>>,
    /// Decided while `batch` was under way; it is sent next.
    draft: Option<Draft<R>>,
    /// The part that the store has settled and this node has not settled yet.
    settled: Option<Part<R>>,
    /// Failure events that belong to no execution.
    events: VecDeque<FeedRow>,
    /// Executions that were found to be damaged.
    quarantines: VecDeque<NewQuarantine>,
    /// Executions whose reminder in the store may be out of date.
    reminders: BTreeSet<ExecutionId>,
    keyed_batch: Option<Flight<Entry<R>, Vec<KeyedStart>>>,
    /// New executions that are to be started under a key.
    keyed: VecDeque<ExecutionId>,
}

/// The part of a batch that was sent, the entries of its transitions, and how the store has settled them.
pub(super) struct Part<R> {
    pub batch: Arc<Batch>,
    pub entries: Vec<Entry<R>>,
    pub settled: Vec<Settled>,
}

/// The meaning of the store's answer to a call.
pub(super) enum Answered<E, B, S> {
    /// No call is under way that the answer could belong to.
    Nothing,
    LeaseLost,
    /// The call may or may not have taken effect. The same content is sent again after a pause, and the store
    /// recognises it.
    Again(Error, Duration),
    Settled {
        part: Arc<B>,
        entries: Vec<E>,
        settled: Vec<S>,
    },
}

impl<R> Default for Committer<R> {
    fn default() -> Self {
        Self {
            batch: None,
            draft: None,
            settled: None,
            events: VecDeque::new(),
            quarantines: VecDeque::new(),
            reminders: BTreeSet::new(),
            keyed_batch: None,
            keyed: VecDeque::new(),
        }
    }
}

impl<R> Committer<R> {
    /// Adds a failure event that belongs to no execution.
    pub fn publish(&mut self, event: FeedRow) {
        self.events.push_back(event);
    }

    pub fn quarantine(&mut self, new: NewQuarantine) {
        self.quarantines.push_back(new);
    }

    /// Whether the batch under way puts an execution in quarantine.
    pub fn is_quarantining(&self, id: ExecutionId) -> bool {
        let flight = self.batch.as_ref();
        flight.is_some_and(|flight| flight.quarantined().any(|new| new.execution == id))
    }

    /// Notes that the reminder of an execution must be brought up to date.
    pub fn remind(&mut self, id: ExecutionId) {
        self.reminders.insert(id);
    }

    pub fn next_reminder(&mut self) -> Option<ExecutionId> {
        self.reminders.pop_first()
    }

    /// Forgets an execution that has left memory.
    pub fn forget(&mut self, id: ExecutionId) {
        self.reminders.remove(&id);
    }

    /// The lease was lost: quarantines and reminders that have not been sent are dropped.
    pub fn end_life(&mut self) {
        self.quarantines.clear();
        self.reminders.clear();
    }

    /// Whether everything that must not be lost is in the store.
    pub fn is_quiet(&self) -> bool {
        let is_decided = self.batch.is_none() && self.draft.is_none() && self.settled.is_none();
        is_decided && self.keyed_batch.is_none() && self.quarantines.is_empty()
    }

    /// Since when the unsettled call that has waited longest has made no progress.
    pub fn unsettled_since(&self) -> Option<Tick> {
        let batch = self.batch.as_ref().map(Flight::since);
        batch.into_iter().chain(self.keyed_batch.as_ref().map(Flight::since)).min()
    }

    /// The commands that are under way or in the draft.
    pub fn pending_mut(&mut self) -> impl Iterator<Item = &mut Pending<R>> {
        let batch = self.batch.iter_mut().flat_map(Flight::entries_mut);
        let batch = batch.chain(self.draft.iter_mut().flat_map(Draft::entries_mut));
        let keyed = self.keyed_batch.iter_mut().flat_map(Flight::entries_mut);
        batch.chain(keyed).flat_map(Entry::pending_mut)
    }
}

/// The batch.
impl<R> Committer<R> {
    pub fn is_committing(&self) -> bool {
        self.batch.is_some()
    }

    /// Whether there is something to write besides transitions that have yet to be decided.
    pub fn has_gathered(&self) -> bool {
        let has_more = !(self.quarantines.is_empty() && self.reminders.is_empty());
        self.draft.is_some() || !self.events.is_empty() || (has_more && !self.is_committing())
    }

    /// Whether the next batch may be drafted. While the batch under way is in trouble, nothing more is
    /// decided, because callers whose commands have not been decided can still be refused.
    pub fn may_draft(&self) -> bool {
        self.batch.as_ref().is_none_or(Flight::is_first_try)
    }

    /// What has been decided for the next batch so far.
    pub fn take_draft(&mut self, options: &Options) -> Draft<R> {
        self.draft.take().unwrap_or_else(|| Draft::new(options))
    }

    /// Keeps a draft until the batch under way is settled.
    pub fn keep_draft(&mut self, draft: Draft<R>) {
        self.draft = Some(draft).filter(|draft| !draft.is_empty());
    }

    pub fn keep_settled(&mut self, part: Part<R>) {
        self.settled = Some(part);
    }

    pub fn take_settled(&mut self) -> Option<Part<R>> {
        self.settled.take()
    }

    /// Moves the waiting failure events into a draft. Returns false if some must wait for the next batch.
    pub fn add_events(&mut self, draft: &mut Draft<R>) -> bool {
        while draft.has_room_for_event()
            && let Some(event) = self.events.pop_front()
        {
            draft.add_event(event);
        }
        self.events.is_empty()
    }

    pub fn add_quarantines(&mut self, draft: &mut Draft<R>) {
        while draft.has_room_for_quarantine()
            && let Some(new) = self.quarantines.pop_front()
        {
            draft.add_quarantine(new);
        }
    }

    /// Makes a draft the batch under way and returns what to send, if the draft is not empty.
    pub fn send(&mut self, draft: Draft<R>, now: Tick) -> Option<Arc<Batch>> {
        let (batch, entries) = draft.finish();
        if batch == Batch::default() {
            return None;
        }
        let batch = Arc::new(batch);
        self.batch = Some(Flight::new(batch.clone(), entries, now));
        Some(batch)
    }

    /// The content to send now: the same as before, or the next part.
    pub fn again(&mut self) -> Option<Arc<Batch>> {
        self.batch.as_mut().and_then(Flight::again)
    }

    /// How many transitions were sent last.
    #[cfg(feature = "mutants")]
    pub fn sent(&self) -> usize {
        self.batch.as_ref().map_or(0, |flight| flight.sent().transitions.len())
    }

    /// `retry`: the pause after the first failure.
    pub fn answered(
        &mut self,
        answer: Result<Vec<Settled>>,
        now: Tick,
        retry: Duration,
    ) -> Answered<Entry<R>, Batch, Settled> {
        answered(&mut self.batch, answer, now, retry)
    }
}

/// Starts with keys.
impl<R> Committer<R> {
    pub fn wants_key(&mut self, id: ExecutionId) {
        self.keyed.push_back(id);
    }

    /// Whether starts with keys are waiting and none are under way.
    pub fn may_start_keyed(&self) -> bool {
        self.keyed_batch.is_none() && !self.keyed.is_empty()
    }

    pub fn next_keyed(&mut self) -> Option<ExecutionId> {
        self.keyed.pop_front()
    }

    pub fn send_keyed(
        &mut self,
        starts: Vec<KeyedStart>,
        entries: Vec<Entry<R>>,
        now: Tick,
    ) -> Option<Arc<Vec<KeyedStart>>> {
        if starts.is_empty() {
            return None;
        }
        let starts = Arc::new(starts);
        self.keyed_batch = Some(Flight::new(starts.clone(), entries, now));
        Some(starts)
    }

    /// As [`Self::again`].
    pub fn keyed_again(&mut self) -> Option<Arc<Vec<KeyedStart>>> {
        self.keyed_batch.as_mut().and_then(Flight::again)
    }

    /// As [`Self::answered`].
    pub fn keyed_answered(
        &mut self,
        answer: Result<Vec<KeySettled>>,
        now: Tick,
        retry: Duration,
    ) -> Answered<Entry<R>, Vec<KeyedStart>, KeySettled> {
        answered(&mut self.keyed_batch, answer, now, retry)
    }
}

fn answered<E, B: Divisible, S>(
    under_way: &mut Option<Flight<E, B>>,
    answer: Result<Vec<S>>,
    now: Tick,
    retry: Duration,
) -> Answered<E, B, S> {
    let Some(flight) = under_way else {
        return Answered::Nothing;
    };
    match answer {
        Ok(settled) => {
            let (part, entries, is_all) = flight.succeeded(now);
            if is_all {
                *under_way = None;
            }
            Answered::Settled { part, entries, settled }
        }
        Err(Error::LeaseLost) => {
            flight.rest();
            Answered::LeaseLost
        }
        Err(error) => Answered::Again(error, flight.failed(retry)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Duration = Duration::from_millis(50);

    fn under_way() -> Option<Flight<&'static str, Vec<KeyedStart>>> {
        Some(Flight::new(Arc::default(), vec!["a"], Tick::default()))
    }

    #[test]
    fn answer_without_a_call_in_flight_is_ignored() {
        let answer = answered::<(), Batch, _>(&mut None, Ok(vec![()]), Tick::default(), RETRY);
        assert!(matches!(answer, Answered::Nothing));
    }

    #[test]
    fn failed_call_is_kept_for_a_retry() {
        let mut flight = under_way();
        let failed = Err::<Vec<()>, _>(Error::OutcomeUnknown("it broke".to_owned()));
        let answer = answered(&mut flight, failed, Tick::default(), RETRY);
        assert!(matches!(answer, Answered::Again(_, pause) if pause == RETRY));
        let flight = flight.as_mut().expect("it is still under way");
        assert!(flight.again().is_some(), "it waits to be sent");
        assert_eq!(flight.entries_mut().count(), 1);
    }

    #[test]
    fn call_whose_parts_are_all_settled_is_finished() {
        let mut flight = under_way();
        let answer = answered(&mut flight, Ok(vec![()]), Tick::default(), RETRY);
        assert!(matches!(answer, Answered::Settled { .. }));
        assert!(flight.is_none());
    }
}
