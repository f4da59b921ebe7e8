//! Handing an attempt to a worker, with its start recorded in the history first where necessary, and taking
//! an attempt back.

use std::time::Duration;

use recoup_core::command::{Command, StartBasis, TaskId};
use recoup_core::error::{TaskError, builtin};
use recoup_core::execution::Started;
use recoup_core::time::Timestamp;

use super::Node;
use super::attempt::{
    DispatchState, Handed, Source, id_of, is_bare_start, key_of, record_of_nobody,
};
use super::io::WorkerKey;
use super::sessions::Holder;
use crate::clock::Now;
use crate::task::HandedTask;

/// How many times an attempt is handed out again, uncounted, after its worker turned out not to have it any more.
const MISSED_MAX: u32 = 10;

impl<R> Node<R> {
    pub(super) fn hand_over(&mut self, key: WorkerKey, task: &TaskId) {
        let now = self.now;
        let is_uncertain = self.slots.get(task.execution).is_some_and(|slot| {
            // The start is recorded before the hand-over, which shows which node owns the execution.
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
            let (session, worker) = (id_of(worker.session.as_ref()), worker.name.clone());
            let start = Started { worker: worker.clone(), session: session.clone(), at: now };
            attempt.dispatch = DispatchState::Starting { worker: key, start };
            attempt.acting = true;
            let (task, basis) = (task.clone(), StartBasis::HandOver { unsent });
            let execution = task.execution;
            let command = Command::RecordStart { task, worker, session, at: now, basis };
            return self.submit(execution, command, None, None);
        }
        self.give(key, task, false);
    }

    /// The start is durable, so the worker may have the attempt now.
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

    /// The chosen worker is gone or did not get the attempt. The next worker gets it, although the history
    /// already says that the attempt has started.
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

    /// The attempt is unassigned again and can be handed out.
    fn wait_again(&mut self, task: &TaskId) {
        self.enqueue(task);
        if self.is_stopping() {
            self.disown(task);
        }
        self.settle_slot(task.execution);
    }

    /// Records that no worker has the attempt. This node hands nothing out any more, and the history still
    /// names a worker without a session. Without this record, the next owner would wait until that worker's
    /// timeout expires. For a worker with a session, the next owner waits no longer than the grace period
    /// anyway.
    pub(super) fn disown(&mut self, task: &TaskId) {
        let started = self.slots.get(task.execution).and_then(|slot| slot.started(task));
        if started.is_none_or(|by| !by.session.is_empty()) || self.is_at_most_once(task) {
            return;
        }
        self.act(record_of_nobody(task.clone(), self.now));
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
        // If no worker has had the attempt, its start cannot be on record.
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
        // The overflow row was written while the start was on its way to the history.
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

    /// A worker of this node has an attempt that any node could still claim. Recording its start once more
    /// removes the row, provided that this node still owns the execution.
    pub(super) fn record_again(&mut self, task: &TaskId) {
        let Some(attempt) = self.attempt_mut(task).filter(|attempt| !attempt.acting) else {
            return;
        };
        let DispatchState::Handed(handed) = &attempt.dispatch else {
            return;
        };
        // Recording the same start again would change nothing.
        let at = match attempt.started.as_ref().is_some_and(|by| by.at == handed.since) {
            true => handed.since + Duration::from_micros(1),
            false => handed.since,
        };
        let command = handed.record(task.clone(), at);
        self.act(command);
    }

    /// Fails an attempt that was never handed over. The history says that it has started, so no other node
    /// would hand it out, and this node no longer hands anything out.
    pub(super) fn fail_unsent(&mut self, task: &TaskId) {
        let error = TaskError::builtin(builtin::CANCELLED, "the task was not handed over");
        self.act(Command::FailTask { task: task.clone(), error, worker: String::new() });
    }

    /// A hand-over has not left this process, so the attempt is taken back.
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
        // Otherwise a worker has reported the attempt since.
        if is_on_record {
            self.sessions.let_go(task);
            self.never_left(task);
        }
    }

    /// Hands the same attempt out once more, uncounted. `unstarted`: its worker says that it has not begun
    /// the attempt; otherwise it may have.
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
            // It must never be handed out again.
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
                // Lost answers do not explain so many misses. The attempt probably kills every worker that gets it.
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

    /// A hand-over never left this process, and its attempt has been forgotten since. The start that was kept
    /// for a worker without a session is dropped.
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

    /// The history already says what was to be recorded.
    pub(super) fn is_on_record(&mut self, task: &TaskId) {
        if let Some(attempt) = self.attempt_mut(task)
            && let DispatchState::Handed(handed) = &mut attempt.dispatch
        {
            handed.put_on_record();
        }
    }

    /// A start has been decided. If it was refused, the attempt stays where it was. If a worker reported the
    /// attempt in the same transition, the attempt is with that worker.
    pub(super) fn after_start(&mut self, command: &Command, refused: bool) {
        let Command::RecordStart { task, worker, session, at, basis } = command else {
            return;
        };
        // The worker has no session, or its heartbeat does not say which worker sent it.
        let is_alive = *basis == StartBasis::Held && session.is_empty() && !refused;
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
            // Otherwise the attempt would be with its worker by now.
            DispatchState::Starting { worker: key, start }
                if start.at == *at && start.worker == *worker && start.session == *session =>
            {
                let key = *key;
                attempt.dispatch = match self.sessions.holder(task) {
                    Some(holder) => {
                        DispatchState::Handed(holder.handed(attempt.started.as_ref(), now))
                    }
                    None => DispatchState::Grace { until },
                };
                self.return_credit(key);
            }
            DispatchState::Grace { .. } if is_alive => {
                if let Some(started) = &attempt.started {
                    let handed = Handed::without_session(started, now);
                    attempt.dispatch =
                        DispatchState::Handed(Handed { source: Source::Both, ..handed });
                }
            }
            // The history names a different session, and repeating the command would not change that.
            DispatchState::Handed(handed) if refused => handed.put_on_record(),
            _ => {}
        }
    }
}
