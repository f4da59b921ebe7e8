//! Handing an attempt to a worker, with its start in the history first where that must be so, and taking
//! it back.

use std::time::Duration;

use recoup_core::command::{Command, StartBasis, TaskId};
use recoup_core::error::{TaskError, builtin};
use recoup_core::time::Timestamp;

use super::Node;
use super::attempt::{DispatchState, Handed, NOBODYS, Source, id_of, is_bare_start, key_of};
use super::io::WorkerKey;
use super::sessions::Holder;
use crate::clock::Now;
use crate::task::HandedTask;

/// So often an attempt is handed out again, uncounted, because its worker does not have it any more.
const MISSED_MAX: u32 = 10;

impl<R> Node<R> {
    pub(super) fn hand_over(&mut self, key: WorkerKey, task: &TaskId) {
        let now = self.now;
        let is_uncertain = self.slots.get(task.execution).is_some_and(|slot| {
            // With the start that is recorded first it turns out whose it is.
            !slot.owned || self.may_be_given_elsewhere(slot)
        });
        let Some(worker) = self.workers.get_mut(key) else {
            return;
        };
        let Some(slot) = self.slots.get_mut(task.execution) else {
            return;
        };
        let Some(plan) = slot.known.plan() else {
            return;
        };
        let at_most_once = plan.is_at_most_once(&task.path);
        let Some(attempt) = slot.attempts.get_mut(task) else {
            return;
        };
        worker.credit -= 1;
        let unsent = attempt.unsent;
        if at_most_once || attempt.claimed || is_uncertain || unsent.is_some() {
            attempt.dispatch = DispatchState::Starting { worker: key, at: now };
            attempt.acting = true;
            let session = id_of(worker.session.as_ref());
            let (task, worker) = (task.clone(), worker.name.clone());
            let (execution, basis) = (task.execution, StartBasis::HandOver { unsent });
            let command = Command::RecordStart { task, worker, session, at: now, basis };
            return self.submit(execution, command, None, None);
        }
        self.give(key, task, false);
    }

    /// The start is durable: now the worker may have it.
    pub(super) fn finish_start(&mut self, task: &TaskId, worker: WorkerKey) {
        if self.workers.get(worker).is_some() && self.has_lease() {
            return self.give(worker, task, true);
        }
        self.return_credit(worker);
        if self.has_lease() {
            return self.never_left(task);
        }
        let until = self.monotonic + self.options.reconnect_grace;
        if let Some(attempt) = self.attempt_mut(task) {
            attempt.dispatch = DispatchState::Grace { until };
        }
    }

    /// A worker was chosen and was gone, or did not get it: the next one does, though the history says
    /// already that the attempt has started.
    fn never_left(&mut self, task: &TaskId) {
        if self.is_stopping() && self.is_at_most_once(task) {
            return self.fail_unsent(task);
        }
        if let Some(attempt) = self.attempt_mut(task) {
            attempt.dispatch = DispatchState::Scheduled;
            attempt.unsent = attempt.started.as_ref().map(|started| started.at);
        }
        self.wait_again(task);
    }

    /// Nobody has it any more, and it is as good as it was.
    fn wait_again(&mut self, task: &TaskId) {
        self.enqueue(task);
        if self.is_stopping() {
            self.disown(task);
        }
        self.settle_slot(task.execution);
    }

    /// This node hands out no more, and the history says that somebody without a session has what in
    /// truth nobody has: whoever goes on with it would wait until his time is up. For one with a
    /// session he waits no longer than for those who come back.
    pub(super) fn disown(&mut self, task: &TaskId) {
        let started = self.slots.get(task.execution).and_then(|slot| slot.started(task));
        if started.is_none_or(|by| !by.session.is_empty()) || self.is_at_most_once(task) {
            return;
        }
        let (task, session) = (task.clone(), NOBODYS.to_owned());
        let (worker, at, basis) = (String::new(), self.now, StartBasis::Held);
        self.act(Command::RecordStart { task, worker, session, at, basis });
    }

    fn give(&mut self, key: WorkerKey, task: &TaskId, recorded: bool) {
        let Now { tick, time: now } = self.at();
        let (Some(worker), Some(slot)) =
            (self.workers.get(key), self.slots.get_mut(task.execution))
        else {
            return;
        };
        let Some(plan) = slot.known.plan().cloned() else {
            return;
        };
        let Some(attempt) = slot.attempts.get_mut(task) else {
            return;
        };
        // What nobody has had is on no record.
        let may_be_on_record = recorded || attempt.possibly_started;
        attempt.possibly_started = true;
        attempt.unsent = None;
        attempt.claimed &= !recorded;
        attempt.dispatch = DispatchState::Handed(Handed {
            name: worker.name.clone(),
            session: worker.session.clone(),
            since: now,
            began: tick,
            beat_at: tick,
            source: Source::known_here(recorded),
            details: None,
        });
        // Written while its start was on the way into the history.
        let has_row = slot.overflow.contains_key(&key_of(task));
        let content = attempt.content.clone();
        let started = attempt.started.as_ref().filter(|_| may_be_on_record);
        let started_at = started.map(|started| started.at);
        if let Some(session) = &worker.session {
            let (session, name) = (session.clone(), worker.name.clone());
            self.sessions.take_hold(task.clone(), Holder { session, name, started_at });
        }
        let handed = HandedTask { id: task.clone(), content, plan, handed_at: now };
        self.effects.hand_over(key, handed);
        if has_row {
            self.record_again(task);
        }
        self.settle_slot(task.execution);
    }

