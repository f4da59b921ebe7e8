//! How open attempts get to workers. Everything here follows from the states of the executions that this node owns.

use std::collections::BTreeMap;
use std::time::Duration;

use recoup_core::command::{AttemptTimeout, Command, TaskId};
use recoup_core::definition::Delivery;
use recoup_core::execution::Open;
use recoup_core::id::{ExecutionId, StepPath};
use recoup_store::{QueueName, TaskKey};

use super::attempt::{Attempt, DispatchState, key_of};
use super::io::{Notice, WorkerKey};
use super::reconcile::{Evidence, Reconciler, Then};
use super::slot::{Row, acts_on};
use super::{Node, Timer};
#[cfg(feature = "mutants")]
use crate::options::Mutant;

/// The result of bringing the attempts of an execution in line with its state.
#[derive(Default)]
struct Synced {
    /// Dispatch states that attempts have left.
    left: Vec<DispatchState>,
    /// Attempts that are no longer open.
    closed: Vec<Attempt>,
    follows: Vec<(TaskId, Then)>,
}

impl Synced {
    /// Returns an open attempt, placed where it is now. `known`: the attempt as this node knew it before.
    fn judge(
        &mut self,
        reconciler: &Reconciler<'_>,
        known: Option<Box<Attempt>>,
        open: &Open<'_>,
        task: TaskId,
        evidence: &Evidence<'_>,
    ) -> Box<Attempt> {
        let (attempt, then) = match known {
            Some(mut attempt) => {
                let (left, then) = reconciler.known(&mut attempt, open, evidence);
                self.left.extend(left);
                (attempt, then)
            }
            None => {
                let (attempt, then) = reconciler.unknown(open, evidence);
                (Box::new(attempt), then)
            }
        };
        if then != Then::Nothing {
            self.follows.push((task, then));
        }
        attempt
    }
}

impl<R> Node<R> {
    /// Brings the attempts of a slot in line with its state, and judges every open attempt. `committed`: this
    /// node has committed the state itself instead of reading it. After a commit this is needed if the node
    /// became the owner only with that commit, has claimed tasks of the execution, or cannot tell which
    /// attempts the transition touched.
    pub(super) fn sync_attempts(&mut self, id: ExecutionId, committed: bool) {
        let (now, grace) = (self.at(), self.options.reconnect_grace);
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        let Some((state, plan)) = slot.known.state_and_plan() else {
            return;
        };
        let mut known = std::mem::take(&mut slot.attempts);
        let reconciler = Reconciler { state, plan, committed, now, grace };
        let mut synced = Synced::default();
        for open in state.open_attempts() {
            let task = state.task_id(&open);
            let evidence = Evidence {
                holder: self.sessions.holder(&task),
                claimed: slot.claimed.contains_key(&key_of(&task)),
                acting: acts_on(&slot.inbox, &task),
            };
            let before = known.get(&task).is_some().then(|| known.remove(&task.path)).flatten();
            slot.attempts.insert(synced.judge(&reconciler, before, &open, task, &evidence));
        }
        synced.closed.extend(known.into_all());
        // The owner offers a claimed task as held by no worker, but a worker of this node holds it.
        let is_claimed = |task: &&TaskId| slot.claimed.contains_key(&key_of(task));
        let open_here = slot.attempts.iter().map(|attempt| &attempt.id);
        let open_here = open_here.filter(|task| self.sessions.is_held(task));
        let contradicted: Vec<_> = open_here.filter(is_claimed).cloned().collect();
        let claimed = std::mem::take(&mut slot.claimed);
        let attempts = &slot.attempts;
        let open = |key: &TaskKey| {
            attempts.of(&key.path).is_some_and(|attempt| attempt.id.attempt == key.attempt)
        };
        let (found, missing): (BTreeMap<_, _>, BTreeMap<_, _>) =
            claimed.into_iter().partition(|(key, _)| open(key));
        let until = now.tick + self.options.claim_lease;
        let claimed = |scheduled_in| Row::Claimed { until, scheduled_in };
        slot.overflow.extend(found.into_iter().map(|(key, within)| (key, claimed(within))));
        // A task that was scheduled after this state is not void: this node's state is out of date.
        let sequence = state.sequence;
        let (ahead, void): (BTreeMap<_, _>, BTreeMap<_, _>) =
            missing.into_iter().partition(|(_, scheduled_in)| *scheduled_in > sequence);
        if !ahead.is_empty() {
            slot.claimed = ahead;
            self.loader.want(id);
        }
        let owned = slot.owned;
        self.effects.withdraw(void.into_keys().collect());
        self.synced(id, synced, committed);
        for task in &contradicted {
            match owned {
                true => self.withdraw_row(task),
                false => self.hold(task),
            }
        }
        self.tell_cancelled(id);
    }

