//! How attempts end, and what follows from it. Every attempt that fails goes through
//! [`Decider::end_attempt`], whatever made it fail. Only attempts that are cut off by the end of a grace
//! period, of the cleanup or of the execution are closed without a decision about a retry, by
//! [`Decider::close_attempts`].

use super::Decider;
use crate::command::{AttemptTimeout, Rejection, StartBasis, TaskId};
use crate::definition::Delivery;
use crate::error::{TaskError, builtin};
use crate::event::{AttemptFailed, AttemptOutcome, Event};
use crate::execution::{CompensationStepState, NodeState, Phase, Started, Task};
use crate::id::StepPath;
use crate::payload::Payload;
use crate::plan::TaskPlan;
use crate::retry::{self, Situation, Verdict};
use crate::time::Timestamp;

pub(super) const HISTORY_FULL: &str = "the history has reached its limit of events";

impl Decider<'_> {
    pub(super) fn complete(
        &mut self,
        task: &TaskId,
        output: Payload,
        worker: String,
    ) -> Result<(), Rejection> {
        if let Err(rejection) = self.check_open(task) {
            // The worker reports the same result again because it did not receive the answer.
            return if self.is_recorded(task, &output) { Ok(()) } else { Err(rejection) };
        }
        let TaskId { path, attempt, .. } = task.clone();
        self.emit(Event::StepCompleted { path, attempt, output, worker });
        Ok(())
    }

    pub(super) fn fail(
        &mut self,
        task: &TaskId,
        error: TaskError,
        outcome: AttemptOutcome,
        worker: String,
    ) -> Result<(), Rejection> {
        if let Err(rejection) = self.check_open(task) {
            // The worker repeats its report, as in `complete`.
            return if self.is_recorded_error(task, &error) { Ok(()) } else { Err(rejection) };
        }
        self.end_attempt(&task.path, task.attempt, error, outcome, worker);
        Ok(())
    }

    pub(super) fn time_out(
        &mut self,
        task: &TaskId,
        timeout: AttemptTimeout,
        possibly_started: bool,
        worker: String,
    ) -> Result<(), Rejection> {
        let (error_type, what) = match timeout {
            AttemptTimeout::ScheduleToStart => {
                (builtin::SCHEDULE_TO_START, "no worker took the task in time")
            }
            AttemptTimeout::StartToClose => {
                (builtin::START_TO_CLOSE, "the worker did not finish in time")
            }
            AttemptTimeout::Heartbeat => {
                (builtin::HEARTBEAT, "the worker sent no heartbeat in time")
            }
        };
        let outcome =
            if possibly_started { AttemptOutcome::Unknown } else { AttemptOutcome::NotStarted };
        self.fail(task, TaskError::builtin(error_type, what), outcome, worker)
    }

    pub(super) fn lose(&mut self, task: &TaskId, worker: String) -> Result<(), Rejection> {
        let error = TaskError::builtin(
            builtin::WORKER_LOST,
            "the worker's session ended, or it does not have the task any more",
        );
        self.fail(task, error, AttemptOutcome::Unknown, worker)
    }

    pub(super) fn record_start(
        &mut self,
        task: &TaskId,
        worker: String,
        session: String,
        at: Timestamp,
        basis: StartBasis,
    ) -> Result<(), Rejection> {
        self.check_open(task)?;
        let started = self.state().task(&task.path).and_then(|task| task.open.as_ref());
        let started = started.and_then(|open| open.started.clone());
        let TaskId { path, attempt, .. } = task.clone();
        if let Some(started) = started {
            let is_bare = worker.is_empty() && session.is_empty();
            // The same session with another time means that its worker has moved to another node. The start
            // is then recorded again, because this transition makes that node the owner.
            // A hand-over is the same as the recorded start only if it names the same worker: a task that the
            // session gave back at that moment is not handed out by it.
            let is_hand_over = matches!(basis, StartBasis::HandOver { .. });
            let is_same = started.session == session && started.at == at;
            if !is_bare && is_same && (!is_hand_over || started.worker == worker) {
                return Ok(());
            }
            let may_replace = match basis {
                StartBasis::Held | StartBasis::GivenBack => started.session == session,
                StartBasis::HandOver { unsent } => unsent == Some(started.at),
            };
            if !is_bare && self.plan.is_at_most_once(&task.path) && !may_replace {
                return Err(Rejection::AttemptClosed);
            }
            // The first start of an attempt is recorded however long the history is. Further starts need
            // room.
            let is_cleanup = path.compensated().is_some() || self.state().phase != Phase::Steps;
            if let Err(full) = self.check_room(is_cleanup) {
                return match basis {
                    StartBasis::Held | StartBasis::GivenBack => Err(full),
                    // The attempt cannot be handed over any more, so no worker will report its result.
                    StartBasis::HandOver { .. } => self.lose(task, started.worker),
                };
            }
            if is_bare {
                // A bare heartbeat (without worker and session) only says that the attempt is still
                // running, whichever worker holds it. The recorded start is written again so that the node
                // that received the heartbeat becomes the owner.
                let Started { worker, session, at } = started;
                self.emit(Event::AttemptStarted { path, attempt, worker, session, at });
                return Ok(());
            }
        }
        self.emit(Event::AttemptStarted { path, attempt, worker, session, at });
        Ok(())
    }

    /// Withdraws an attempt that no worker has. Accepted only while the run or a step around it is being
    /// stopped; otherwise the attempt stays open.
    pub(super) fn withdraw(&mut self, task: &TaskId) -> Result<(), Rejection> {
        self.check_open(task)?;
        let state = self.state();
        let started = state.task(&task.path).and_then(|task| task.open.as_ref()?.started.as_ref());
        if !state.is_ending(&task.path) || started.is_some() {
            return Err(Rejection::NothingDue);
        }
        let TaskId { path, attempt, .. } = task.clone();
        self.emit(Event::AttemptWithdrawn { path, attempt });
        Ok(())
    }

    /// Ends an attempt whose expressions failed, so that there was nothing to hand out.
    pub(super) fn fail_unstarted(&mut self, path: &StepPath, error: TaskError) {
        let attempt = self.state().task(path).map_or(1, |task| task.attempt + 1);
        self.end_attempt(path, attempt, error, AttemptOutcome::NotStarted, String::new());
    }

    /// Ends a failed attempt, whatever made it fail: decides about a retry, records the attempt together
    /// with that decision, and does what follows from it.
    pub(super) fn end_attempt(
        &mut self,
        path: &StepPath,
        attempt: u32,
        error: TaskError,
        outcome: AttemptOutcome,
        worker: String,
    ) {
        let random = self.random.ratio();
        let Some(plan) = self.plan.task(path) else {
            unreachable!("an open attempt is one of the plan that its execution began with");
        };
        let is_compensation = path.compensated().is_some();
        let state = self.state();
        let is_cleanup = is_compensation || state.phase != Phase::Steps;
        let error = self.escalate(plan, error, outcome, is_cleanup);
        let state = self.state();
        let ending = state.termination.is_some() || state.is_ending(path);
        let task = state.task(path).expect("an attempt belongs to a task");
        let decision = retry::decide(
            &plan.retry,
            &Situation {
                error: &error,
                attempt: attempt - task.attempts_before,
                decided: &task.decided,
                first_scheduled_at: task.first_scheduled_at,
                now: self.now,
                deadline: self.attempt_deadline(path, plan, task),
                ending,
            },
            random,
        );
        let warning = plan.retry.warning_on_retry;
        self.emit(Event::AttemptFailed(Box::new(AttemptFailed {
            path: path.clone(),
            attempt,
            error: error.clone(),
            outcome,
            decision,
            worker,
            warning,
        })));
        match decision.verdict {
            Verdict::Retry { next_at, .. } => {
                let (path, attempt) = (path.clone(), attempt + 1);
                self.emit(Event::AttemptScheduled { path, attempt, at: next_at });
            }
            Verdict::Stop => match path.compensated() {
                Some(step) => self.emit(Event::CompensationParked { path: step, error }),
                None if ending => {}
                None => self.fail_step(path.clone(), error, path.clone()),
            },
        }
    }

    /// Turns an error that could be retried into a final one, if the attempt may not be repeated or the
    /// history is full.
    fn escalate(
        &self,
        plan: &TaskPlan,
        error: TaskError,
        outcome: AttemptOutcome,
        is_cleanup: bool,
    ) -> TaskError {
        let escalated =
            if plan.delivery == Delivery::AtMostOnce && outcome == AttemptOutcome::Unknown {
                let message =
                    "the attempt may have taken effect, and its task is delivered at most once";
                TaskError::builtin(builtin::OUTCOME_UNKNOWN, message)
            } else if self.is_full(is_cleanup) {
                TaskError::builtin(builtin::HISTORY_TOO_LONG, HISTORY_FULL)
            } else {
                return error;
            };
        TaskError { cause: Some(Box::new(error)), ..escalated }
    }

    /// The earliest deadline that applies to the attempts of a task.
    fn attempt_deadline(&self, path: &StepPath, plan: &TaskPlan, task: &Task) -> Option<Timestamp> {
        let state = self.state();
        let own = plan.schedule_to_close.map(|timeout| task.first_scheduled_at + timeout);
        let whole = match (state.phase, path.compensated()) {
            _ if state.state.is_ended() => None,
            (Phase::Steps, None) => state.deadline,
            _ => state.cleanup_deadline,
        };
        let blocks = state.nodes.find(path).and_then(|id| state.nodes.deadline_around(id));
        own.into_iter().chain(whole).chain(blocks).min()
    }

    fn check_open(&self, id: &TaskId) -> Result<(), Rejection> {
        let state = self.state();
        let task = state.task(&id.path).filter(|_| id.run <= state.run);
        let Some(task) = task.filter(|task| id.attempt <= task.attempt && id.attempt > 0) else {
            return Err(Rejection::NoSuchAttempt);
        };
        let open = task.open.as_ref().filter(|open| {
            id.run == state.run && id.attempt == task.attempt && id.sequence == open.sequence
        });
        open.map(|_| ()).ok_or(Rejection::AttemptClosed)
    }

    /// Whether this error ended the attempt, and at most the next attempt has been scheduled since.
    fn is_recorded_error(&self, id: &TaskId, error: &TaskError) -> bool {
        // The nodes are those of the latest run, so an attempt of an earlier run is not found.
        let of_run = |_: &&Task| id.run == self.state().run;
        let Some(task) = self.state().task(&id.path).filter(of_run) else {
            return false;
        };
        let failed =
            if task.open.is_some() { task.attempt.saturating_sub(1) } else { task.attempt };
        let recorded = task.last_error.as_ref().filter(|_| failed == id.attempt);
        // An error that was made final has the reported error as its cause.
        recorded.is_some_and(|recorded| {
            recorded == error || recorded.cause.as_deref().is_some_and(|cause| cause == error)
        })
    }

    fn is_recorded(&self, id: &TaskId, output: &Payload) -> bool {
        let state = self.state();
        if id.run != state.run || state.task(&id.path).is_none_or(|task| task.attempt != id.attempt)
        {
            return false;
        }
        match id.path.compensated() {
            Some(step) => state.compensation_of(&step).is_some_and(|compensation| {
                matches!(&compensation.state, CompensationStepState::Done { output: recorded } if recorded == output)
            }),
            None => state.node(&id.path).is_some_and(|node| {
                matches!(&node.state, NodeState::Completed { output: recorded } if recorded == output)
            }),
        }
    }
}
