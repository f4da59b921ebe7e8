//! Answers callers that have waited too long for a store that accepts no writes or answers no reads.
//!
//! | a caller has waited for longer than `commit_wait` | the answer |
//! | --- | --- |
//! | for a change that is under way to the store | [`Refusal::OutcomeUnknown`]; the change stays under way |
//! | for a change that has not been decided yet | [`Refusal::Unavailable`]; the change is dropped |
//! | for an execution that could not be read | [`Refusal::Unavailable`] |
//!
//! Callers are answered in this way only while the store is the cause of the delay.

use crate::clock::Tick;
use recoup_core::command::Command;
use recoup_core::id::ExecutionId;

use super::io::Refusal;
use super::slot::Pending;
use super::{Node, Timer};

impl<R> Node<R> {
    /// Whether the store accepts what this node writes, as far as the node can know: false once a write has
    /// waited for `commit_wait`.
    pub fn is_writing(&self) -> bool {
        !self.is_overdue(self.unwritten_since())
    }

    /// When the oldest write began that the store has not confirmed.
    fn unwritten_since(&self) -> Option<Tick> {
        self.committer.unsettled_since().into_iter().chain(self.life.ungranted_since()).min()
    }

    fn is_overdue(&self, since: Option<Tick>) -> bool {
        since.is_some_and(|since| since + self.options.commit_wait <= self.monotonic)
    }

    pub(super) fn watch_patience(&mut self) {
        self.set_timer(self.options.commit_wait / 4, Timer::Patience);
    }

    pub(super) fn check_patience(&mut self) {
        self.watch_patience();
        if !self.is_overdue(self.unwritten_since()) && !self.is_overdue(self.loader.unread_since())
        {
            return;
        }
        let asked_before = self.monotonic - self.options.commit_wait;
        let under_way = self.committer.pending_mut();
        let impatient = under_way.filter(|pending| pending.since <= asked_before);
        let replies: Vec<R> = impatient.filter_map(Pending::take_reply).collect();
        for reply in replies {
            self.reply(reply, Err(Refusal::OutcomeUnknown));
        }
        let waiting = self.slots.iter().filter(|(_, slot)| {
            let commands = slot.inbox.iter().any(|one| one.is_impatient(asked_before));
            let reads = slot.waiters.iter().any(|waiter| waiter.since <= asked_before);
            commands || (reads && slot.state().is_none())
        });
        for id in waiting.map(|(id, _)| id).collect::<Vec<_>>() {
            self.turn_away(id, asked_before);
        }
    }

    /// Refuses the callers that wait in a slot and asked before a given time. Nothing was done for them.
    fn turn_away(&mut self, id: ExecutionId, asked_before: Tick) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        let mut replies = Vec::new();
        let mut kept = std::collections::VecDeque::new();
        for mut pending in std::mem::take(&mut slot.inbox) {
            if !pending.is_impatient(asked_before) {
                kept.push_back(pending);
                continue;
            }
            if let Command::CompleteTask { task, .. } | Command::FailTask { task, .. } =
                &pending.command
                && let Some(attempt) = slot.attempt_mut(task)
            {
                // The result has been dropped, so the clocks of the attempt run again.
                attempt.reported = false;
            }
            replies.extend(pending.reply.take());
        }
        slot.inbox = kept;
        if slot.state().is_none() {
            let (impatient, patient) = std::mem::take(&mut slot.waiters)
                .into_iter()
                .partition::<Vec<_>, _>(|waiter| waiter.since <= asked_before);
            slot.waiters = patient;
            replies.extend(impatient.into_iter().map(|waiter| waiter.reply));
        }
        let never_began = slot.known.is_new() && slot.inbox.is_empty() && !slot.in_flight;
        for reply in replies {
            self.reply(
                reply,
                Err(Refusal::Unavailable("it accepts no writes at present".to_owned())),
            );
        }
        if never_began {
            return self.drop_slot(id);
        }
        self.settle_slot(id);
    }
}
