//! Reading executions: the whole history if the node does not know it, otherwise only the later transitions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use recoup_core::command::{Command, Rejection};
use recoup_core::execution::Execution;
use recoup_core::failure_event::Subject;
use recoup_core::id::ExecutionId;
use recoup_core::plan::Plan;
use recoup_core::quarantine::QuarantineReason;
use recoup_store::{NodeId, Wanted};

use super::attempt::is_bare_start;
use super::io::{Damage, Loaded, Output, Read, Reading, Refusal, Unusable};
use super::slot::Slot;
use super::{Node, Timer};
use crate::load::follow;

impl<R> Slot<R> {
    /// The sequence up to which the history need not be read. A state that is away with a transition either
    /// comes back, or the whole history is read.
    fn known_before_read(&self) -> u64 {
        let comes_back = self.in_flight || self.state().is_some();
        self.committed().filter(|_| comes_back).map_or(0, |committed| committed.sequence)
    }

    /// The state after the transitions that were read, with its plan. `None` if they do not follow the state
    /// in memory, which is consumed in that case.
    fn read_on(&mut self, read: Read) -> Option<(Box<Execution>, Arc<Plan>)> {
        let transitions = match read {
            Read::Whole(state, plan) => return Some((state, plan)),
            Read::After { transitions, .. } => transitions,
        };
        let (state, plan) = (self.known.take_state()?, self.known.plan()?.clone());
        Some((follow(state, &plan, &transitions)?, plan))
    }
}

impl<R> Node<R> {
    pub(super) fn load_wanted(&mut self) {
        let Some(node) = self.node_id() else {
            return;
        };
        while let Some(ids) = self.loader.ask(self.monotonic) {
            let known = |id| self.slots.get(id).map_or(0, Slot::known_before_read);
            let wanted = ids.into_iter().map(|id| Wanted { execution: id, after: known(id) });
            self.effects.push(Output::Load(node, wanted.collect()));
        }
    }

    pub(super) fn loaded(
        &mut self,
        node: NodeId,
        asked: &[Wanted],
        loaded: Result<Reading, String>,
    ) {
        let asked: Vec<_> = asked.iter().map(|one| one.execution).collect();
        if self.node_id() != Some(node) {
            // The answer belongs to an earlier life. Only a read of this life is ordered before this life's writes.
            return self.loader.failed(&asked);
        }
        let Reading { found, rest } = match loaded {
            Ok(reading) => reading,
            Err(reason) => {
                tracing::warn!(%reason, "executions could not be loaded, trying again");
                self.loader.failed(&asked);
                return self.set_timer(self.options.commit_retry, Timer::Load);
            }
        };
        let mut found: BTreeMap<_, _> =
            found.into_iter().map(|loaded| (loaded.execution, loaded)).collect();
        let rest: BTreeSet<_> = rest.into_iter().collect();
        for id in asked {
            self.loader.arrived(id);
            if rest.contains(&id) {
                self.loader.want(id);
                continue;
            }
            match found.remove(&id) {
                Some(one) => self.read(one),
                None => self.absent(id),
            }
        }
        self.loader.answered(self.monotonic);
    }

    fn read(&mut self, loaded: Loaded) {
        let id = loaded.execution;
        let mine = loaded.owner.is_some() && loaded.owner == self.node_id();
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        let is_settling = slot.in_flight || slot.known.is_quarantined();
        let is_rest = matches!(loaded.state, Ok(Read::After { .. }));
        if is_rest && !is_settling && slot.state().is_none() {
            // The state that these transitions follow has been dropped in the meantime.
            return self.loader.want(id);
        }
        // A read that was asked for before the state was doubted may be just as old, so the doubt stays.
        slot.doubted &= self.loader.is_wanted(id);
        if is_settling {
            // The transition that is under way is settled first. Another node may have continued from it by
            // then, and this read may be the only sign of that.
            slot.doubted |= slot.in_flight;
            return;
        }
        let mut parted = Vec::new();
        match loaded.state {
            Ok(read) => {
                if let Read::Whole(state, _) = &read
                    && let Some(detail) = slot.panicked.take()
                {
                    let (namespace, subject) = (state.namespace.clone(), Subject::of(state));
                    let reason = QuarantineReason::DecisionPanicked;
                    return self.quarantine(id, Damage { reason, detail, namespace, subject });
                }
                let known = slot.committed().map(|committed| committed.sequence);
                let sequence = read.sequence();
                if known.is_none_or(|known| sequence >= known) {
                    let Some((state, plan)) = slot.read_on(read) else {
                        return self.read_again(id);
                    };
                    let has_moved = known.is_some_and(|known| sequence > known);
                    slot.known.read(state, plan.clone());
                    slot.current_at = self.monotonic;
                    slot.quarantine = loaded.quarantine;
                    let grace = self.options.reconnect_grace;
                    let (until, soon) = (self.monotonic + grace, self.now + grace);
                    if mine && has_moved {
                        // Another node has been the owner in the meantime.
                        for attempt in slot.attempts.iter_mut() {
                            parted.extend(attempt.doubt(&plan, until, soon));
                        }
                    } else if mine && !slot.owned {
                        slot.attempts.iter_mut().for_each(|attempt| attempt.wait_until(until));
                    }
                    if mine && (has_moved || !slot.owned) {
                        slot.taken_over_at = Some(self.monotonic);
                    }
                    slot.owned = mine;
                    slot.index = None;
                    slot.format = loaded.format;
                    slot.wake_at = loaded.wake_at.filter(|_| mine);
                    let known = &slot.known;
                    slot.inbox.retain(|one| match &one.command {
                        _ if !one.is_own() => true,
                        // Not for an attempt that its owner has handed out again since.
                        Command::RecordStart { task, .. } if is_bare_start(&one.command) => {
                            mine || !known.has_started(task)
                        }
                        Command::RecordStart { .. } => true,
                        Command::WithdrawTask { .. } | Command::TimeOutTask { .. } => {
                            mine && !has_moved
                        }
                        // Timeouts and losses are for the owner to judge.
                        _ => mine,
                    });
                    for place in &parted {
                        self.leave(place);
                    }
                    self.sync_attempts(id, false);
                    self.void_releases(id);
                    self.speak_for_workers(id);
                }
            }
            Err(Unusable::Damaged(damage)) => return self.quarantine(id, *damage),
            Err(Unusable::Quarantined(quarantine)) => {
                return self.refuse_quarantined(id, quarantine);
            }
            Err(Unusable::Newer(reason)) => {
                tracing::warn!(execution = %id, %reason, "only a newer node can read an execution");
                self.refuse_all(id, &Refusal::TooNew(reason));
                return self.drop_slot(id);
            }
        }
        self.touch_slot(id);
        self.serve_waiters(id);
        self.settle_slot(id);
    }

    fn absent(&mut self, id: ExecutionId) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        if slot.in_flight || slot.known.is_new() {
            return;
        }
        let claimed = std::mem::take(&mut slot.claimed);
        self.effects.withdraw(claimed.into_keys().collect());
        self.refuse_all(id, &Refusal::Rejected(Rejection::NoSuchExecution));
        self.drop_slot(id);
    }
}
