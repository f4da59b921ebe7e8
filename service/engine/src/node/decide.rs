//! Decides the commands that have gathered and puts the decisions into a batch.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use recoup_core::command::{Command, Rejection};
use recoup_core::decide::{Decided, Decider, next_wake};
use recoup_core::event::Event;
use recoup_core::execution::Execution;
use recoup_core::id::{ExecutionId, StepPath, TransitionId};
use recoup_core::plan::Plan;
use recoup_core::time::Timestamp;
use recoup_store::format::{self, Encoded, FIRST, Formats, encode_transition};
use recoup_store::{FeedRow, Reminder, StartRequest, TaskKey, Transition};

use super::Node;
use super::attempt::DOUBT;
use super::batch::{Entry, Failures, Judged, answer, touched};
use super::io::{Output, Refusal};
use super::resident::Committed;
use super::slot::{Pending, Slot};
#[cfg(feature = "mutants")]
use crate::options::Mutant;
use crate::transition::{feed_rows, index_differs, index_row};

/// Retention deletes no execution that ended less than a minute ago. So an execution that the store has
/// confirmed within half of that time still exists.
const MAY_BE_GONE_AFTER: Duration = Duration::from_secs(30);

/// A decision and everything derived from it that could panic.
struct Finished {
    /// Empty if nothing changed; then the other fields mean nothing.
    events: Vec<Event>,
    state: Option<Box<Execution>>,
    feed: Vec<FeedRow>,
    wake: Option<Timestamp>,
    /// How many bytes of JSON the decision parsed.
    parsed: usize,
}

impl<R> Node<R> {
    /// Decides what is ready for the next batch, and sends the batch at once if none is under way.
    pub(super) fn commit_ready(&mut self) {
        let is_needed = self.slots.has_ready() || self.committer.has_gathered();
        if self.node_id().is_none() || !is_needed || !self.committer.may_draft() {
            return;
        }
        let mut draft = self.committer.take_draft(&self.options);
        // On the feed, the event of a lost session comes before the attempts that fail because of it. So no
        // transition is decided while such an event has to wait for the next batch.
        let is_said = self.committer.add_events(&mut draft);
        while is_said
            && draft.may_decide()
            && let Some(id) = self.slots.next_ready()
        {
            if let Some((entry, transition)) = self.decide(id) {
                draft.add_decision(entry, transition);
            }
        }
        self.committer.keep_draft(draft);
        if !self.committer.is_committing() {
            self.commit_draft();
        }
    }

    /// Sends the next batch as it is now.
    pub(super) fn commit_draft(&mut self) {
        let Some(node) = self.node_id() else {
            return;
        };
        let mut draft = self.committer.take_draft(&self.options);
        // This includes executions whose damage was found just now: the batch contains no transition of theirs.
        self.committer.add_quarantines(&mut draft);
        while draft.has_room_for_reminder()
            && let Some(id) = self.committer.next_reminder()
        {
            if let Some(reminder) = self.remind(id) {
                draft.add_reminder(reminder);
            }
        }
        if let Some(batch) = self.committer.send(draft, self.monotonic) {
            self.effects.push(Output::Commit(node, batch));
        }
    }

