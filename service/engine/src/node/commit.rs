//! Group commit: what has gathered is decided, goes out as one batch, and is answered when the store
//! has settled it.

mod keyed;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use recoup_core::command::{Command, Rejection, StartBasis};
use recoup_core::decide::{Decided, Decider, next_wake};
use recoup_core::event::Event;
use recoup_core::execution::Execution;
use recoup_core::failure_event::Subject;
use recoup_core::id::{ExecutionId, StepPath, TransitionId};
use recoup_core::outcome::Outcome;
use recoup_core::plan::Plan;
use recoup_core::quarantine::QuarantineReason;
use recoup_core::retry::Decision;
use recoup_core::time::Timestamp;
use recoup_store::format::{self, Encoded, FIRST, Formats, encode_transition};
use recoup_store::{
    Batch, Error, FeedRow, IndexRow, KeyedStart, NodeId, Reminder, Settled, StartRequest, TaskKey,
    Transition,
};

use super::attempt::Attempt;
use super::dispatch::DOUBT;
use super::flight::Flight;
use super::io::{Answer, Damage, Output, Refusal};
use super::resident::{Committed, Resident};
use super::slots::{Known, Pending, Row, Slot, Waiter};
use super::{Node, Timer};
#[cfg(feature = "mutants")]
use crate::options::Mutant;
use crate::transition::{feed_rows, index_differs, index_row};

/// Retention takes nothing that ended less than a minute ago: what the store has spoken of within half of
/// that is there.
const MAY_BE_GONE_AFTER: Duration = Duration::from_secs(30);

/// The batch under way.
pub(super) type InFlight<R> = Flight<Entry<R>, Batch>;
/// The starts with keys under way.
pub(super) type KeyedInFlight<R> = Flight<Entry<R>, Vec<KeyedStart>>;

/// One execution's part of a batch.
pub(super) struct Entry<R> {
    id: ExecutionId,
    /// The state that the slot has given away for the time.
    next: Box<Execution>,
    committed: Committed,
    plan: Arc<Plan>,
    index: Option<IndexRow>,
    overflow_done: Vec<TaskKey>,
    failures: Failures,
    /// How many events the decision made.
    events: usize,
    /// Bytes of JSON that it took to parse.
    parsed: usize,
    decided: Vec<Judged<R>>,
}

impl<R> Entry<R> {
    /// What is under way.
    pub fn pending_mut(&mut self) -> impl Iterator<Item = &mut Pending<R>> {
        self.decided.iter_mut().map(|(pending, _)| pending)
    }
}

/// The attempts that failed in a transition, for the workers that reported them.
#[derive(Default)]
struct Failures(Vec<(StepPath, u32, Decision)>);

impl Failures {
    fn of<R>(events: &[Event], decided: &[Judged<R>]) -> Self {
        let reported = |(pending, _): &Judged<R>| {
            pending.reply.is_some() && matches!(pending.command, Command::FailTask { .. })
        };
        if !decided.iter().any(reported) {
            return Self::default();
        }
        let failed = events.iter().filter_map(|event| match event {
            Event::AttemptFailed(failed) => {
                Some((failed.path.clone(), failed.attempt, failed.decision))
            }
            _ => None,
        });
        Self(failed.collect())
    }

    fn decision(&self, command: &Command) -> Option<Decision> {
        let Command::FailTask { task, .. } = command else {
            return None;
        };
        let mut failed = self.0.iter();
        let found =
            failed.find(|(path, attempt, _)| *path == task.path && *attempt == task.attempt);
        found.map(|(_, _, decision)| *decision)
    }
}

/// A decision, and what follows from it: all that could panic.
struct Finished {
    /// Empty if nothing changed: the rest says nothing then.
    events: Vec<Event>,
    state: Option<Box<Execution>>,
    feed: Vec<FeedRow>,
    wake: Option<Timestamp>,
    /// Bytes of JSON that it took to parse.
    parsed: usize,
}

/// A command, and whether it fitted.
type Judged<R> = (Pending<R>, Result<(), Rejection>);

