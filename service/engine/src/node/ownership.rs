//! The lease, and the coordination of several nodes on one store. Ownership is for speed: if anything goes
//! wrong here, it costs time, but the lock on the history keeps the data correct.

use std::collections::BTreeSet;
use std::time::Duration;

use recoup_core::command::TaskId;
use recoup_core::id::ExecutionId;
use recoup_store::{Due, Error, Head, Lease, NodeId, OverflowTask, TaskKey};

use super::attempt::{Attempt, DispatchState, Handed};
use super::io::{Adopted, Output};
use super::life::Renewed;
use super::sessions::PARTED_AFTER;
use super::slot::{Row, Slot};
use super::{Node, Timer};
#[cfg(feature = "mutants")]
use crate::options::Mutant;

/// How many executions are adopted, found due, or asked about, and how many tasks are claimed, in one call.
const ADOPT_MAX: usize = 500;
const DUE_MAX: usize = 1000;
const CLAIM_MAX: usize = 256;
const HEADS_MAX: usize = 2000;
/// How many held attempts one round of head queries checks.
const HELD_MAX: usize = 1000;
/// When this many executions are waiting to be read, no more due executions are loaded.
const DUE_TO_LOAD_MAX: usize = 4096;

impl<R> Node<R> {
    pub(super) fn join(&mut self) {
        self.life.asks(self.monotonic);
        self.effects.push(Output::Join);
    }

    pub(super) fn joined(&mut self, joined: recoup_store::Result<Lease>) {
        let lease = match joined {
            Ok(lease) => lease,
            Err(error) => {
                tracing::warn!(%error, "could not acquire a lease yet");
                return self.set_timer(self.options.commit_retry, Timer::Join);
            }
        };
        self.life.joined(lease, self.options.lease_ttl);
        self.set_timer(self.options.lease_ttl / 3, Timer::Renew);
        self.set_timer(Duration::ZERO, Timer::Adopt);
        self.set_timer(Duration::ZERO, Timer::Publish);
        self.set_timer(self.options.head_interval, Timer::Heads);
        self.set_timer(self.options.sleep_horizon / 4, Timer::Due);
        // The attempts that workers of this node hold stay with them, whichever node owns the executions now.
        for task in self.sessions.held().map(|(task, _)| task.clone()).collect::<Vec<_>>() {
            self.hold(&task);
        }
        // If the timer for claims expired between two lives, it was not set again.
        if !self.workers.is_empty() && self.trade.begin_claiming() {
            self.set_timer(Duration::ZERO, Timer::Claim);
        }
        // The store settles the calls that were under way when the last life ended.
        self.commit_again();
        self.start_keyed_again();
    }

    pub(super) fn renew(&mut self) {
        if let Some(node) = self.node_id() {
            self.life.asks(self.monotonic);
            self.effects.push(Output::Renew { node, reached: self.now });
        }
    }

    pub(super) fn renewed(&mut self, node: NodeId, renewed: recoup_store::Result<Lease>) {
        if self.node_id() != Some(node) {
            // The answer belongs to an earlier life and says nothing about this one.
            return;
        }
        let (ttl, now) = (self.options.lease_ttl, self.monotonic);
        match renewed.map(|lease| self.life.renewed(lease, ttl, now)) {
            Ok(Renewed::Held { was_out }) => {
                self.set_timer(ttl / 3, Timer::Renew);
                if was_out {
                    self.dispatch_all();
                }
            }
            Ok(Renewed::OtherTimeline) => {
                tracing::warn!("the database's timeline has changed: everything is read again");
                self.lose_life();
            }
            Err(Error::LeaseLost) => self.lose_life(),
            Err(error) => {
                tracing::warn!(%error, "the lease could not be renewed");
                self.life.not_renewed(now);
                self.set_timer(ttl / 10, Timer::Renew);
            }
        }
    }

