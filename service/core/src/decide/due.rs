//! The consequences of a state that need no command: the deadlines for which it waits, and the work that
//! can be done at once.

use crate::execution::{CompensationState, Execution, NodeId, Phase, Scope};
use crate::id::StepPath;
use crate::limits::ATTEMPTS_OPEN_MAX;
use crate::plan::Plan;
use crate::time::Timestamp;

/// What is due at a point in time for which the state waits.
pub(super) enum Deadline {
    /// Earlier decisions left work unfinished, which continues at once.
    Advance,
    /// The workflow's timeout.
    Execution,
    /// The grace period of the live attempts of a stopped run is over.
    Grace,
    Cleanup,
    /// The timeout of a step that runs other steps.
    Block(StepPath),
    /// The grace period of the live attempts inside a step that is being stopped is over.
    BlockGrace(StepPath),
    ScheduleToClose {
        path: StepPath,
        attempt: u32,
    },
}

/// The earliest deadline that follows from the state. Timeouts that run from an attempt's hand-over are not
/// included: the node that handed out the attempt keeps them.
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
    let goes_on = bounds_attempts && !ended;
    let path = |id| state.nodes.get(id).path.clone();
    let block = state.nodes.first_deadline().filter(|_| goes_on);
    let block = block.map(|(at, id)| (at, Deadline::Block(path(id))));
    let stopped = state.nodes.stopped_blocks().filter(move |_| goes_on);
    let stopped = stopped.map(move |(id, at)| (at, Deadline::BlockGrace(path(id))));
    // If there are more open attempts than steps with `schedule_to_close`, look only at the task of each
    // such step that was scheduled first: the others of that step have more time. Otherwise look at every
    // open attempt.
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
    left.into_iter().chain(whole).chain(block).chain(stopped).chain(attempts)
}

/// Work that follows from the state and need not wait.
#[derive(Clone, Copy)]
pub(super) enum Work {
    /// End whatever the termination has not ended yet.
    Terminate,
    /// Begin the next compensation, or end the compensation as a whole after the last one.
    Compensation,
    /// Everything has stopped: begin the cleanup.
    Cleanup,
    /// Begin the next step of a scope inside a step, or end that scope.
    Inside,
    /// Begin the next branch or item of a step, or end a step inside which nothing lives any more.
    Block(NodeId),
    /// Begin the next of the workflow's steps, or find that there is none.
    Steps,
    /// Begin `on_failure` or `finally`.
    BeginHandlers,
    /// Begin the next step of `on_failure`, or find that there is none.
    OnFailure,
    /// Begin the next step of `finally`, or find that there is none.
    Finally,
}

/// The next piece of work; none if the state waits for an attempt or a deadline. The cost does not depend
/// on the number of steps.
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
        Phase::Steps | Phase::OnFailure | Phase::Finally if state.nodes.first_idle().is_some() => {
            Some(Work::Inside)
        }
        Phase::Steps | Phase::OnFailure | Phase::Finally if first_block(state).is_some() => {
            first_block(state).map(Work::Block)
        }
        Phase::Steps => is_quiet(Scope::Steps).then_some(Work::Steps),
        Phase::Compensation => (!compensates).then_some(Work::BeginHandlers),
        Phase::OnFailure => is_quiet(Scope::OnFailure).then_some(Work::OnFailure),
        Phase::Finally => is_quiet(Scope::Finally).then_some(Work::Finally),
    }
}

/// The first step inside which nothing lives any more or, while there is room for further attempts, that can
/// begin a branch or an item.
fn first_block(state: &Execution) -> Option<NodeId> {
    let has_room = state.open.len() < ATTEMPTS_OPEN_MAX;
    let beginning = || state.nodes.first_beginning().filter(|_| has_room);
    state.nodes.first_settled().or_else(beginning)
}

/// Whether the state has work that can be done without waiting, because an earlier decision left it
/// unfinished.
pub(super) fn can_advance(state: &Execution) -> bool {
    next_work(state).is_some()
}
