//! Settles a batch by the store's answer to it.

use recoup_core::command::{Command, StartBasis};
use recoup_core::failure_event::Subject;
use recoup_core::id::ExecutionId;
use recoup_core::quarantine::QuarantineReason;
use recoup_core::time::Timestamp;
#[cfg(feature = "mutants")]
use recoup_store::Error;
use recoup_store::{NodeId, Reminder, Settled};

use super::attempt::{Attempt, is_bare_start};
use super::batch::{Entry, answer};
use super::committer::{Answered, Part};
use super::io::{Damage, Output, Refusal};
use super::slot::{Row, Slot, Waiter};
use super::{Node, Timer};
#[cfg(feature = "mutants")]
use crate::options::Mutant;

impl<R> Node<R> {
    fn reminded(&mut self, reminder: Reminder) {
        let Reminder { execution: id, wake_at } = reminder;
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        slot.in_flight = false;
        if slot.known.is_unread() {
            // The lease was lost in the meantime.
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

    pub(super) fn committed(&mut self, node: NodeId, settled: recoup_store::Result<Vec<Settled>>) {
        let (is_past, now) = (self.node_id() != Some(node), self.monotonic);
        #[cfg(feature = "mutants")]
        let settled = match settled {
            Err(Error::OutcomeUnknown(_)) if self.options.has(Mutant::UnknownOutcomeNotSettled) => {
                Ok(vec![Settled::Won; self.committer.sent()])
            }
            settled => settled,
        };
        let retry = self.options.commit_retry;
        match self.committer.answered(settled, now, retry) {
            Answered::Nothing => return,
            Answered::LeaseLost if is_past => return self.commit_again(),
            Answered::LeaseLost => return self.lose_life(),
            Answered::Again(error, pause) => {
                tracing::warn!(%error, ?pause, "a commit is sent again");
                return self.set_timer(pause, Timer::Commit);
            }
            Answered::Settled { part: batch, entries, settled } => {
                self.committer.keep_settled(Part { batch, entries, settled });
            }
        }
        // The next batch is sent before this one is settled here, because settling takes about as long as the
        // store takes.
        match self.committer.is_committing() {
            true => self.commit_again(),
            false => self.commit_draft(),
        }
    }

    /// Settles what the store has answered. This comes before anything else that happens to the node.
    pub(super) fn settle_committed(&mut self) {
        let Some(Part { batch, entries, settled }) = self.committer.take_settled() else {
            return;
        };
        let fed =
            batch.transitions.iter().zip(&settled).any(|(transition, settled)| {
                !transition.feed.is_empty() && *settled == Settled::Won
            });
        for (entry, settled) in entries.into_iter().zip(settled) {
            match settled {
                Settled::Won => self.won(entry),
                // A quarantine is found when the execution is read again, just as another node's transition is.
                Settled::Lost | Settled::Quarantined => self.lost(entry),
                Settled::RequestTaken { execution, digest, started } => {
                    self.request_taken(entry, execution, digest, started);
                }
                Settled::Refused(reason) => self.refused(entry, reason),
            }
        }
        for new in &batch.quarantined {
            self.refuse_quarantined(new.execution, new.quarantine.clone());
        }
        for reminder in &batch.reminders {
            self.reminded(*reminder);
        }
        if fed || !batch.feed.is_empty() || !batch.quarantined.is_empty() {
            self.effects.push(Output::FeedWritten);
        }
    }

    pub(super) fn commit_again(&mut self) {
        let Some(node) = self.node_id() else {
            return;
        };
        if let Some(batch) = self.committer.again() {
            self.effects.push(Output::Commit(node, batch));
        }
    }

    pub(super) fn won(&mut self, entry: Entry<R>) {
        let Entry { id, next, committed, plan, index, overflow_done, decided, .. } = entry;
        let (failures, touched) = (entry.failures, entry.touched);
        let grace = self.options.reconnect_grace;
        let (until, soon) = (self.monotonic + grace, self.now + grace);
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        slot.in_flight = false;
        let has_ended = next.state.is_ended();
        let mut unkept = None;
        if slot.known.is_unread() {
            // The lease was lost in the meantime, and other nodes may have written to the execution since.
            self.loader.want(id);
            unkept = Some(next);
        } else {
            slot.known.commit(plan, committed, next);
            slot.current_at = self.monotonic;
            // All attempts are judged if some were claimed, because any of them may be affected, and if the
            // execution becomes this node's only with this commit.
            let touched = touched.filter(|_| slot.owned && slot.claimed.is_empty());
            if let Some(index) = index {
                if !slot.owned {
                    // While another node owned the execution, the workers of this node's attempts had no
                    // reason to report here.
                    let attempts = slot.attempts.iter_mut();
                    attempts.for_each(|attempt| attempt.wait_for_last_owner(until, soon));
                    slot.taken_over_at = Some(self.monotonic);
                }
                slot.owned = true;
                slot.wake_at = index.wake_at;
                slot.index = Some(index);
            }
            for key in &overflow_done {
                slot.overflow.remove(key);
            }
            let is_doubted = slot.doubted;
            match touched {
                Some(touched) => self.sync_touched(id, &touched),
                None => self.sync_attempts(id, true),
            }
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
            let kept = || self.slots.get(id).and_then(Slot::state);
            match (verdict, pending.until, unkept.as_deref().or_else(kept)) {
                (Ok(()), Some(until), _) if !has_ended => {
                    let until = Some(self.end_of_wait(until));
                    let waiter =
                        Waiter { since: self.monotonic, until, reply, is_own, snapshot: false };
                    if let Some(slot) = self.slots.get_mut(id) {
                        slot.waiters.push(waiter);
                    }
                }
                (Ok(()), _, Some(state)) => {
                    let decision = failures.decision(&pending.command);
                    let answer = answer(state, &pending.command, is_own, decision);
                    self.reply(reply, Ok(answer));
                }
                // Cannot happen: the state came back with the commit, and nothing has been decided since.
                (Ok(()), _, None) => {}
                (Err(rejection), ..) => self.reply(reply, Err(rejection.into())),
            }
        }
        self.serve_waiters(id);
        self.touch_slot(id);
        self.settle_slot(id);
    }

    /// Another node wrote first. This node's decision is void, and the commands are decided again.
    fn lost(&mut self, entry: Entry<R>) {
        let Some(slot) = self.slots.get_mut(entry.id) else {
            return;
        };
        slot.in_flight = false;
        let pending = entry.decided.into_iter().map(|(pending, _)| pending);
        slot.inbox = pending.chain(std::mem::take(&mut slot.inbox)).collect();
        self.forget(entry.id);
        self.touch_slot(entry.id);
    }

    /// Drops what this node believes about an execution. The commands in its slot stay.
    pub(super) fn forget(&mut self, id: ExecutionId) {
        let now = self.monotonic;
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        let plan = slot.known.plan().cloned();
        slot.known.forget();
        slot.owned = false;
        slot.index = None;
        slot.wake_at = None;
        // Claimed tasks stay claimed. Once the execution has been read, it turns out whether a worker has them.
        let rows = std::mem::take(&mut slot.overflow).into_iter();
        slot.claimed.extend(rows.filter_map(|(key, row)| match row {
            Row::Claimed { until, scheduled_in } if until > now => Some((key, scheduled_in)),
            Row::Claimed { .. } | Row::Free => None,
        }));
        // A hand-over that was under way is cancelled. Attempts that workers hold stay with them: workers
        // with a session report them, and for the others their start is submitted below. Commands to withdraw
        // or time out an attempt are dropped, because both are judged again once the execution has been read.
        let sessions = &self.sessions;
        slot.inbox.retain(|one| match &one.command {
            Command::RecordStart { basis: StartBasis::HandOver { .. }, .. } => false,
            // A start that had to be submitted again stays until it is decided, however often it is lost.
            Command::RecordStart { task, .. } => {
                !one.is_own() || sessions.is_held(task) || is_bare_start(&one.command)
            }
            Command::WithdrawTask { .. } | Command::TimeOutTask { .. } => false,
            _ => true,
        });
        let attempts = std::mem::take(&mut slot.attempts);
        let mut starts: Vec<_> = attempts.iter().filter_map(Attempt::unrecorded_start).collect();
        let repeatable = attempts.iter().filter(|attempt| {
            let path = &attempt.id.path;
            plan.as_ref().is_some_and(|plan| !plan.is_at_most_once(path))
        });
        starts.extend(repeatable.filter_map(|attempt| attempt.unsent_start(self.now)));
        for attempt in attempts.iter() {
            self.unqueue(attempt);
        }
        for start in starts {
            let is_there = |task| self.slots.get(id).is_some_and(|slot| slot.acts_on(task));
            if start.task().is_some_and(is_there) {
                continue;
            }
            self.submit(id, start, None, None);
        }
    }

    pub(super) fn request_taken(
        &mut self,
        entry: Entry<R>,
        execution: ExecutionId,
        digest: u64,
        started: bool,
    ) {
        self.slots.remove(entry.id);
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

    /// Answers a start with an execution that exists already.
    pub(super) fn use_existing(
        &mut self,
        execution: ExecutionId,
        until: Option<Timestamp>,
        reply: R,
        is_own: bool,
    ) {
        // If the caller does not want to wait, it is answered as soon as the execution has been read.
        let until = Some(until.unwrap_or(self.now));
        self.add_waiter(
            execution,
            Waiter { since: self.monotonic, until, reply, is_own, snapshot: false },
        );
    }

    pub(super) fn refused(&mut self, entry: Entry<R>, reason: String) {
        let Some(slot) = self.slots.get_mut(entry.id) else {
            return;
        };
        slot.in_flight = false;
        if entry.decided.len() > 1 && !slot.known.is_new() {
            // One of the commands contains data that the store refuses. The others must not fail because of it.
            tracing::warn!(execution = %entry.id, %reason, "a refused transition is decided in parts");
            slot.singly = entry.decided.len();
            let pending = entry.decided.into_iter().map(|(pending, _)| pending);
            slot.inbox = pending.chain(std::mem::take(&mut slot.inbox)).collect();
            return self.read_again(entry.id);
        }
        tracing::error!(execution = %entry.id, %reason, "the store refused a transition");
        let own = entry.decided.iter().any(|(pending, _)| pending.is_own());
        for attempt in slot.attempts.iter_mut() {
            attempt.acting = false;
            // A refused result does not count, so the attempt's clocks run again.
            attempt.reported = false;
        }
        if slot.known.is_new() {
            slot.known.forget();
        }
        let replies = entry.decided.into_iter().filter_map(|(pending, _)| pending.reply);
        for reply in replies.collect::<Vec<_>>() {
            self.reply(reply, Err(Refusal::Refused(reason.clone())));
        }
        let is_known = self.slots.get(entry.id).is_some_and(|slot| slot.known.is_resident());
        if is_known && own {
            // Otherwise the node would decide the same command again, and the store would refuse it, for ever.
            let state = &entry.next;
            let (namespace, subject) = (state.namespace.clone(), Subject::of(state));
            let (reason, detail) = (QuarantineReason::StoreRefused, reason);
            return self.quarantine(entry.id, Damage { reason, detail, namespace, subject });
        }
        self.read_again(entry.id);
        self.settle_slot(entry.id);
    }

    /// The state was changed by a transition that was not committed, so it is read again. What is known about
    /// the attempts stays.
    pub(super) fn read_again(&mut self, id: ExecutionId) {
        if let Some(slot) = self.slots.get_mut(id)
            && slot.known.is_resident()
        {
            slot.doubted = true;
            self.loader.want(id);
        }
        self.touch_slot(id);
    }
}
