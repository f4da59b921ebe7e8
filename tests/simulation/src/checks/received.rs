//! Compares what workers really received with what nodes and histories say about it.

use recoup_core::command::TaskId;
use recoup_core::error::{TaskError, builtin};
use recoup_core::event::{AttemptFailed, AttemptOutcome, Event};
use recoup_core::execution::Execution;
use recoup_core::id::{ExecutionId, StepPath};
use recoup_core::retry::Verdict;
use recoup_core::time::Timestamp;
use recoup_store::NodeId;

use crate::ledger::Receipt;
use crate::trace::short;
use crate::world::World;

impl World<'_> {
    /// A worker has received a task and begins to work on it.
    pub fn check_receipt(&mut self, worker: usize, life: u64, task: &TaskId) {
        let receipts = self.ledger.received.entry(task.clone()).or_default();
        let before = std::mem::take(receipts);
        let place = format!("{} {}:{}", short(&task.execution), task.path, task.attempt);
        if self.is_at_most_once(task.execution, &task.path) {
            if !before.is_empty() {
                self.violate("at most once is received once", format!("{place}: {before:?}"));
            }
            let latest = self.ledger.latest(task.execution);
            let on_record = latest.and_then(|state| state.started(task));
            let (on_record, name) = (on_record.map(|by| by.worker.clone()), self.name(worker));
            if on_record.as_ref().is_some_and(|on_record| *on_record != name) {
                let what = format!("{place} comes to {name}, with {on_record:?} on record");
                self.violate("at most once is with whom the history names", what);
            }
        }
        let works = before.iter().find(|one| self.workers.all[one.worker].is_at(one.life, task));
        // If another node accepts a command, it becomes the owner, and waits only for the grace period for
        // the worker that has the attempt to report.
        let state = self.ledger.latest(task.execution);
        let goes_on = state.is_some_and(|state| state.stop.is_none());
        if self.profile.polite && works.is_some() && goes_on {
            let name = self.name(worker);
            let what = format!("{place} is with {works:?} and comes to {name}");
            self.violate("a polite restart doubles nothing", what);
        }
        let receipts = self.ledger.received.entry(task.clone()).or_default();
        *receipts = before;
        receipts.push(Receipt { worker, life, released: false });
    }

    /// The worker reports that it has not begun the task.
    pub fn note_release(&mut self, worker: usize, task: &TaskId) {
        for receipt in self.ledger.received.entry(task.clone()).or_default() {
            receipt.released |= receipt.worker == worker;
        }
    }

    fn is_at_most_once(&self, id: ExecutionId, path: &StepPath) -> bool {
        let plan = self.ledger.latest(id).and_then(|state| self.plan_of(state));
        plan.is_some_and(|plan| plan.is_at_most_once(path))
    }

    fn may_have_begun(&self, task: &TaskId) -> bool {
        let receipts = self.ledger.received.get(task);
        receipts.is_some_and(|receipts| receipts.iter().any(|receipt| !receipt.released))
    }

    /// Checks everything that a new row says about attempts. `before` is the state that the row was decided on.
    pub fn check_attempts(
        &mut self,
        node: NodeId,
        id: ExecutionId,
        before: &Execution,
        events: &[Event],
        decided_at: Timestamp,
    ) {
        let task_of = |path: &StepPath, attempt: u32| {
            let open = before.open_attempts();
            let mut open = open.filter(|one| one.path == *path && one.task.attempt == attempt);
            open.next().map(|one| before.task_id(&one))
        };
        for event in events {
            match event {
                Event::AttemptFailed(failed) => {
                    let path = &failed.path;
                    if let Some(task) = task_of(&failed.path, failed.attempt) {
                        let was_ending = before.is_ending(path);
                        self.check_failed(node, (id, &task), failed, was_ending, decided_at);
                    }
                }
                Event::AttemptWithdrawn { path, attempt } => {
                    if let Some(task) = task_of(path, *attempt)
                        && self.may_have_begun(&task)
                    {
                        let what = format!("{} {path}:{attempt} is withdrawn", short(&id));
                        self.violate("what a worker had may have been done", what);
                    }
                }
                _ => {}
            }
        }
    }

    /// `was_ending`: the run, or a step around the attempt, was being stopped.
    fn check_failed(
        &mut self,
        node: NodeId,
        (id, task): (ExecutionId, &TaskId),
        failed: &AttemptFailed,
        was_ending: bool,
        decided_at: Timestamp,
    ) {
        let place = format!("{} {}:{}", short(&id), failed.path, failed.attempt);
        let error_type = failed.error.error_type.as_str();
        let gone = failed.outcome == AttemptOutcome::Unknown;
        if failed.outcome == AttemptOutcome::NotStarted && self.may_have_begun(task) {
            let what = format!("{place} {error_type} is said not to have begun");
            self.violate("what a worker had may have been done", what);
        }
        let lost = is_worker_lost(&failed.error);
        if lost && !gone {
            self.violate("what a lost worker did is unknown", place.clone());
        }
        if gone && self.is_at_most_once(id, &failed.path) {
            let retries = matches!(failed.decision.verdict, Verdict::Retry { .. });
            // The end of the run or of its cleanup closes the attempt as well, and then no attempt follows.
            let run_ends = [builtin::CANCELLED, builtin::TERMINATED, builtin::CLEANUP_TIMEOUT];
            if retries
                || !(error_type == builtin::OUTCOME_UNKNOWN || run_ends.contains(&error_type))
            {
                let what = format!("{place}: {error_type}, retries {retries}");
                self.violate("a lost outcome is recoup.outcome_unknown", what);
            }
        }
        let goes_on =
            !was_ending && self.ledger.latest(id).is_some_and(|state| state.stop.is_none());
        if error_type == builtin::CANCELLED && goes_on && !self.is_at_most_once(id, &failed.path) {
            self.violate("what is given back does not count", place.clone());
        }
        // An attempt that is delivered at most once is given up when no worker reports that it has the attempt.
        let given_up = error_type == builtin::OUTCOME_UNKNOWN;
        if lost && !given_up {
            self.check_lost_attempt(node, id, task, failed, decided_at);
        }
        if self.profile.polite {
            // A time limit that a worker has exceeded is not a loss: all servers may have been down for most
            // of that time, and a start without a session is limited by nothing else. If it is delivered at
            // most once, such an attempt is given up with the time limit as the cause.
            let root = root_cause(&failed.error);
            let timed_out = [builtin::START_TO_CLOSE, builtin::HEARTBEAT].contains(&root);
            let received = self.ledger.received.contains_key(task);
            if lost || (given_up && !timed_out) || (timed_out && !received) {
                self.violate(
                    "whoever stops politely loses nobody",
                    format!("{place}: {error_type}"),
                );
            }
        }
    }
}

/// Whether a lost worker ended the attempt, directly or as the cause of another error. The cause of an attempt
/// that was cancelled is why the run, or a step around it, was stopped.
fn is_worker_lost(error: &TaskError) -> bool {
    let by_cause = || error.cause.as_deref().is_some_and(is_worker_lost);
    error.error_type == builtin::WORKER_LOST
        || (error.error_type != builtin::CANCELLED && by_cause())
}

/// The error type at the end of the chain of causes. The cause of an attempt that was cancelled belongs to
/// another attempt: it is why the run, or a step around it, was stopped.
fn root_cause(error: &TaskError) -> &str {
    match error.cause.as_deref() {
        Some(cause) if error.error_type != builtin::CANCELLED => root_cause(cause),
        _ => &error.error_type,
    }
}
