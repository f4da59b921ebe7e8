//! Requests of callers about an execution, and the answers to callers that wait for one.

use recoup_core::command::{Command, RequestId};
use recoup_core::id::ExecutionId;
use recoup_core::outcome::Outcome;
use recoup_core::time::Timestamp;

use super::attempt::Attempt;
use super::io::{Answer, LiveAttempt, Refusal, Snapshot, StartSpec};
use super::resident::Known;
use super::slot::{Pending, Slot, Waiter};
use super::{Node, Stage};

impl<R> Node<R> {
    pub(super) fn start(&mut self, spec: StartSpec, reply: R) {
        if self.is_stopping() {
            return self.reply(reply, Err(Refusal::Stopping));
        }
        if !self.life.is_alive() || self.room() == 0 {
            let retry_after = self.options.lease_ttl / 10;
            return self.reply(reply, Err(Refusal::Overloaded { retry_after }));
        }
        let id = spec.start.id;
        let has_key = spec.start.key.is_some();
        let mut slot = Slot::unread();
        slot.known = Known::new(spec.plan);
        slot.key_policies = (spec.on_running, spec.on_ended);
        slot.inbox.push_back(Pending {
            command: Command::StartExecution(Box::new(spec.start)),
            request: spec.request,
            reply: Some(reply),
            until: spec.until,
            verified: false,
            since: self.monotonic,
            answered: false,
        });
        self.slots.insert(id, slot);
        if has_key {
            self.committer.wants_key(id);
        } else {
            self.slots.push_ready(id);
        }
    }

    pub(super) fn submit(
        &mut self,
        id: ExecutionId,
        mut command: Command,
        request: Option<RequestId>,
        reply: Option<R>,
    ) {
        // A result is never refused, because the work is done. All other commands are limited.
        let is_result = matches!(command, Command::CompleteTask { .. } | Command::FailTask { .. });
        let mut reported = None;
        let slot = self.slots.open(id);
        if let Some(reply) = reply {
            if slot.inbox.len() >= self.options.inbox_max && !is_result {
                let retry_after = self.options.commit_retry;
                return self.reply(reply, Err(Refusal::Overloaded { retry_after }));
            }
            if let Command::CompleteTask { task, worker, .. }
            | Command::FailTask { task, worker, .. } = &mut command
                && let Some(attempt) = slot.attempt_mut(task)
            {
                attempt.reported = true;
                // A call without a worker name comes from the worker that has the attempt.
                if worker.is_empty() {
                    slot.worker_of(task).clone_into(worker);
                }
                reported = Some(task.clone());
            }
            slot.inbox.push_back(Pending {
                command,
                request,
                reply: Some(reply),
                until: None,
                verified: false,
                since: self.monotonic,
                answered: false,
            });
        } else {
            // The node issues its own commands again if they are still due, so a repeated one is dropped.
            if slot.inbox.iter().any(|pending| pending.command == command) {
                return;
            }
            slot.inbox.push_back(Pending {
                command,
                request,
                reply: None,
                until: None,
                verified: false,
                since: self.monotonic,
                answered: false,
            });
        }
        if let Some(task) = reported {
            self.sessions.touch_holder(&task, self.monotonic);
        }
        self.touch_slot(id);
    }

    /// Waits for the end of an execution until a given time, or asks for a snapshot of it.
    pub(super) fn wait(&mut self, id: ExecutionId, until: Option<Timestamp>, reply: R) {
        let snapshot = until.is_none();
        self.add_waiter(
            id,
            Waiter { since: self.monotonic, until, reply, is_own: false, snapshot },
        );
    }

    pub(super) fn add_waiter(&mut self, id: ExecutionId, mut waiter: Waiter<R>) {
        waiter.until = waiter.until.map(|until| self.end_of_wait(until));
        let slot = self.slots.open(id);
        // Another node owns the execution and may have changed it, so the store is asked.
        let reread = !slot.owned && !slot.in_flight && slot.known.is_resident();
        slot.waiters.push(waiter);
        if reread {
            self.loader.want(id);
        } else {
            self.touch_slot(id);
            self.serve_waiters(id);
            self.settle_slot(id);
        }
    }

    pub(super) fn end_of_wait(&self, until: Timestamp) -> Timestamp {
        if self.is_reachable() { until } else { until.min(self.now) }
    }

    /// The server is about to stop. From now on, callers that wait for the end of an execution are answered
    /// at once with its present state.
    pub(super) fn close_doors(&mut self) {
        if self.stage == Stage::Serving {
            self.stage = Stage::Closing;
        }
        let now = self.now;
        let waiting = self.slots.iter_mut().filter(|(_, slot)| !slot.waiters.is_empty());
        let waiting = waiting.map(|(id, slot)| {
            for waiter in &mut slot.waiters {
                waiter.until = waiter.until.map(|until| until.min(now));
            }
            id
        });
        for id in waiting.collect::<Vec<_>>() {
            self.serve_waiters(id);
            self.settle_slot(id);
        }
    }

    /// Refuses everything that waits in a slot.
    pub(super) fn refuse_all(&mut self, id: ExecutionId, refusal: &Refusal) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        let pending = std::mem::take(&mut slot.inbox).into_iter().filter_map(|one| one.reply);
        let waiters = std::mem::take(&mut slot.waiters).into_iter().map(|waiter| waiter.reply);
        for reply in pending.chain(waiters).collect::<Vec<_>>() {
            self.reply(reply, Err(refusal.clone()));
        }
    }

    /// Answers the callers whose wait is over.
    pub(super) fn serve_waiters(&mut self, id: ExecutionId) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        if slot.waiters.is_empty() {
            return;
        }
        // While the state is away, the callers keep waiting for it.
        let Some((state, plan)) = slot.known.state_and_plan() else {
            return;
        };
        let ended = state.state.is_ended();
        let now = self.now;
        let (served, waiting) = std::mem::take(&mut slot.waiters)
            .into_iter()
            .partition::<Vec<_>, _>(|waiter| ended || waiter.until.is_none_or(|at| at <= now));
        slot.waiters = waiting;
        if served.is_empty() {
            return;
        }
        let live: Vec<LiveAttempt> = match served.iter().any(|waiter| waiter.snapshot) {
            true => slot.attempts.iter().filter_map(Attempt::live).collect(),
            false => Vec::new(),
        };
        let answer = |waiter: &Waiter<R>| {
            if waiter.snapshot {
                let (state, plan, live) = (Box::new(state.clone()), plan.clone(), live.clone());
                let quarantine = slot.quarantine.clone();
                Answer::Snapshot(Snapshot { state, plan, live, quarantine })
            } else {
                let outcome = Box::new(Outcome::of(state));
                Answer::Done { outcome, is_own: waiter.is_own }
            }
        };
        let answered = served.into_iter().map(|waiter| (answer(&waiter), waiter.reply));
        for (answer, reply) in answered.collect::<Vec<_>>() {
            self.reply(reply, Ok(answer));
        }
    }
}