/// What the caller of a command is told that the state has come of.
fn answer(
    state: &Execution,
    command: &Command,
    is_own: bool,
    decision: Option<Decision>,
) -> Answer {
    match command {
        Command::CompleteTask { .. } | Command::FailTask { .. } | Command::RecordStart { .. } => {
            let (sequence, is_stopping) = (state.sequence, state.is_stopping());
            Answer::Recorded { sequence, is_stopping, decision }
        }
        _ => Answer::Done { outcome: Box::new(Outcome::of(state)), is_own },
    }
}

impl<R> Node<R> {
    pub(super) fn commit_ready(&mut self) {
        let Some(node) = self.node_id() else {
            return;
        };
        let nothing = self.ready.is_empty()
            && self.loose_events.is_empty()
            && self.quarantines.is_empty()
            && self.reminders.is_empty();
        if self.batch.is_some() || nothing {
            return;
        }
        let mut batch = Batch::default();
        let mut entries = Vec::new();
        let (mut bytes, mut events) = (0, 0);
        while batch.feed.len() < self.options.batch_transitions_max
            && bytes < self.options.batch_bytes_max
            && let Some(event) = self.loose_events.pop_front()
        {
            bytes += event.bytes();
            batch.feed.push(event);
        }
        // The feed names a lost session before the attempts that fail with it, so no transition is
        // decided while an event waits for the next batch.
        while self.loose_events.is_empty()
            && entries.len() < self.options.batch_transitions_max
            && bytes < self.options.batch_bytes_max
            && events < self.options.batch_events_max
            && let Some(id) = self.ready.pop_front()
        {
            if let Some((entry, transition)) = self.decide(id) {
                // What took long to decide ends the batch too: the lease is renewed between two.
                bytes += transition.bytes() + entry.parsed;
                events += entry.events;
                entries.push(entry);
                batch.transitions.push(transition);
            }
        }
        // Those too that were found just now: nothing of theirs is in the batch.
        while batch.quarantined.len() < self.options.batch_transitions_max
            && bytes < self.options.batch_bytes_max
            && let Some(new) = self.quarantines.pop_front()
        {
            bytes += new.bytes();
            batch.quarantined.push(new);
        }
        while batch.reminders.len() < self.options.batch_transitions_max
            && bytes < self.options.batch_bytes_max
            && let Some(id) = self.reminders.pop_first()
        {
            if let Some(reminder) = self.remind(id) {
                bytes += Reminder::BYTES;
                batch.reminders.push(reminder);
            }
        }
        if batch == Batch::default() {
            return;
        }
        let batch = Arc::new(batch);
        self.outputs.push_back(Output::Commit(node, batch.clone()));
        self.batch = Some(Flight::new(batch, entries, self.monotonic));
    }