    /// A transition of this node's own is committed. `touched` names the steps and compensations of which the
    /// transition opened, closed or recorded attempts, in that order. All other attempts stay where they
    /// were.
    pub(super) fn sync_touched(&mut self, id: ExecutionId, touched: &[StepPath]) {
        let (now, grace) = (self.at(), self.options.reconnect_grace);
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        let Some((state, plan)) = slot.known.state_and_plan() else {
            return;
        };
        let before = touched.iter().filter(|path| slot.attempts.of(path).is_some()).count();
        let after = touched.iter().filter(|path| state.open_attempt_of(path).is_some()).count();
        if slot.attempts.len() - before + after != state.open_attempt_count() {
            // The attempts in memory differ from those in the committed state, so all of them are judged.
            return self.sync_attempts(id, true);
        }
        let reconciler = Reconciler { state, plan, committed: true, now, grace };
        let mut synced = Synced::default();
        for path in touched {
            let before = slot.attempts.remove(path);
            let Some(open) = state.open_attempt_of(path) else {
                synced.closed.extend(before.map(|attempt| *attempt));
                continue;
            };
            let task = state.task_id(&open);
            let (before, other) = match before {
                Some(before) if before.id == task => (Some(before), None),
                other => (None, other),
            };
            synced.closed.extend(other.map(|attempt| *attempt));
            let acting = acts_on(&slot.inbox, &task);
            let evidence = Evidence { holder: self.sessions.holder(&task), claimed: false, acting };
            slot.attempts.insert(synced.judge(&reconciler, before, &open, task, &evidence));
        }
        debug_assert!(
            state.open_attempts().all(|open| slot.attempts.get(&state.task_id(&open)).is_some()),
            "an attempt was opened or closed that no event named"
        );
        self.synced(id, synced, true);
        self.tell_cancelled(id);
    }

    /// Acts on the new places of the attempts.
    fn synced(&mut self, id: ExecutionId, synced: Synced, committed: bool) {
        let Synced { left, closed, follows } = synced;
        let mut released = BTreeMap::new();
        if let Some(slot) = self.slots.get_mut(id) {
            if committed {
                // The execution belongs to this node now, because a start was recorded for the attempt.
                released = std::mem::take(&mut slot.released);
            }
            if slot.owned {
                self.note_started(id);
            }
        }
        for state in &left {
            self.leave(state);
        }
        for attempt in closed {
            self.close(&attempt);
        }
        if !committed {
            self.release_closed(id);
        }
        for task in released.keys() {
            self.give_back(task, true);
        }
        for (task, then) in follows {
            match then {
                Then::Nothing => {}
                Then::Enqueue => self.enqueue(&task),
                Then::FinishStart(worker) => self.finish_start(&task, worker),
                Then::Disown if self.is_stopping() => self.disown(&task),
                Then::Disown => {}
            }
        }
    }

    /// Copies to the holders what the history says about the attempts that workers of this node hold.
    fn note_started(&mut self, id: ExecutionId) {
        let slot = self.slots.get(id).filter(|_| !self.sessions.holds_nothing());
        for attempt in slot.into_iter().flat_map(|slot| slot.attempts.iter()) {
            if let Some(holder) = self.sessions.holder_mut(&attempt.id) {
                holder.started_at = attempt.started.as_ref().map(|started| started.at);
            }
        }
    }