    /// The lease is lost. Other nodes may own the executions that this node has in memory, so nothing in
    /// memory is believed any more. Commands stay in their slots and are decided again once the executions
    /// have been read.
    pub(super) fn lose_life(&mut self) {
        if !self.life.lose(self.monotonic) {
            return;
        }
        tracing::warn!("the lease was lost; beginning a new life");
        self.join();
        let wanted = |timer: &Timer| {
            matches!(
                timer,
                Timer::Session(_) | Timer::Execution(_) | Timer::Dispatch | Timer::Patience
            )
        };
        self.timers.retain(wanted);
        self.trade.end_life();
        // Tasks that this life has handed out and that have not left yet stay here.
        for (worker, tasks) in self.effects.take_all_back() {
            self.workers.add_credit(worker, u32::try_from(tasks.len()).unwrap_or(u32::MAX));
            for handed in tasks {
                self.sessions.let_go(&handed.id);
                if let Some(attempt) = self.attempt_mut(&handed.id) {
                    attempt.dispatch = DispatchState::Scheduled;
                }
            }
        }
        #[cfg(feature = "mutants")]
        if self.options.has(Mutant::NoReloadAfterLostLease) {
            return;
        }
        // Quarantines and reminders that have not been sent are dropped. Reading the executions shows them again.
        self.committer.end_life();
        self.due_after = None;
        for id in self.slots.ids() {
            if self.committer.is_quarantining(id) {
                // The store settles the quarantine in the new life.
                continue;
            }
            let starts =
                self.slots.get(id).is_some_and(|slot| slot.known.is_new() && !slot.in_flight);
            if starts {
                // The start has never been sent. The execution starts in the new life.
                continue;
            }
            self.forget(id);
            self.touch_slot(id);
            self.settle_slot(id);
        }
        // The workers are still connected, so the node will look for tasks that other nodes have left for them.
        if !self.workers.is_empty() && self.trade.begin_claiming() {
            self.set_timer(self.options.claim_interval, Timer::Claim);
        }
    }

    pub(super) fn adopt(&mut self) {
        let Some(node) = self.node_id() else {
            return;
        };
        let room = self.room();
        if room == 0 || !self.is_reachable() {
            return self.set_timer(self.options.adopt_interval, Timer::Adopt);
        }
        let (silent, limit) = (self.watched.silent(self.monotonic), room.min(ADOPT_MAX));
        self.effects.push(Output::Adopt { node, silent, limit });
    }

    pub(super) fn adopted(&mut self, node: NodeId, adopted: recoup_store::Result<Adopted>) {
        // The answer belongs to an earlier life. This life has rounds of its own, and adopts what the earlier
        // one got.
        if self.node_id() != Some(node) {
            return;
        }
        let mut pause = self.options.adopt_interval;
        match adopted {
            Ok(Adopted { leases, executions }) => {
                self.watched.see(leases, self.monotonic);
                if executions.len() >= ADOPT_MAX {
                    pause = Duration::ZERO;
                }
                for id in executions {
                    self.slots.open(id);
                    self.loader.want(id);
                }
            }
            Err(Error::LeaseLost) => return self.lose_life(),
            Err(error) => tracing::warn!(%error, "could not look for executions to adopt"),
        }
        self.set_timer(pause, Timer::Adopt);
    }

    /// Asks the store for the head of each execution that other nodes may have changed.
    pub(super) fn ask_heads(&mut self) {
        let Some(node) = self.node_id() else {
            return;
        };
        let silent =
            self.sessions.all().filter(|own| own.silence(self.monotonic) > own.parted_after());
        for task in silent.flat_map(|session| &session.held) {
            self.slots.doubt(task.execution);
        }
        let round = self.slots.next_doubtful(HEADS_MAX);
        let mut ids = Vec::with_capacity(round.len());
        for id in round {
            let slot = self.slots.get(id);
            match slot.map(|slot| (slot, self.may_have_moved(slot))) {
                Some((slot, true)) if !slot.in_flight && slot.state().is_some() => ids.push(id),
                Some((slot, moved)) if moved || slot.is_doubtful() => {}
                _ => {
                    self.slots.trust(id);
                }
            }
        }
        ids.extend(self.owned_and_held());
        if ids.is_empty() {
            return self.set_timer(self.options.head_interval, Timer::Heads);
        }
        ids.sort_unstable();
        ids.dedup();
        self.heads_asked_at = self.monotonic;
        self.effects.push(Output::Heads(node, ids));
    }

    /// Whether another node may have become the owner unnoticed, so long ago that it may already be handing
    /// the waiting attempts to its own workers. Executions whose tasks wait in a queue are not asked about,
    /// because there may be very many.
    pub(super) fn may_be_given_elsewhere(&self, slot: &Slot<R>) -> bool {
        !self.trade.is_alone()
            && self.monotonic.since(slot.current_at) > self.options.reconnect_grace / 2
    }

