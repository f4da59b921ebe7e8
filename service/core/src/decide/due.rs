//! What follows from the state without a command: the deadlines that it waits for, and the work that
//! waits for nothing.

use crate::execution::{CompensationState, Execution, Phase, Scope};
use crate::id::StepPath;
use crate::plan::Plan;
use crate::time::Timestamp;

/// A point in time that the state waits for.
pub(super) enum Deadline {
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

/// Every deadline that follows from the state.
pub(super) fn deadlines<'a>(
    state: &'a Execution,
    plan: &'a Plan,
) -> impl Iterator<Item = (Timestamp, Deadline)> + 'a {
    let left = can_advance(state).then_some((state.decided_at, Deadline::Advance));
    let ended = state.state.is_ended();
    let terminates = state.termination.is_some();
    let stopping = state.stop.as_ref();
    let whole = match (state.phase, stopping) {
        _ if ended || terminates => None,
        (Phase::Steps, None) => state.deadline.map(|at| (at, Deadline::Execution)),
        (Phase::Steps, Some(stop)) => Some((stop.grace_until, Deadline::Grace)),
        _ => state.cleanup_deadline.map(|at| (at, Deadline::Cleanup)),
    };
    let bounds_attempts =
        !terminates && (ended || state.phase != Phase::Steps || stopping.is_none());
    // Either all that are open, or of each step with such a timeout the one that began first, whichever
    // are fewer: the others of that step have more time.
    let timed = plan.timed();
    let by_step = state.open.len() > timed.len();
    let each = (bounds_attempts && !by_step).then(|| state.open.tasks());
    let oldest = (bounds_attempts && by_step).then(|| timed.iter());
    let oldest = oldest.into_iter().flatten().filter_map(|step| state.open.oldest_of(step));
    let tasks = each.into_iter().flatten().chain(oldest.map(|(_, task)| task));
    let attempts = tasks.filter_map(|task| {
        let open = state.open_attempt(task)?;
        let timeout = plan.task(&open.path)?.schedule_to_close?;
        let at = open.task.first_scheduled_at + timeout;
        Some((at, Deadline::ScheduleToClose { path: open.path, attempt: open.task.attempt }))
    });
    left.into_iter().chain(whole).chain(attempts)
}

/// What follows from the state without waiting.
#[derive(Clone, Copy)]
pub(super) enum Work {
    /// End what the termination has not ended yet.
    Terminate,
    /// Begin the next compensation, or end the whole.
    Compensation,
    /// Everything has stopped: undo it.
    Cleanup,
    /// Begin the next of the workflow's steps, or see that there is none.
    Steps,
    BeginFinally,
    /// Begin the next step of `finally`, or see that there is none.
    Finally,
}

/// The one thing that is to be done next; none if everything waits for something. It takes the same
/// time however many steps there are.
pub(super) fn next_work(state: &Execution) -> Option<Work> {
    if state.termination.is_some() {
        return Some(Work::Terminate);
    }
    let compensates = state.compensation == CompensationState::Running;
    if compensates && !state.ledger.is_running() {
        return Some(Work::Compensation);
    }
    let is_quiet = |scope| state.counters(&scope).running == 0;
    match state.phase {
        _ if state.state.is_ended() => None,
        Phase::Steps if state.is_stopping() => state.open.is_empty().then_some(Work::Cleanup),
        Phase::Steps => is_quiet(Scope::Steps).then_some(Work::Steps),
        Phase::Compensation => (!compensates).then_some(Work::BeginFinally),
        Phase::OnFailure => None,
        Phase::Finally => is_quiet(Scope::Finally).then_some(Work::Finally),
    }
}

/// Whether a decision was left in the middle of what follows from it.
pub(super) fn can_advance(state: &Execution) -> bool {
    next_work(state).is_some()
}