    /// Another node has become the owner, because a command was sent to it. The new owner waits only for the
    /// grace period for workers to report the attempts that they hold, and workers that are connected to this
    /// node have no reason to report anything. So this node records their starts, and with them it becomes
    /// the owner again. It does not do so for an attempt about which something has been recorded since: that
    /// attempt is with a different worker, or its worker is connected to another node.
    pub(super) fn speak_for_workers(&mut self, id: ExecutionId) {
        let Some(slot) = self.slots.get(id).filter(|slot| !slot.owned) else {
            return;
        };
        let starts = slot.attempts.iter().filter_map(Attempt::unrecorded_start);
        for start in starts.collect::<Vec<_>>() {
            self.act(start);
        }
        let Some(slot) = self.slots.get(id) else {
            return;
        };
        let spoken_for = slot.attempts.iter().filter(|attempt| {
            let task = &attempt.id;
            let started_at = attempt.started.as_ref().map(|started| started.at);
            let holder =
                self.sessions.holder(task).filter(|holder| holder.started_at == started_at);
            // A worker whose slots are all busy polls rarely. If it talks to another node by now, that node
            // records the start again as soon as the worker lists the task.
            let session = holder.and_then(|holder| self.sessions.get(&holder.session));
            session.is_some() && !slot.acts_on(task)
        });
        let spoken_for = spoken_for.map(|attempt| attempt.id.clone());
        for task in spoken_for.collect::<Vec<_>>() {
            self.hold(&task);
        }
    }

    /// Removes a row from the overflow that is void.
    fn withdraw_row(&mut self, task: &TaskId) {
        let key = key_of(task);
        if let Some(slot) = self.slots.get_mut(task.execution) {
            slot.overflow.remove(&key);
        }
        self.effects.withdraw(vec![key]);
    }

    /// Closes an attempt that is over, and notifies the session that holds it.
    fn close(&mut self, attempt: &Attempt) {
        self.unqueue(attempt);
        let Some(holder) = self.sessions.holder(&attempt.id) else {
            return;
        };
        let session = holder.session.clone();
        self.sessions.drop_hold(&attempt.id, attempt.reported);
        if !attempt.reported {
            self.notify(&session, attempt.id.clone(), Notice::Closed);
        }
    }

    /// Closes attempts that workers of this node hold and that another node has closed in the meantime.
    fn release_closed(&mut self, id: ExecutionId) {
        let slot = self.slots.get(id);
        let is_open = |task: &TaskId| slot.is_some_and(|slot| slot.attempt(task).is_some());
        let closed = self.sessions.held_of(id).filter(|(task, _)| !is_open(task));
        let closed = closed.map(|(task, holder)| (task.clone(), holder.session.clone()));
        for (task, session) in closed.collect::<Vec<_>>() {
            self.sessions.let_go(&task);
            self.notify(&session, task, Notice::Closed);
        }
    }

    pub(super) fn unqueue(&mut self, attempt: &Attempt) {
        self.leave(&attempt.dispatch);
    }

    pub(super) fn leave(&mut self, place: &DispatchState) {
        match place {
            DispatchState::Queued { queue, order } => {
                self.queues.remove(queue, *order);
            }
            DispatchState::Starting { worker, .. } => self.return_credit(*worker),
            _ => {}
        }
    }

    /// A worker was chosen but does not get the task, so its credit is restored.
    pub(super) fn return_credit(&mut self, worker: WorkerKey) {
        if self.workers.get(worker).is_some() {
            self.workers.add_credit(worker, 1);
            self.set_timer(Duration::ZERO, Timer::Dispatch);
        }
    }