    /// Whether another node may have changed an execution by now. A worker that this node has just heard from
    /// is still connected to this node.
    fn may_have_moved(&self, slot: &Slot<R>) -> bool {
        let moved = |attempt: &Attempt| match &attempt.dispatch {
            DispatchState::Overflowed => true,
            DispatchState::Handed(Handed { session: None, began, .. }) => {
                self.monotonic.since(*began) > PARTED_AFTER
            }
            DispatchState::Handed(Handed { session: Some(key), .. }) => {
                let session = self.sessions.get(key);
                session
                    .is_none_or(|session| session.silence(self.monotonic) > session.parted_after())
            }
            _ => false,
        };
        slot.is_foreign() || slot.attempts.iter().any(moved)
    }

    /// The next few executions of attempts that workers of this node have held for a while. If a command was
    /// sent to another node, that node became the owner, and it gives the attempt to a different worker
    /// unless the attempt is reported within the grace period. So each attempt is asked about some four times
    /// within that period, which is that of the new owner: see [`Options::record_start_after`].
    fn owned_and_held(&mut self) -> Vec<ExecutionId> {
        let pause = (self.options.reconnect_grace / 4).min(self.options.record_start_after);
        let interval = self.options.head_interval;
        let round = self.sessions.next_held(pause, interval, HELD_MAX, self.monotonic);
        let lasts = |task: &&TaskId| {
            let slot = self.slots.get(task.execution);
            slot.filter(|slot| slot.owned && !slot.in_flight).is_some_and(|slot| {
                matches!(slot.attempt(task).map(|own| &own.dispatch), Some(DispatchState::Handed(own)) if own.is_recorded())
            })
        };
        round.iter().filter(lasts).map(|task| task.execution).collect()
    }

