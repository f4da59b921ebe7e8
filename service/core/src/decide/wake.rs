//! What happens when a deadline has passed. The deadlines are the ones from which
//! [`next_wake`](super::next_wake) takes the earliest.

use super::Decider;
use super::due::{Deadline, deadlines};
use crate::command::Rejection;
use crate::error::{TaskError, builtin};
use crate::event::{AttemptOutcome, Event, StopCause};
use crate::execution::{NodeState, Phase};
use crate::id::StepPath;
use crate::time::Timestamp;

impl Decider<'_> {
    pub(super) fn wake(&mut self) -> Result<(), Rejection> {
        let mut acted = false;
        while !self.is_spent()
            && let Some(deadline) = self.passed()
        {
            acted = true;
            match deadline {
                Deadline::Advance => {}
                Deadline::Execution => {
                    let error =
                        TaskError::builtin(builtin::EXECUTION_TIMEOUT, "the workflow timed out");
                    self.stop_run(StopCause::TimedOut, error, None);
                }
                Deadline::Grace => {
                    let stop = self.state().stop.as_ref();
                    let error = stop.map(|stop| stop.error.clone());
                    let reason =
                        "the run ended, and the attempt did not end within the grace period";
                    let cause = error.map(Box::new);
                    let error =
                        TaskError { cause, ..TaskError::builtin(builtin::CANCELLED, reason) };
                    self.close_attempts(&error, &[], None);
                }
                Deadline::Block(path) => self.time_out_block(path),
                Deadline::BlockGrace(path) => self.end_grace(&path),
                Deadline::Cleanup => self.end_cleanup(),
                Deadline::ScheduleToClose { path, attempt } => {
                    let reason = "the task did not end in time";
                    let error = TaskError::builtin(builtin::SCHEDULE_TO_CLOSE, reason);
                    let open = self.state().task(&path).and_then(|task| task.open.as_ref());
                    let waiting = open.is_some_and(|open| self.is_far(open.scheduled_at));
                    let outcome =
                        if waiting { AttemptOutcome::NotStarted } else { AttemptOutcome::Unknown };
                    self.end_attempt(&path, attempt, error, outcome, String::new());
                }
            }
            self.advance();
        }
        if acted { Ok(()) } else { Err(Rejection::NothingDue) }
    }

    /// Ends the attempts inside a step that is being stopped.
    fn end_grace(&mut self, path: &StepPath) {
        let state = self.state();
        let Some(id) = state.nodes.find(path) else { return };
        let stopped = state.nodes.get(id).stopped.as_ref();
        let first = state.nodes.lanes(id).and_then(|lanes| lanes.first_failure());
        let first = first.map(|failed| &failed.error);
        let cause = stopped.and_then(|stopped| stopped.error.as_ref()).or(first);
        let reason =
            "a step around it was stopped, and the attempt did not end within the grace period";
        let error = TaskError {
            cause: cause.cloned().map(Box::new),
            ..TaskError::builtin(builtin::CANCELLED, reason)
        };
        self.close_attempts(&error, &[], Some(id));
    }

    fn passed(&self) -> Option<Deadline> {
        let now = self.now;
        let mut passed: Option<(Timestamp, Deadline)> = None;
        for (at, deadline) in deadlines(self.state(), self.plan) {
            if at <= now && passed.as_ref().is_none_or(|(earliest, _)| at < *earliest) {
                passed = Some((at, deadline));
            }
        }
        passed.map(|(_, deadline)| deadline)
    }

    /// For each list of handlers that did not come to its end, the step that was cut off or, if none had
    /// begun, the first one.
    fn cut_handlers(&self) -> Vec<StepPath> {
        let (state, plan) = (self.state(), self.plan);
        let last = state.cleanup_steps().next_back();
        let cut = last.filter(|node| matches!(node.state, NodeState::Cancelled));
        let cut = cut.map(|node| node.path.clone());
        let on_failure = self.first_of_on_failure().map(|step| step.path.clone());
        let finally = plan.finally().next().map(|step| step.path.clone());
        match state.phase {
            Phase::Steps | Phase::Compensation => on_failure.into_iter().chain(finally).collect(),
            Phase::OnFailure => cut.into_iter().chain(finally).collect(),
            Phase::Finally => cut.into_iter().collect(),
        }
    }

    /// Ends a cleanup that has run out of time: whatever is left of it does not run.
    fn end_cleanup(&mut self) {
        let error = TaskError::builtin(builtin::CLEANUP_TIMEOUT, "the cleanup timed out");
        if !self.close_attempts(&error, &[], None) || !self.park_remaining(&error) {
            // The deadline remains in the past, so the next transition continues here.
            return;
        }
        for path in self.cut_handlers() {
            self.emit(Event::HandlerFailed { path, error: error.clone() });
        }
        self.end();
    }
}