    /// Decides everything that waits in a slot. What changes nothing is answered at once.
    fn decide(&mut self, id: ExecutionId) -> Option<(Entry<R>, Transition)> {
        let random = self.random.number();
        let now = self.now;
        let writable = self.life.writable().unwrap_or(Formats::FIRST);
        let slot = self.slots.get_mut(&id)?;
        if slot.in_flight || slot.doubted || slot.inbox.is_empty() {
            return None;
        }
        let plan = match &slot.known {
            Known::Resident(resident) if resident.state.is_some() => resident.plan.clone(),
            Known::New(plan) => plan.clone(),
            Known::Resident(_) | Known::Unread | Known::Quarantined => return None,
        };
        if let Known::Resident(resident) = &slot.known {
            let doubted = slot.inbox.iter_mut().filter(|one| !one.verified);
            let ahead = doubted.filter(|one| one.is_ahead_of(&resident.committed));
            if ahead.map(|one| one.verified = true).count() > 0 {
                // Nothing is refused because memory is old: it is read again first.
                slot.doubted = true;
                self.loader.want(id);
                return None;
            }
        }
        let count = if slot.singly > 0 { 1 } else { slot.inbox.len() };
        slot.singly = slot.singly.saturating_sub(1);
        let terminates =
            |one: &Pending<R>| matches!(one.command, Command::TerminateExecution { .. });
        let unstarted = match slot.inbox.iter().take(count).any(terminates) {
            true => self.take_back(id),
            false => Vec::new(),
        };
        let slot = self.slots.get_mut(&id)?;
        let is_ours = slot.owned;
        let begins_in = writable.history.clamp(FIRST, Formats::NEWEST.history);
        let mut state = match &mut slot.known {
            Known::Resident(resident) => resident.state.take(),
            _ => None,
        };
        let mut pending: Vec<_> = slot.inbox.drain(..count).collect();
        // What a termination took out of the queues is not left to another transition.
        let is_divisible = !pending.iter().any(terminates);
        #[cfg(feature = "mutants")]
        let panics = self.options.panics;
        let decision = catch_unwind(AssertUnwindSafe(|| {
            #[cfg(feature = "mutants")]
            if let Some(panics) = panics
                && pending.iter().any(|one| panics(&one.command))
            {
                panic!("a defect of a test");
            }
            let decider = Decider::new(state.take(), &plan, now, random).starting_in(begins_in);
            let mut decider = if is_ours { decider } else { decider.doubting(DOUBT) };
            // What an earlier transition had no room for comes before everything else.
            decider.resume();
            let mut verdicts = Vec::with_capacity(pending.len());
            for one in &pending {
                if is_divisible && !verdicts.is_empty() && decider.is_spent() {
                    break;
                }
                let mut command = one.command.clone();
                // As of now: after a lost commit another node may have handed them out.
                if let Command::TerminateExecution { unstarted: known, .. } = &mut command {
                    known.clone_from(&unstarted);
                }
                verdicts.push(decider.decide(command, one.request.as_ref()));
            }
            let parsed = decider.parsed();
            let Decided { events, state } = decider.finish();
            let (mut feed, mut wake) = (Vec::new(), None);
            if let Some(state) = state.as_deref().filter(|_| !events.is_empty()) {
                feed = feed_rows(state, &plan, &events);
                wake = next_wake(state, &plan);
            }
            (verdicts, Finished { events, state, feed, wake, parsed })
        }));
        let (verdicts, finished) = match decision {
            Ok(decided) => decided,
            Err(panic) => {
                slot.inbox.extend(pending);
                self.decision_panicked(id, words(&*panic));
                return None;
            }
        };
        // There was no room for more: the rest is decided next.
        for one in pending.drain(verdicts.len()..).rev() {
            slot.inbox.push_front(one);
        }
        let judged: Vec<Judged<R>> = pending.into_iter().zip(verdicts).collect();
        if finished.events.is_empty() {
            self.nothing_decided(id, judged, finished.state);
            return None;
        }
        let (entry, transition) = self.entry(id, finished, plan, judged)?;
        #[cfg(feature = "mutants")]
        let entry = self.reply_before_commit(entry);
        Some((entry, transition))
    }