    pub(super) fn heads(&mut self, node: NodeId, heads: recoup_store::Result<Vec<Head>>) {
        if self.node_id() != Some(node) {
            return;
        }
        match heads {
            Ok(heads) => {
                for head in heads {
                    let Some(slot) = self.slots.get_mut(head.execution) else {
                        continue;
                    };
                    let behind =
                        slot.committed().is_some_and(|known| known.sequence < head.sequence);
                    if !behind && slot.state().is_some() {
                        slot.current_at = slot.current_at.max(self.heads_asked_at);
                    }
                    if (behind || head.quarantined) && !slot.in_flight {
                        self.loader.want(head.execution);
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "could not read how far executions have come"),
        }
        self.set_timer(self.options.head_interval, Timer::Heads);
    }

    pub(super) fn ask_due(&mut self) {
        if let Some(node) = self.node_id() {
            let until = self.now + self.options.sleep_horizon / 2;
            self.effects.push(Output::Due(node, until, self.due_after, DUE_MAX));
        }
    }

    pub(super) fn due(&mut self, node: NodeId, due: recoup_store::Result<Vec<Due>>) {
        if self.node_id() != Some(node) {
            return;
        }
        let mut pause = self.options.sleep_horizon / 4;
        match due {
            Ok(page) => {
                let is_last = page.len() < DUE_MAX;
                if !is_last {
                    pause = std::time::Duration::ZERO;
                }
                for one in page {
                    let has_room = self.room() > 0 && self.loader.wanted() < DUE_TO_LOAD_MAX;
                    match self.slots.get_mut(one.execution) {
                        None if !has_room => {
                            // The search continues from here once some executions have left memory.
                            return self.set_timer(self.options.adopt_interval, Timer::Due);
                        }
                        None => {
                            self.slots.open(one.execution);
                            self.loader.want(one.execution);
                        }
                        // The execution is in memory already. Once its reminder in the store is up to date, it
                        // is not listed as due again.
                        Some(slot) if slot.owned && !slot.in_flight => {
                            slot.wake_at = Some(one.wake_at);
                            self.committer.remind(one.execution);
                        }
                        Some(_) => {}
                    }
                    self.due_after = Some(one);
                }
                if is_last {
                    self.due_after = None;
                }
            }
            Err(error) => tracing::warn!(%error, "could not read which executions are due"),
        }
        self.set_timer(pause, Timer::Due);
    }

    /// Looks into the overflow for tasks that workers of this node would take.
    pub(super) fn claim(&mut self) {
        let Some(node) = self.node_id().filter(|_| !self.workers.is_empty()) else {
            self.trade.end_claiming();
            return;
        };
        let idle = self.workers.idle();
        if idle.is_empty() {
            return self.set_timer(
                self.exchange_interval().min(self.options.claim_interval),
                Timer::Claim,
            );
        }
        let credit: usize = idle.iter().map(|idle| idle.credit as usize).sum();
        let (limit, lease) = (credit.min(CLAIM_MAX), self.options.claim_lease);
        let now = self.now;
        self.effects.push(Output::Claim { node, idle, limit, lease, now });
    }

    pub(super) fn claimed(
        &mut self,
        node: NodeId,
        claimed: recoup_store::Result<Vec<OverflowTask>>,
    ) {
        let is_ours = self.node_id() == Some(node);
        match claimed {
            // Tasks that an earlier life has claimed are taken as well, because other nodes must wait until
            // the claim expires.
            Ok(tasks) => {
                if !tasks.is_empty() {
                    self.trade.traded(self.monotonic);
                }
                for overflow in tasks {
                    self.take_claimed(&overflow);
                }
            }
            Err(_) if !is_ours => {}
            Err(Error::LeaseLost) => return self.lose_life(),
            Err(error) => tracing::warn!(%error, "could not claim tasks from the overflow"),
        }
        if is_ours {
            self.set_timer(self.exchange_interval(), Timer::Claim);
        }
    }

    fn take_claimed(&mut self, overflow: &OverflowTask) {
        let id = overflow.task.execution;
        let key = overflow.key();
        let once = self.is_at_most_once(&overflow.task);
        let slot = self.slots.open(id);
        let scheduled_in = overflow.task.sequence;
        // Another node may have changed the execution since this node owned it.
        let current = slot.committed().is_some_and(|known| known.sequence >= scheduled_in);
        if slot.owned && current {
            let until = self.monotonic + self.options.claim_lease;
            slot.overflow.insert(key, Row::Claimed { until, scheduled_in });
            match slot.attempt_mut(&overflow.task) {
                // The history names a worker without a session, but a previous owner has put the task into
                // the overflow since, because no worker had it any more.
                Some(attempt)
                    if attempt.dispatch.is_for_any_node() && !(once && attempt.is_handed()) =>
                {
                    // No other worker can have the task while the claim lasts, but the start is still recorded first.
                    attempt.claimed = true;
                    self.enqueue(&overflow.task);
                }
                // A previous owner has put the task into the overflow without knowing that it had lost the execution.
                Some(attempt) if attempt.is_handed() => self.record_again(&overflow.task),
                Some(attempt) => attempt.claimed = true,
                None => {
                    let key = overflow.key();
                    if let Some(slot) = self.slots.get_mut(id) {
                        slot.overflow.remove(&key);
                    }
                    self.effects.withdraw(vec![key]);
                }
            }
            return;
        }
        slot.claimed.insert(key, scheduled_in);
        if !slot.in_flight {
            self.loader.want(id);
        }
    }

    /// Tasks that could not be written to the overflow stay here, except those whose execution another node
    /// owns: that node knows more about them.
    pub(super) fn overflowed(
        &mut self,
        node: NodeId,
        tasks: &[OverflowTask],
        result: recoup_store::Result<Vec<TaskKey>>,
    ) {
        let error = match result {
            Ok(left_out) if left_out.is_empty() => return,
            Ok(left_out) => {
                let left_out: BTreeSet<TaskKey> = left_out.into_iter().collect();
                for overflow in tasks.iter().filter(|task| left_out.contains(&task.key())) {
                    self.belongs_to_another(&overflow.task);
                }
                return;
            }
            Err(error) => error,
        };
        tracing::warn!(%error, "could not move tasks to the overflow");
        for overflow in tasks {
            let waits = self
                .attempt_mut(&overflow.task)
                .is_some_and(|attempt| matches!(attempt.dispatch, DispatchState::Overflowed));
            if waits {
                self.doubt_overflow(&overflow.task);
                self.enqueue(&overflow.task);
            }
        }
        if matches!(error, Error::LeaseLost) && self.node_id() == Some(node) {
            self.lose_life();
        }
    }

    /// Another node has become the owner of the execution, and may have handed the task out.
    fn belongs_to_another(&mut self, task: &TaskId) {
        let until = self.monotonic + self.options.reconnect_grace;
        if let Some(attempt) = self.attempt_mut(task)
            && matches!(attempt.dispatch, DispatchState::Overflowed)
        {
            attempt.dispatch = DispatchState::Grace { until };
        }
        // A transition that is under way will lose against the other node's, and the execution is read then.
        if self.slots.get(task.execution).is_some_and(|slot| !slot.in_flight) {
            self.loader.want(task.execution);
        }
        self.settle_slot(task.execution);
    }
}
