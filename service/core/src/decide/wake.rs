//! Deadlines that follow from the state. [`next_wake`] says when to look, [`Decider::wake`] looks: the
//! two read the same list.

use super::Decider;
use crate::command::Rejection;
use crate::error::{Error, builtin};
use crate::event::{AttemptOutcome, Event, StopCause};
use crate::execution::{
    Block, Compensation, CompensationState, CompensationStepState, Execution, NodeState, Phase,
};
use crate::id::StepPath;
use crate::plan::Plan;
use crate::time::Timestamp;

enum Deadline {
    /// A decision was left in the middle of what follows from it.
    Advance,
    /// The workflow's timeout.
    Execution,
    /// Live attempts of a run that stopped have had their grace.
    Grace,
    Cleanup,
    ScheduleToClose {
        path: StepPath,
        attempt: u32,
    },
}

/// When the earliest deadline strikes that follows from the state. Clocks of attempts that run from
/// their hand-over are not among them: they live with whoever handed the attempt out.
pub fn next_wake(state: &Execution, plan: &Plan) -> Option<Timestamp> {
    deadlines(state, plan).map(|(at, _)| at).min()
}

fn deadlines<'a>(
    state: &'a Execution,
    plan: &'a Plan,
) -> impl Iterator<Item = (Timestamp, Deadline)> + 'a {
    let left = can_advance(state).then_some((state.decided_at, Deadline::Advance));
    let ended = state.state.is_ended();
    let stopping = state.stop.as_ref();
    let whole = match (state.phase, stopping) {
        _ if ended => None,
        (Phase::Steps, None) => state.deadline.map(|at| (at, Deadline::Execution)),
        (Phase::Steps, Some(stop)) => Some((stop.grace_until, Deadline::Grace)),
        _ => state.cleanup_deadline.map(|at| (at, Deadline::Cleanup)),
    };
    let bounds_attempts = ended || state.phase != Phase::Steps || stopping.is_none();
    let attempts = state.open_attempts().filter(move |_| bounds_attempts).filter_map(|open| {
        let timeout = plan.task(&open.path)?.schedule_to_close?;
        let at = open.task.first_scheduled_at + timeout;
        Some((at, Deadline::ScheduleToClose { path: open.path, attempt: open.task.attempt }))
    });
    left.into_iter().chain(whole).chain(attempts)
}

/// Whether something follows from the state without waiting: `Decider::advance_once` without doing it.
pub(super) fn can_advance(state: &Execution) -> bool {
    let runs =
        |block: &Block| block.nodes.iter().any(|node| matches!(node.state, NodeState::Running));
    let undoes = |one: &Compensation| matches!(one.state, CompensationStepState::Running);
    let compensates = state.compensation == CompensationState::Running;
    if compensates && !state.compensations.iter().any(undoes) {
        return true;
    }
    match state.phase {
        _ if state.state.is_ended() => false,
        Phase::Steps if state.is_stopping() => state.open_attempts().next().is_none(),
        Phase::Steps => !runs(&state.steps),
        Phase::Compensation => !compensates,
        Phase::OnFailure => false,
        Phase::Finally => !runs(&state.finally),
    }
}

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
                        Error::builtin(builtin::EXECUTION_TIMEOUT, "the workflow timed out");
                    self.stop_run(StopCause::TimedOut, error, None);
                }
                Deadline::Grace => {
                    let stop = self.state().stop.as_ref();
                    let error = stop.map(|stop| stop.error.clone());
                    let reason = "the run ended before the attempt did, and its grace is over";
                    let cause = error.map(Box::new);
                    let error = Error { cause, ..Error::builtin(builtin::CANCELLED, reason) };
                    self.close_attempts(&error, &[]);
                }
                Deadline::Cleanup => self.end_cleanup(),
                Deadline::ScheduleToClose { path, attempt } => {
                    let reason = "the task did not end in time";
                    let error = Error::builtin(builtin::SCHEDULE_TO_CLOSE, reason);
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

    /// The cleanup has used up its time: what is left of it does not run.
    fn end_cleanup(&mut self) {
        let error = Error::builtin(builtin::CLEANUP_TIMEOUT, "the cleanup timed out");
        let handler = match self.state().phase {
            Phase::Finally => {
                let open = self.state().open_attempts();
                open.map(|open| open.path).find(|path| path.compensated().is_none())
            }
            _ => self.plan.finally().next().map(|step| step.path.clone()),
        };
        self.close_attempts(&error, &[]);
        self.park_remaining(&error);
        if let Some(path) = handler {
            self.emit(Event::HandlerFailed { path, error });
        }
        self.end();
    }
}