    /// If the run, or a step that runs other steps, is being stopped: asks the workers that hold tasks of it to
    /// stop, and takes back the tasks that no worker has.
    pub(super) fn tell_cancelled(&mut self, id: ExecutionId) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        let Some(ending) = slot.ending().cloned() else {
            return;
        };
        let (mut handed, mut withdrawn) = (Vec::new(), Vec::new());
        for attempt in slot.attempts.iter_mut() {
            if !ending.includes(&attempt.id.path) {
                continue;
            }
            if matches!(attempt.dispatch, DispatchState::Handed(_)) {
                handed.push(attempt.id.clone());
            } else if attempt.is_with_nobody() && !attempt.withdrawn {
                attempt.withdrawn = true;
                withdrawn.push(attempt.id.clone());
            }
        }
        for task in handed {
            self.ask_to_stop(&task);
        }
        for task in withdrawn {
            self.withhold(&task);
            self.submit(id, Command::WithdrawTask { task }, None, None);
        }
    }

    /// Takes back the attempts that no worker has had, before a termination, so that none is handed out any
    /// more. Only the owner knows which ones they are.
    pub(super) fn take_back(&mut self, id: ExecutionId) -> Vec<TaskId> {
        let Some(slot) = self.slots.get(id).filter(|slot| slot.owned) else {
            return Vec::new();
        };
        let nobodys = slot.attempts.iter().filter(|attempt| attempt.is_with_nobody());
        let nobodys: Vec<TaskId> = nobodys.map(|attempt| attempt.id.clone()).collect();
        for task in &nobodys {
            self.withhold(task);
        }
        nobodys
    }

    fn withhold(&mut self, task: &TaskId) {
        let Some(attempt) = self.attempt_mut(task) else {
            return;
        };
        attempt.acting = true;
        let place = std::mem::replace(&mut attempt.dispatch, DispatchState::Scheduled);
        // The overflow row of the attempt still exists. If the attempt is handed out after all, its start is
        // recorded first.
        attempt.claimed |= matches!(place, DispatchState::Overflowed);
        self.leave(&place);
    }

    /// The previous owner may have put the attempt into the overflow, or this node may have done so in a call
    /// whose answer was lost. Recording the start before the hand-over removes the row.
    pub(super) fn doubt_overflow(&mut self, task: &TaskId) {
        if let Some(slot) = self.slots.get_mut(task.execution) {
            slot.overflow.entry(key_of(task)).or_insert(Row::Free);
        }
        if let Some(attempt) = self.attempt_mut(task) {
            attempt.claimed = true;
        }
    }

    /// Puts an attempt that is due into its queue.
    pub(super) fn enqueue(&mut self, task: &TaskId) {
        let Some(slot) = self.slots.get_mut(task.execution) else {
            return;
        };
        let (Some(plan), Some(committed)) = (slot.known.plan(), slot.known.committed()) else {
            return;
        };
        let Some(plan) = plan.task(&task.path) else {
            return;
        };
        let namespace = committed.namespace.clone();
        let name = QueueName { namespace, queue: plan.queue.clone() };
        let Some(attempt) = slot.attempts.get_mut(task) else {
            return;
        };
        let order = self.queues.insert(&name, &plan.task_type, plan.priority, task.clone());
        attempt.dispatch = DispatchState::Queued { queue: name.clone(), order };
        let task_type = plan.task_type.clone();
        self.dispatch(&name);
        self.offer_elsewhere(&name, &task_type);
    }

    /// Whether this node still holds its lease. Once the lease has ended, it hands nothing out, because
    /// another node may be doing so.
    pub(super) fn has_lease(&self) -> bool {
        self.life.has_lease(self.monotonic)
    }

    fn may_dispatch(&self) -> bool {
        self.has_lease() && !self.is_stopping()
    }

    /// Records which attempts are with workers, where the history does not say so yet.
    pub(super) fn record_starts(&mut self) {
        let attempts = self.slots.owned().flat_map(|slot| slot.attempts.iter());
        let commands = attempts.filter(|own| !own.acting && !own.reported).filter_map(|own| {
            let DispatchState::Handed(handed) = &own.dispatch else {
                return None;
            };
            (!handed.is_recorded()).then(|| handed.record(own.id.clone(), handed.since))
        });
        for command in commands.collect::<Vec<_>>() {
            self.act(command);
        }
        let attempts = self.slots.owned().flat_map(|slot| slot.attempts.iter());
        let waiting = attempts.filter(|own| !own.acting && !own.is_handed());
        let waiting = waiting.map(|own| {
            // This includes attempts in the overflow: a row may be leased to this node, and then no other
            // node can claim it for a long time.
            let is_nobodys = matches!(
                own.dispatch,
                DispatchState::Scheduled | DispatchState::Queued { .. } | DispatchState::Overflowed
            );
            (own.id.clone(), own.unsent.is_some(), is_nobodys)
        });
        for (task, unsent, is_nobodys) in waiting.collect::<Vec<_>>() {
            if unsent && self.is_at_most_once(&task) {
                self.fail_unsent(&task);
            } else if is_nobodys {
                self.disown(&task);
            }
        }
    }

    /// Hands tasks of a queue out to the workers with credit, in turn.
    pub(super) fn dispatch(&mut self, name: &QueueName) {
        if !self.may_dispatch() {
            return;
        }
        while let Some((key, task)) = self.queues.next(name, |key| self.workers.takes(key)) {
            self.hand_over(key, &task);
        }
    }

    pub(super) fn dispatch_all(&mut self) {
        for name in self.queues.names() {
            self.dispatch(&name);
        }
    }

    /// Handles the attempts of a slot that are due.
    pub(super) fn check_attempts(&mut self, id: ExecutionId) {
        let now = self.at();
        let Some(slot) = self.slots.get(id) else {
            return;
        };
        let Some(plan) = slot.known.plan().cloned() else {
            return;
        };
        let due =
            slot.attempts.iter().filter(|attempt| !slot.holds_back(attempt)).filter(|attempt| {
                let task = plan.task(&attempt.id.path);
                let due = task.and_then(|task| attempt.due(task, &self.options, now));
                due.is_some_and(|at| at <= now.time)
            });
        for attempt in due.cloned().collect::<Vec<_>>() {
            let Some(task) = plan.task(&attempt.id.path) else {
                continue;
            };
            match &attempt.dispatch {
                DispatchState::Scheduled => self.enqueue(&attempt.id),
                DispatchState::Grace { .. } if !self.is_reachable() => {
                    let until = now.tick + self.options.reconnect_grace;
                    if let Some(attempt) = self.attempt_mut(&attempt.id) {
                        attempt.wait_until(until);
                    }
                }
                DispatchState::Grace { .. } => {
                    let started = attempt.started.as_ref();
                    let lost = task.delivery == Delivery::AtMostOnce && started.is_some();
                    #[cfg(feature = "mutants")]
                    let lost = lost || self.options.has(Mutant::RepeatedHandOutCounts);
                    if lost {
                        let worker = started.map_or(String::new(), |by| by.worker.clone());
                        self.act(Command::LoseWorker { task: attempt.id.clone(), worker });
                    } else {
                        self.doubt_overflow(&attempt.id);
                        self.enqueue(&attempt.id);
                    }
                }
                DispatchState::Queued { .. } | DispatchState::Overflowed => {
                    // The attempt is about to be closed, so no worker may get it, not even through a claim
                    // that is under way.
                    self.withhold(&attempt.id);
                    self.time_out(&attempt, AttemptTimeout::ScheduleToStart, String::new());
                }
                DispatchState::Starting { .. } => {}
                DispatchState::Handed(handed) => {
                    let name = handed.name.clone();
                    let silent =
                        task.heartbeat.is_some_and(|timeout| handed.beat_at + timeout <= now.tick);
                    if handed.began + task.start_to_close <= now.tick {
                        self.time_out(&attempt, AttemptTimeout::StartToClose, name);
                    } else if silent {
                        self.time_out(&attempt, AttemptTimeout::Heartbeat, name);
                    } else {
                        self.act(handed.record(attempt.id.clone(), handed.since));
                    }
                }
            }
        }
    }

    fn time_out(&mut self, attempt: &Attempt, timeout: AttemptTimeout, worker: String) {
        let possibly_started = attempt.possibly_started;
        let task = attempt.id.clone();
        self.act(Command::TimeOutTask { task, timeout, possibly_started, worker });
    }

    /// Submits a command about an attempt that this node issues itself.
    pub(super) fn act(&mut self, command: Command) {
        let Some(task) = command.task().cloned() else {
            return;
        };
        if let Some(attempt) = self.attempt_mut(&task) {
            attempt.acting = true;
        }
        self.submit(task.execution, command, None, None);
    }
}