    /// A worker of this node has what any node could claim: with its start, once more on record, the row
    /// goes, if the execution is still this node's.
    pub(super) fn record_again(&mut self, task: &TaskId) {
        let Some(attempt) = self.attempt_mut(task).filter(|attempt| !attempt.acting) else {
            return;
        };
        let DispatchState::Handed(handed) = &attempt.dispatch else {
            return;
        };
        // The same start would change nothing.
        let at = match attempt.started.as_ref().is_some_and(|by| by.at == handed.since) {
            true => handed.since + Duration::from_micros(1),
            false => handed.since,
        };
        let command = handed.record(task.clone(), at);
        self.act(command);
    }

    /// The history says that it has started, so no other node would hand it out, and this one does so no
    /// more: all that can be said is that it was not done.
    pub(super) fn fail_unsent(&mut self, task: &TaskId) {
        let error = TaskError::builtin(builtin::CANCELLED, "the task was not handed over");
        self.act(Command::FailTask { task: task.clone(), error, worker: String::new() });
    }

    /// An attempt that was handed over has not left this process.
    pub(super) fn unsend(&mut self, task: &TaskId) {
        let slot = self.slots.get(task.execution).filter(|_| self.is_at_most_once(task));
        let Some(slot) = slot.filter(|_| self.has_lease()) else {
            return self.give_back(task, true);
        };
        let is_on_record =
            slot.attempt(task).is_some_and(|attempt| match (&attempt.dispatch, &attempt.started) {
                (DispatchState::Handed(Handed { session, since, .. }), Some(by)) => {
                    by.session == id_of(session.as_ref()) && by.at <= *since
                }
                _ => false,
            });
        // Else a worker has spoken of it since.
        if is_on_record {
            self.sessions.let_go(task);
            self.never_left(task);
        }
    }

    /// Gives an attempt out once more: the same one, uncounted. `unstarted`: its worker says that he
    /// has not begun it; else he may have.
    pub(super) fn give_back(&mut self, task: &TaskId, unstarted: bool) {
        let attempt = self.attempt_mut(task);
        if attempt.as_ref().is_some_and(|attempt| attempt.reported) {
            return;
        }
        let is_out = attempt.is_some_and(|own| {
            matches!(own.dispatch, DispatchState::Handed(_) | DispatchState::Grace { .. })
        });
        let holder = self.sessions.let_go(task);
        if !is_out {
            return;
        }
        let worker = holder.map_or(String::new(), |holder| holder.name);
        if self.is_at_most_once(task) {
            // Never handed out again, come what may.
            let (task, reason) = (task.clone(), "the worker gave the task back unstarted");
            return self.act(match unstarted {
                true => Command::FailTask {
                    task,
                    error: TaskError::builtin(builtin::CANCELLED, reason),
                    worker,
                },
                false => Command::LoseWorker { task, worker },
            });
        }
        if let Some(attempt) = self.attempt_mut(task) {
            attempt.missed += u32::from(!unstarted);
            if attempt.missed > MISSED_MAX {
                // No lost answer: whatever has it breaks down, again and again.
                return self.act(Command::LoseWorker { task: task.clone(), worker });
            }
            attempt.dispatch = DispatchState::Scheduled;
        }
        self.wait_again(task);
    }

    pub(super) fn is_at_most_once(&self, task: &TaskId) -> bool {
        let slot = self.slots.get(task.execution);
        let plan = slot.and_then(|slot| slot.known.plan());
        plan.is_some_and(|plan| plan.is_at_most_once(&task.path))
    }

    /// A hand-over never left this process, and what was known of its attempt has been forgotten since: the
    /// start that was kept of it for a worker without a session is not recorded.
    pub(super) fn void_start(&mut self, task: &TaskId, handed_at: Timestamp) {
        let is_that = |command: &Command| match command {
            Command::RecordStart { task: of, at, .. } if is_bare_start(command) => {
                of == task && *at == handed_at
            }
            _ => false,
        };
        let slot = self.slots.get_mut(task.execution);
        if let Some(slot) = slot.filter(|slot| slot.attempt(task).is_none()) {
            slot.inbox.retain(|one| !(one.is_own() && is_that(&one.command)));
        }
    }

    /// The history says already what was to be recorded.
    pub(super) fn is_on_record(&mut self, task: &TaskId) {
        if let Some(attempt) = self.attempt_mut(task)
            && let DispatchState::Handed(handed) = &mut attempt.dispatch
        {
            handed.put_on_record();
        }
    }

    /// A start was decided. Where it was refused, the attempt is where it was; where a worker has spoken
    /// of the attempt in the same transition, it is there.
    pub(super) fn after_start(&mut self, command: &Command, refused: bool) {
        let Command::RecordStart { task, at, .. } = command else {
            return;
        };
        let is_bare = is_bare_start(command) && !refused;
        let now = self.at();
        let until = now.tick + self.options.reconnect_grace;
        let Some(slot) = self.slots.get_mut(task.execution) else {
            return;
        };
        if refused {
            slot.released.remove(task);
        }
        let Some(attempt) = slot.attempts.get_mut(task) else {
            return;
        };
        match &mut attempt.dispatch {
            // It would be with its worker by now.
            DispatchState::Starting { worker: key, at: of } if of == at => {
                let key = *key;
                attempt.dispatch = match self.sessions.holder(task) {
                    Some(holder) => {
                        DispatchState::Handed(holder.handed(attempt.started.as_ref(), now))
                    }
                    None => DispatchState::Grace { until },
                };
                self.return_credit(key);
            }
            DispatchState::Grace { .. } if is_bare => {
                if let Some(started) = &attempt.started {
                    let handed = Handed::without_session(started, now);
                    attempt.dispatch =
                        DispatchState::Handed(Handed { source: Source::Both, ..handed });
                }
            }
            // Another session is on record and stays there. Asked again, the history says the same.
            DispatchState::Handed(handed) if refused => handed.put_on_record(),
            _ => {}
        }
    }
}