    fn entry(
        &mut self,
        id: ExecutionId,
        finished: Finished,
        plan: Arc<Plan>,
        decided: Vec<Judged<R>>,
    ) -> Option<(Entry<R>, Transition)> {
        let Finished { events, state, feed, wake, parsed } = finished;
        // Events make a state.
        let next = state?;
        let transition_id =
            TransitionId(uuid::Uuid::from_u64_pair(self.random.number(), self.random.number()));
        let committed = Committed::new(&next, wake);
        let wake_at = self.sleeps_until(&committed);
        let Encoded { format, data } = encode_transition(next.decided_at, &events);
        let writable = self.life.writable().unwrap_or(Formats::FIRST);
        let slot = self.slots.get_mut(&id)?;
        // Starts are a door. An execution that has begun in a format continues in it.
        if matches!(slot.known, Known::New(_))
            && let Err(refused) = writable.permit(format::Row::History, format)
        {
            self.slots.remove(&id);
            let refusal = Refusal::NotFinalized(refused);
            for reply in decided.into_iter().filter_map(|(pending, _)| pending.reply) {
                self.reply(reply, Err(refusal.clone()));
            }
            return None;
        }
        slot.in_flight = true;
        // If this transition is lost, the history is read again, and its format with it.
        slot.format = slot.format.max(format);
        let highest = slot.format;
        let unchanged = slot.owned
            && slot.index.as_ref().is_some_and(|row| !index_differs(row, &next, highest, wake_at));
        let index = (!unchanged).then(|| index_row(&next, highest, wake_at));
        // Void is the row of what is closed, and of what is with a worker from now on.
        let open: BTreeSet<_> = match slot.overflow.is_empty() {
            true => BTreeSet::new(),
            false => {
                let starts = |path: &StepPath| {
                    events.iter().any(|event| {
                        matches!(event, Event::AttemptStarted { path: started, .. } if started == path)
                    })
                };
                let open = next.open_attempts().filter(|open| !starts(&open.path));
                open.map(|open| (open.path, open.task.attempt)).collect()
            }
        };
        let is_done = |key: &&TaskKey| !open.contains(&(key.path.clone(), key.attempt));
        let overflow_done: Vec<_> = slot.overflow.keys().filter(is_done).cloned().collect();
        let request = decided.iter().find_map(|(one, _)| match (&one.command, &one.request) {
            (Command::StartExecution(start), Some(request)) => Some(StartRequest {
                namespace: start.namespace.clone(),
                request_id: request.id.clone(),
                digest: request.digest,
            }),
            _ => None,
        });
        let transition = Transition {
            execution: id,
            sequence: next.sequence,
            transition_id,
            format,
            data,
            index: index.clone(),
            request,
            feed,
            overflow_done: overflow_done.clone(),
            may_be_gone: self.monotonic.since(slot.current_at) > MAY_BE_GONE_AFTER,
        };
        let failures = Failures::of(&events, &decided);
        let events = events.len();
        let entry = Entry {
            id,
            next,
            committed,
            plan,
            index,
            overflow_done,
            failures,
            events,
            parsed,
            decided,
        };
        Some((entry, transition))
    }

    /// Where the next thing to do is far away: when the execution wants to be read again.
    pub(super) fn sleeps_until(&self, committed: &Committed) -> Option<Timestamp> {
        if !committed.is_active {
            return None;
        }
        let earliest = committed.first_scheduled.into_iter().chain(committed.wake).min()?;
        (earliest > self.now + self.options.sleep_horizon).then_some(earliest)
    }

    /// The reminder that the store should have of an execution; none if it has that one, or if something
    /// else is to be written first.
    fn remind(&mut self, id: ExecutionId) -> Option<Reminder> {
        let slot = self.slots.get(&id)?;
        let committed = slot.committed()?;
        if !slot.owned || slot.in_flight || slot.doubted || !slot.inbox.is_empty() {
            return None;
        }
        let wake_at = self.sleeps_until(committed);
        if wake_at == slot.wake_at {
            return None;
        }
        self.slots.get_mut(&id)?.in_flight = true;
        Some(Reminder { execution: id, wake_at })
    }

    fn reminded(&mut self, reminder: Reminder) {
        let Reminder { execution: id, wake_at } = reminder;
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        slot.in_flight = false;
        if matches!(slot.known, Known::Unread) {
            // The lease was lost meanwhile.
            self.loader.want(id);
        } else {
            slot.wake_at = wake_at;
            if let Some(index) = &mut slot.index {
                index.wake_at = wake_at;
            }
            if slot.doubted {
                self.loader.want(id);
            }
        }
        self.touch_slot(id);
        self.settle_slot(id);
    }