    /// Decides all commands that wait in a slot. Commands that change nothing are answered at once.
    pub(super) fn decide(&mut self, id: ExecutionId) -> Option<(Entry<R>, Transition)> {
        let random = self.random.number();
        let now = self.now;
        let writable = self.life.writable().unwrap_or(Formats::FIRST);
        let slot = self.slots.get_mut(id)?;
        if slot.in_flight || slot.doubted || slot.inbox.is_empty() {
            return None;
        }
        let plan = slot.known.plan_to_decide()?;
        if let Some(committed) = slot.known.committed() {
            let doubted = slot.inbox.iter_mut().filter(|one| !one.verified);
            let ahead = doubted.filter(|one| one.is_ahead_of(committed));
            if ahead.map(|one| one.verified = true).count() > 0 {
                // A command must not be rejected because the state in memory is stale, so the execution is
                // read first.
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
        let slot = self.slots.get_mut(id)?;
        // The node that had it before stops handing out what is due without asking only after half of its grace
        // period.
        let is_settled = slot.taken_over_at.is_none_or(|at| self.monotonic.since(at) > DOUBT);
        let is_ours = slot.owned && is_settled;
        let begins_in = writable.history.clamp(FIRST, Formats::NEWEST.history);
        let mut state = slot.known.take_state();
        let mut pending: Vec<_> = slot.inbox.drain(..count).collect();
        for one in pending.iter_mut().filter(|one| !one.is_own()) {
            // A result may have come before the execution was read, when it was unknown which worker has the
            // attempt.
            if let Command::CompleteTask { task, worker, .. }
            | Command::FailTask { task, worker, .. } = &mut one.command
                && worker.is_empty()
            {
                slot.worker_of(task).clone_into(worker);
            }
        }
        // A termination withdraws attempts from the queues, so it must not be left to a later transition.
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
            // Work that had no room in an earlier transition comes before everything else.
            decider.resume();
            let mut verdicts = Vec::with_capacity(pending.len());
            for one in &pending {
                if is_divisible && !verdicts.is_empty() && decider.is_spent() {
                    break;
                }
                let mut command = one.command.clone();
                // The list is computed anew for each decision: after a lost commit, another node may have
                // handed the attempts out.
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
        // The transition had no room for the remaining commands; they are decided next.
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
        // There is a state, because there are events.
        let next = state?;
        let transition_id =
            TransitionId(uuid::Uuid::from_u64_pair(self.random.number(), self.random.number()));
        let committed = Committed::new(&next, wake);
        let wake_at = self.sleeps_until(&committed);
        let Encoded { format, data } = encode_transition(next.decided_at, &events);
        let writable = self.life.writable().unwrap_or(Formats::FIRST);
        let slot = self.slots.get_mut(id)?;
        // The format is checked at the start only: an execution that has begun in a format continues in it.
        if slot.known.is_new()
            && let Err(refused) = writable.permit(format::Row::History, format)
        {
            self.slots.remove(id);
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
        // The overflow row of an attempt is void once the attempt is closed, or is with a worker.
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
        let (failures, touched) = (Failures::of(&events, &decided), touched(&events, &decided));
        let events = events.len();
        let entry = Entry {
            id,
            next,
            committed,
            plan,
            index,
            overflow_done,
            failures,
            touched,
            events,
            parsed,
            decided,
        };
        Some((entry, transition))
    }

    /// When the store must remind this node of the execution, if the next thing to do is beyond the sleep horizon.
    pub(super) fn sleeps_until(&self, committed: &Committed) -> Option<Timestamp> {
        if !committed.is_active {
            return None;
        }
        let earliest = committed.first_scheduled.into_iter().chain(committed.wake).min()?;
        (earliest > self.now + self.options.sleep_horizon).then_some(earliest)
    }

    /// The reminder to write to the store for an execution. `None` if the store has it already, or if
    /// something else must be written first.
    fn remind(&mut self, id: ExecutionId) -> Option<Reminder> {
        let slot = self.slots.get(id)?;
        let committed = slot.committed()?;
        if !slot.owned || slot.in_flight || slot.doubted || !slot.inbox.is_empty() {
            return None;
        }
        let wake_at = self.sleeps_until(committed);
        if wake_at == slot.wake_at {
            return None;
        }
        self.slots.get_mut(id)?.in_flight = true;
        Some(Reminder { execution: id, wake_at })
    }

    fn nothing_decided(
        &mut self,
        id: ExecutionId,
        decided: Vec<Judged<R>>,
        state: Option<Box<Execution>>,
    ) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.known.return_state(state);
            for attempt in slot.attempts.iter_mut() {
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
            let slot = self.slots.get(id);
            let answer = match (verdict, slot.and_then(Slot::state)) {
                (Ok(()), Some(state)) => Ok(answer(state, &pending.command, false, None)),
                (Ok(()), None) => Err(Rejection::NoSuchExecution.into()),
                (Err(rejection), _) => Err(rejection.into()),
            };
            self.reply(reply, answer);
        }
        if self.slots.get(id).is_some_and(|slot| slot.known.is_new()) {
            // The start was rejected, so there is no execution.
            self.slots.remove(id);
            return;
        }
        self.touch_slot(id);
        self.settle_slot(id);
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
                    self.effects.reply(reply, answer);
                }
            }
        }
        entry
    }
}

/// The message of a panic.
fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message")
}