    fn nothing_decided(
        &mut self,
        id: ExecutionId,
        decided: Vec<Judged<R>>,
        state: Option<Box<Execution>>,
    ) {
        if let Some(slot) = self.slots.get_mut(&id) {
            if let Known::Resident(resident) = &mut slot.known {
                resident.state = state;
            }
            for attempt in &mut slot.attempts {
                attempt.acting = false;
            }
        }
        for (pending, verdict) in decided {
            self.after_start(&pending.command, true);
            if let (Command::RecordStart { task, .. }, Ok(())) = (&pending.command, &verdict) {
                self.is_on_record(task);
            }
            let Some(reply) = pending.reply else {
                continue;
            };
            let slot = self.slots.get(&id);
            let answer = match (verdict, slot.and_then(Slot::state)) {
                (Ok(()), Some(state)) => Ok(answer(state, &pending.command, false, None)),
                (Ok(()), None) => Err(Rejection::NoSuchExecution.into()),
                (Err(rejection), _) => Err(rejection.into()),
            };
            self.reply(reply, answer);
        }
        self.touch_slot(id);
        self.settle_slot(id);
    }

    pub(super) fn committed(&mut self, node: NodeId, settled: recoup_store::Result<Vec<Settled>>) {
        let (is_past, now) = (self.node_id() != Some(node), self.monotonic);
        let Some(flight) = &mut self.batch else {
            return;
        };
        #[cfg(feature = "mutants")]
        let settled = match settled {
            Err(Error::OutcomeUnknown(_)) if self.options.has(Mutant::UnknownOutcomeNotSettled) => {
                Ok(vec![Settled::Won; flight.sent().transitions.len()])
            }
            settled => settled,
        };
        let settled = match settled {
            Ok(settled) => settled,
            Err(Error::LeaseLost) => {
                flight.rest();
                return if is_past { self.commit_again() } else { self.lose_life() };
            }
            Err(error) => {
                // Known or unknown, the same transitions go again: the store recognises them.
                let pause = flight.failed(self.options.commit_retry);
                tracing::warn!(%error, ?pause, "a commit is sent again");
                return self.set_timer(pause, Timer::Commit);
            }
        };
        let (part, entries, is_all) = flight.succeeded(now);
        if is_all {
            self.batch = None;
        }
        let fed =
            part.transitions.iter().zip(&settled).any(|(transition, settled)| {
                !transition.feed.is_empty() && *settled == Settled::Won
            });
        for (entry, settled) in entries.into_iter().zip(settled) {
            match settled {
                Settled::Won => self.won(entry),
                // Read again, a quarantine is found as another's transition is.
                Settled::Lost | Settled::Quarantined => self.lost(entry),
                Settled::RequestTaken { execution, digest, started } => {
                    self.request_taken(entry, execution, digest, started);
                }
                Settled::Refused(reason) => self.refused(entry, reason),
            }
        }
        for new in &part.quarantined {
            self.refuse_quarantined(new.execution, new.quarantine.clone());
        }
        for reminder in &part.reminders {
            self.reminded(*reminder);
        }
        if fed || !part.feed.is_empty() || !part.quarantined.is_empty() {
            self.outputs.push_back(Output::FeedWritten);
        }
        self.commit_again();
    }

    pub(super) fn commit_again(&mut self) {
        let Some(node) = self.node_id() else {
            return;
        };
        if let Some(batch) = self.batch.as_mut().and_then(Flight::again) {
            self.outputs.push_back(Output::Commit(node, batch));
        }
    }

    fn won(&mut self, entry: Entry<R>) {
        let Entry { id, next, committed, plan, index, overflow_done, failures, decided, .. } =
            entry;
        let grace = self.options.reconnect_grace;
        let (until, soon) = (self.monotonic + grace, self.now + grace);
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        slot.in_flight = false;
        let has_ended = next.state.is_ended();
        let mut unkept = None;
        if matches!(slot.known, Known::Unread) {
            // The lease was lost meanwhile: what is in the store now is not only this.
            self.loader.want(id);
            unkept = Some(next);
        } else {
            let resident = Resident { plan, committed, state: Some(next) };
            match &mut slot.known {
                Known::Resident(before) => **before = resident,
                known => *known = Known::Resident(Box::new(resident)),
            }
            slot.current_at = self.monotonic;
            if let Some(index) = index {
                if !slot.owned {
                    // While it was another node's, nobody had a reason to speak up here.
                    let attempts = slot.attempts.iter_mut();
                    attempts.for_each(|attempt| attempt.wait_for_last_owner(until, soon));
                }
                slot.owned = true;
                slot.wake_at = index.wake_at;
                slot.index = Some(index);
            }
            for key in &overflow_done {
                slot.overflow.remove(key);
            }
            let is_doubted = slot.doubted;
            self.sync_attempts(id, true);
            if is_doubted {
                self.loader.want(id);
            }
        }
        for (pending, verdict) in decided {
            self.after_start(&pending.command, verdict.is_err());
            let Some(reply) = pending.reply else {
                continue;
            };
            if let (Command::RecordStart { task, .. }, Ok(())) = (&pending.command, &verdict) {
                self.heard_from(task);
            }
            let is_own = matches!(pending.command, Command::StartExecution(_));
            let kept = || self.slots.get(&id).and_then(Slot::state);
            match (verdict, pending.until, unkept.as_deref().or_else(kept)) {
                (Ok(()), Some(until), _) if !has_ended => {
                    let until = Some(self.end_of_wait(until));
                    let waiter =
                        Waiter { since: self.monotonic, until, reply, is_own, snapshot: false };
                    if let Some(slot) = self.slots.get_mut(&id) {
                        slot.waiters.push(waiter);
                    }
                }
                (Ok(()), _, Some(state)) => {
                    let decision = failures.decision(&pending.command);
                    let answer = answer(state, &pending.command, is_own, decision);
                    self.reply(reply, Ok(answer));
                }
                // The state has come with the commit, and nothing has been decided since.
                (Ok(()), _, None) => {}
                (Err(rejection), ..) => self.reply(reply, Err(rejection.into())),
            }
        }
        self.serve_waiters(id);
        self.touch_slot(id);
        self.settle_slot(id);
    }

    /// Another node was first: what was decided is void, what was asked is decided again.
    fn lost(&mut self, entry: Entry<R>) {
        let Some(slot) = self.slots.get_mut(&entry.id) else {
            return;
        };
        slot.in_flight = false;
        let pending = entry.decided.into_iter().map(|(pending, _)| pending);
        slot.inbox = pending.chain(std::mem::take(&mut slot.inbox)).collect();
        self.forget(entry.id);
        self.touch_slot(entry.id);
    }

    /// Drops what is believed of an execution; what waits in its slot stays.
    pub(super) fn forget(&mut self, id: ExecutionId) {
        let now = self.monotonic;
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        slot.known = Known::Unread;
        slot.owned = false;
        slot.index = None;
        slot.wake_at = None;
        // What is claimed stays so: on what is read it turns out whether any worker has it.
        let rows = std::mem::take(&mut slot.overflow).into_iter();
        slot.claimed.extend(rows.filter_map(|(key, row)| match row {
            Row::Claimed { until, scheduled_in } if until > now => Some((key, scheduled_in)),
            Row::Claimed { .. } | Row::Free => None,
        }));
        // A hand-over that was under way is off. What workers hold is not: those with a session say so
        // themselves, and for the others it is said below. That an attempt was with nobody, or had had
        // its time, is judged again on what is read.
        let sessions = &self.sessions;
        slot.inbox.retain(|one| match &one.command {
            Command::RecordStart { basis: StartBasis::HandOver { .. }, .. } => false,
            Command::RecordStart { task, .. } => !one.is_own() || sessions.is_held(task),
            Command::WithdrawTask { .. } | Command::TimeOutTask { .. } => false,
            _ => true,
        });
        let attempts = std::mem::take(&mut slot.attempts);
        let starts: Vec<_> = attempts.iter().filter_map(Attempt::unrecorded_start).collect();
        for attempt in &attempts {
            self.unqueue(attempt);
        }
        for start in starts {
            self.submit(id, start, None, None);
        }
    }

    fn request_taken(
        &mut self,
        entry: Entry<R>,
        execution: ExecutionId,
        digest: u64,
        started: bool,
    ) {
        self.slots.remove(&entry.id);
        for (pending, _) in entry.decided {
            let Some(reply) = pending.reply else {
                continue;
            };
            if pending.request.is_some_and(|request| request.digest == digest) {
                self.use_existing(execution, pending.until, reply, started);
            } else {
                self.reply(reply, Err(Refusal::RequestIdReused));
            }
        }
    }

    /// A start is answered by an execution that is there already.
    fn use_existing(
        &mut self,
        execution: ExecutionId,
        until: Option<Timestamp>,
        reply: R,
        is_own: bool,
    ) {
        // Without a wait: as soon as it is read.
        let until = Some(until.unwrap_or(self.now));
        self.add_waiter(
            execution,
            Waiter { since: self.monotonic, until, reply, is_own, snapshot: false },
        );
    }

    fn refused(&mut self, entry: Entry<R>, reason: String) {
        let Some(slot) = self.slots.get_mut(&entry.id) else {
            return;
        };
        slot.in_flight = false;
        if entry.decided.len() > 1 && !matches!(slot.known, Known::New(_)) {
            // One of them brought what the store refuses; the others are not to suffer for it.
            tracing::warn!(execution = %entry.id, %reason, "a refused transition is decided in parts");
            slot.singly = entry.decided.len();
            let pending = entry.decided.into_iter().map(|(pending, _)| pending);
            slot.inbox = pending.chain(std::mem::take(&mut slot.inbox)).collect();
            return self.read_again(entry.id);
        }
        tracing::error!(execution = %entry.id, %reason, "the store refused a transition");
        let own = entry.decided.iter().any(|(pending, _)| pending.is_own());
        for attempt in &mut slot.attempts {
            attempt.acting = false;
            // A result that is refused is none: the attempt's clocks go on.
            attempt.reported = false;
        }
        if matches!(slot.known, Known::New(_)) {
            slot.known = Known::Unread;
        }
        let replies = entry.decided.into_iter().filter_map(|(pending, _)| pending.reply);
        for reply in replies.collect::<Vec<_>>() {
            self.reply(reply, Err(Refusal::Refused(reason.clone())));
        }
        let is_known = self.slots.get(&entry.id).is_some_and(|slot| slot.resident().is_some());
        if is_known && own {
            // It would be decided, and refused, for ever.
            let state = &entry.next;
            let (namespace, subject) = (state.namespace.clone(), Subject::of(state));
            let (reason, detail) = (QuarantineReason::StoreRefused, reason);
            return self.quarantine(entry.id, Damage { reason, detail, namespace, subject });
        }
        self.read_again(entry.id);
        self.settle_slot(entry.id);
    }

    /// The state has changed with a transition that came to nothing. What is known of the attempts stays.
    pub(super) fn read_again(&mut self, id: ExecutionId) {
        if let Some(slot) = self.slots.get_mut(&id)
            && slot.resident().is_some()
        {
            slot.doubted = true;
            self.loader.want(id);
        }
        self.touch_slot(id);
    }

    /// Whether the batch under way puts an execution in quarantine.
    pub(super) fn is_quarantining(&self, id: ExecutionId) -> bool {
        let flight = self.batch.as_ref();
        flight.is_some_and(|flight| flight.quarantined().any(|new| new.execution == id))
    }

    #[cfg(feature = "mutants")]
    fn reply_before_commit(&mut self, mut entry: Entry<R>) -> Entry<R> {
        if self.options.has(Mutant::ReplyBeforeCommit) {
            for (pending, verdict) in &mut entry.decided {
                if pending.until.is_none()
                    && verdict.is_ok()
                    && let Some(reply) = pending.reply.take()
                {
                    let answer = Ok(answer(&entry.next, &pending.command, true, None));
                    self.outputs.push_back(Output::Reply { reply, answer });
                }
            }
        }
        entry
    }
}

/// The words of a panic.
fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without words")
}
