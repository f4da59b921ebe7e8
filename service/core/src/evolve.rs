//! The fold: how an event changes the state. Folding evaluates no expression, policy or default and reads
//! no clock; every result is in the event.

use crate::event::{
    AttemptFailed, AttemptOutcome, Event, ExecutionStarted, FirstAttempt, PayloadSource, StopCause,
};
use crate::execution::{
    BASE_BYTES, BlockStop, Compensation, CompensationOutcome, CompensationState,
    CompensationStepState, Execution, Handled, Items, LaneResult, Lanes, Ledger, Loop, Node,
    NodeId, NodeKind, NodeState, Nodes, OpenAttempt, OpenIndex, Parallel, Part, Phase,
    REQUESTS_MAX, Scope, Started, State, Stop, Task, TaskRef, Warning, WarningKind, error_bytes,
};
use crate::id::{ExecutionId, ItemKey, StepPath};
use crate::payload::Payload;
use crate::retry::{Decision, Reason};
use crate::time::Timestamp;

/// The history cannot be folded: it is damaged, or was written by different rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("transition {sequence} does not fit the state before it: {what}")]
pub struct Misfit {
    pub sequence: u64,
    pub what: String,
}

/// One row of a history.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    pub sequence: u64,
    pub decided_at: Timestamp,
    pub events: Vec<Event>,
}

/// Folds one more transition into the state; `state` is none before the first one.
///
/// # Errors
/// [`Misfit`] if the transition does not follow the state: a transition is missing, or an event does not
/// fit.
pub fn fold(
    state: Option<Execution>,
    id: ExecutionId,
    transition: &Transition,
) -> Result<Execution, Misfit> {
    let sequence = transition.sequence;
    let misfit = |what: &str| Misfit { sequence, what: what.to_owned() };
    let mut events = transition.events.iter();
    let mut state = match (state, events.as_slice().first()) {
        (Some(state), _) if sequence == state.sequence + 1 => state,
        (Some(_), _) => return Err(misfit("a transition is missing")),
        (None, Some(Event::ExecutionStarted(started))) if sequence == 1 => {
            events.next();
            begin(id, started, transition.decided_at)
        }
        (None, _) => return Err(misfit("the history does not begin with a start")),
    };
    state.sequence = sequence;
    state.decided_at = transition.decided_at;
    for event in events {
        evolve(&mut state, event).map_err(&misfit)?;
    }
    Ok(state)
}

/// The state after the event [`Event::ExecutionStarted`], which begins every history.
pub(crate) fn begin(id: ExecutionId, started: &ExecutionStarted, at: Timestamp) -> Execution {
    Execution {
        id,
        sequence: 1,
        event_count: 1,
        decided_at: at,
        namespace: started.namespace.clone(),
        workflow: started.workflow.clone(),
        version: started.version,
        key: started.key.clone(),
        input: started.input.clone(),
        trace: started.trace.clone(),
        format: started.format,
        started_at: at,
        deadline: started.deadline,
        state: State::Running,
        phase: Phase::Steps,
        compensation: CompensationState::None,
        run: 1,
        nodes: Nodes::default(),
        ledger: Ledger::default(),
        open: OpenIndex::default(),
        output: None,
        stop: None,
        termination: None,
        cancel_reason: None,
        cleanup_deadline: None,
        warnings: Vec::new(),
        ended_at: None,
        error: None,
        requests: std::collections::VecDeque::new(),
        weight: BASE_BYTES + started.input.data.len(),
    }
}

/// Applies an event to the state. If the event does not fit, the error says why; the state may then be
/// partly changed.
pub(crate) fn evolve(state: &mut Execution, event: &Event) -> Result<(), &'static str> {
    state.event_count += 1;
    match event {
        Event::ExecutionStarted(_) => return Err("a second start"),
        Event::RequestRecorded { request_id, digest } => {
            if state.requests.len() == REQUESTS_MAX {
                state.requests.pop_front();
            }
            state.requests.push_back((request_id.clone(), *digest));
        }
        Event::StepStarted { path, generation, input, first } => {
            start_step(state, path, *generation, input, *first)?
        }
        Event::StepSkipped { path } => {
            add_node(state, path, 0, NodeKind::Skipped, NodeState::Skipped, Inner::default())?;
        }
        Event::AttemptScheduled { path, attempt, at } => {
            let sequence = state.sequence;
            change_task(state, path, |task| {
                task.attempt = *attempt;
                task.open = Some(OpenAttempt { sequence, scheduled_at: *at, started: None });
            })?;
        }
        Event::AttemptStarted { path, attempt, worker, session, at } => {
            check_open(state, path, *attempt)?;
            let (worker, session) = (worker.clone(), session.clone());
            let started = Started { worker, session, at: *at };
            change_task(state, path, |task| {
                if let Some(open) = &mut task.open {
                    open.started = Some(started);
                }
            })?;
        }
        Event::AttemptFailed(failed) => fail_attempt(state, failed)?,
        Event::AttemptWithdrawn { path, attempt } => {
            check_open(state, path, *attempt)?;
            change_task(state, path, |task| (task.open, task.last_error) = (None, None))?;
            if path.compensated().is_none() {
                change_node(state, path, |node| node.state = NodeState::Cancelled)?;
            }
        }
        Event::StepCompleted { path, output, .. } => complete_step(state, path, output)?,
        Event::StepFailed { path, error } => {
            let error = error.clone();
            change_node(state, path, |node| {
                (node.state, node.stopped) = (NodeState::Failed { error }, None);
            })?;
        }
        Event::StepIgnored { path, error, warning } => {
            let error = error.clone();
            change_node(state, path, |node| {
                (node.state, node.stopped) = (NodeState::Ignored { error }, None);
            })?;
            if *warning {
                warn(state, path, WarningKind::ErrorIgnored);
            }
        }
        Event::BlockStarted { path, generation, part, deadline } => {
            let inner = Inner { part: *part, deadline: *deadline };
            add_node(state, path, *generation, NodeKind::Block, NodeState::Running, inner)?;
        }
        Event::ParallelStarted { path, generation, ready, concurrency, deadline } => {
            let inner = Inner { part: Some(Part::Branch), deadline: *deadline };
            let (kind, running) = (NodeKind::Block, NodeState::Running);
            let id = add_node(state, path, *generation, kind, running, inner)?;
            state.start_lanes(id, Lanes::Branches(Parallel::new(ready, *concurrency)));
        }
        Event::BranchCompleted { path, branch, output, ready } => {
            let result = LaneResult::Completed(state.payload(output));
            end_lane(state, path, branch, result, ready)?;
        }
        Event::LoopStarted { path, generation, items, keys, concurrency, deadline } => {
            let items = Items::of(&state.payload(items)).ok_or("the items are no list")?;
            let keys = keys.clone().or(items.keys);
            if keys.as_ref().is_some_and(|keys| keys.len() != items.values.len()) {
                return Err("there is not a key for each item");
            }
            let inner = Inner { part: Some(Part::Item), deadline: *deadline };
            let (kind, running) = (NodeKind::Block, NodeState::Running);
            let id = add_node(state, path, *generation, kind, running, inner)?;
            let items = Loop::new(items.values, keys, *concurrency);
            state.start_lanes(id, Lanes::Items(Box::new(items)));
        }
        Event::ItemCompleted { path, item, output } => {
            let result = LaneResult::Completed(state.payload(output));
            end_lane(state, path, item, result, &[])?;
        }
        Event::BranchFailed { path, branch: key, error, origin }
        | Event::ItemFailed { path, item: key, error, origin } => {
            let (error, origin) = (error.clone(), origin.clone());
            let result = LaneResult::Failed(Box::new(Handled { error, origin }));
            end_lane(state, path, key, result, &[])?;
        }
        Event::ParallelCompleted { path } | Event::LoopCompleted { path } => {
            change_node(state, path, |node| node.state = NodeState::Joined)?;
        }
        Event::BlockStopped { path, error, grace_until } => {
            let stop = BlockStop { error: error.clone(), grace_until: *grace_until };
            stop_block(state, path, stop)?;
        }
        Event::BlockCompleted { path, output } => {
            let output = state.payload(output);
            change_node(state, path, |node| node.state = NodeState::Completed { output })?;
        }
        Event::ScopeReturned { path, output } => {
            let output = state.payload(output);
            let id = state.nodes.find(path).ok_or("no such step")?;
            state.change_node(id, |node| node.state = NodeState::Completed { output });
            state.nodes.end_by_return(id);
        }
        Event::HandlerStarted { path, handler, error, origin } => {
            let (error, origin) = (error.clone(), origin.clone());
            change_node(state, path, |node| {
                (node.part, node.stopped) = (Some(Part::Handler(*handler)), None);
                node.handled = Some(Box::new(Handled { error, origin }));
            })?;
        }
        Event::StepCaught { path, output } => {
            let output = state.payload(output);
            change_node(state, path, |node| node.state = NodeState::Caught { output })?;
        }
        Event::RunSucceeded { output } => {
            let output = state.payload(output);
            state.weight += output.data.len();
            state.weight -= state.output.replace(output).map_or(0, |old| old.data.len());
        }
        Event::RunStopped { cause: StopCause::Terminated, error, .. } => {
            // The earlier reason why the run stopped, if any, remains recorded.
            if state.state == State::Running {
                state.state = State::Cancelling;
            }
            state.termination = Some(error.clone());
            cancel_blocks(state);
        }
        Event::RunStopped { cause, error, step, grace_until, compensation_due } => {
            state.state = match cause {
                StopCause::Failed | StopCause::TimedOut => State::Compensating,
                StopCause::Cancelled | StopCause::Terminated => State::Cancelling,
            };
            if *compensation_due {
                state.compensation = CompensationState::Pending;
            }
            let (error, step) = (error.clone(), step.clone());
            state.weight += error_bytes(&error);
            cancel_blocks(state);
            let stop = Stop { cause: *cause, error, step, grace_until: *grace_until };
            let before = state.stop.replace(stop);
            state.weight -= before.map_or(0, |stop| error_bytes(&stop.error));
        }
        Event::CancelRequested { reason } => {
            state.cancel_reason.get_or_insert_with(|| reason.clone());
        }
        Event::CompensationStarted { due, cleanup_deadline } => {
            state.phase = Phase::Compensation;
            state.compensation = CompensationState::Running;
            state.cleanup_deadline = *cleanup_deadline;
            for due in due {
                state.add_compensation(Compensation {
                    step: due.step.clone(),
                    generation: due.generation,
                    outcome: due.outcome,
                    state: CompensationStepState::Due,
                    task: None,
                });
            }
        }
        Event::CompensationParked { path, error } => {
            let error = error.clone();
            set_compensation(state, path, CompensationStepState::Parked { error })?;
        }
        Event::CompensationRetried { path, .. } => {
            set_compensation(state, path, CompensationStepState::Due)?;
            state.compensation = CompensationState::Running;
        }
        Event::CompensationSkipped { path, reason } => {
            let reason = reason.clone();
            set_compensation(state, path, CompensationStepState::Skipped { reason })?;
        }
        Event::CompensationEnded { state: ended } => {
            state.compensation = *ended;
            if state.state.is_ended() {
                state.termination = None;
            }
        }
        Event::OnFailureStarted { cleanup_deadline } => {
            state.phase = Phase::OnFailure;
            state.cleanup_deadline = *cleanup_deadline;
        }
        Event::FinallyStarted { cleanup_deadline } => {
            state.phase = Phase::Finally;
            state.cleanup_deadline = *cleanup_deadline;
        }
        Event::HandlerFailed { path, .. } => warn(state, path, WarningKind::HandlerFailed),
        Event::ExecutionEnded { state: ended, error } => {
            cancel_blocks(state);
            state.state = *ended;
            state.weight += error.as_ref().map_or(0, error_bytes);
            let before = std::mem::replace(&mut state.error, error.clone());
            state.weight -= before.as_ref().map_or(0, error_bytes);
            state.ended_at = Some(state.decided_at);
            state.termination = None;
        }
    }
    Ok(())
}

fn start_step(
    state: &mut Execution,
    path: &StepPath,
    generation: u32,
    input: &PayloadSource,
    first: Option<FirstAttempt>,
) -> Result<(), &'static str> {
    let (first_scheduled_at, sequence) = (state.decided_at, state.sequence);
    let input = state.payload(input);
    let new = |attempts_before, unknown| Task {
        input,
        first_scheduled_at,
        attempts_before,
        attempt: first.map_or(attempts_before, |first| first.number),
        open: first.map(|first| OpenAttempt { sequence, scheduled_at: first.at, started: None }),
        decided: Vec::new(),
        last_error: None,
        unknown,
    };
    if let Some(step) = path.compensated() {
        let index = state.ledger.find(&step).ok_or("no such compensation")?;
        state.change_compensation(index, |compensation| {
            compensation.state = CompensationStepState::Running;
            // An operator retries the compensation: attempt numbers continue, but the retry policy starts
            // afresh.
            let before = compensation.task.as_ref();
            let before = before.map_or((0, false), |task| (task.attempt, task.unknown));
            compensation.task = Some(new(before.0, before.1));
        });
        return Ok(());
    }
    let kind = NodeKind::Task(new(0, false));
    add_node(state, path, generation, kind, NodeState::Running, Inner::default())?;
    Ok(())
}

/// Cancels the steps whose inner steps do not go on because the run has stopped.
fn cancel_blocks(state: &mut Execution) {
    let running: Vec<NodeId> = state.nodes.running_blocks().collect();
    cancel(state, running);
}

/// Ends a branch or an item of the step with this path; `ready` are the branches that may begin now.
fn end_lane(
    state: &mut Execution,
    path: &StepPath,
    key: &ItemKey,
    result: LaneResult,
    ready: &[ItemKey],
) -> Result<(), &'static str> {
    let id = state.nodes.find(path).ok_or("no such step")?;
    state.end_lane(id, key, result, ready)
}

/// Stops everything inside a step. The step itself ends when its live attempts have ended.
fn stop_block(state: &mut Execution, path: &StepPath, stop: BlockStop) -> Result<(), &'static str> {
    let id = state.nodes.find(path).ok_or("no such step")?;
    let inside: Vec<NodeId> = state.nodes.running_blocks_inside(id).collect();
    cancel(state, inside);
    state.change_node(id, |node| node.stopped = Some(Box::new(stop)));
    let live = state.open.steps_from(id).filter(|inner| state.nodes.is_inside(*inner, id));
    let live = live.collect();
    state.nodes.set_live(id, live);
    Ok(())
}

fn cancel(state: &mut Execution, blocks: Vec<NodeId>) {
    for id in blocks {
        state.change_node(id, |node| {
            (node.state, node.stopped) = (NodeState::Cancelled, None);
        });
    }
}

fn fail_attempt(state: &mut Execution, failed: &AttemptFailed) -> Result<(), &'static str> {
    let AttemptFailed { path, attempt, error, outcome, decision, warning, .. } = failed;
    let is_unknown = *outcome == AttemptOutcome::Unknown;
    change_task(state, path, |task| {
        task.attempt = *attempt;
        task.open = None;
        task.unknown |= is_unknown;
        task.last_error = Some(error.clone());
        if decision.is_retry() {
            count(&mut task.decided, decision);
        }
    })?;
    if path.compensated().is_none() {
        if is_unknown {
            close(state, path, CompensationOutcome::Unknown)?;
        }
        if decision.reason == Reason::Cancelled {
            change_node(state, path, |node| node.state = NodeState::Cancelled)?;
        }
    }
    if *warning && decision.is_retry() {
        warn(state, path, WarningKind::Retried);
    }
    Ok(())
}

fn count(decided: &mut Vec<(crate::retry::DecidedBy, u32)>, decision: &Decision) {
    let by = decision.decided_by();
    match decided.iter_mut().find(|(other, _)| *other == by) {
        Some((_, count)) => *count += 1,
        None => decided.push((by, 1)),
    }
}

fn complete_step(
    state: &mut Execution,
    path: &StepPath,
    output: &Payload,
) -> Result<(), &'static str> {
    change_task(state, path, |task| (task.open, task.last_error) = (None, None))?;
    let output = output.clone();
    if let Some(step) = path.compensated() {
        return set_compensation(state, &step, CompensationStepState::Done { output });
    }
    change_node(state, path, |node| node.state = NodeState::Completed { output })?;
    close(state, path, CompensationOutcome::Completed)
}

/// Records that a step took effect, or may have. The step gets the next place in the order of ends. It also
/// gets an entry in the ledger, except a step of `on_failure` or `finally`, which is never undone.
fn close(
    state: &mut Execution,
    path: &StepPath,
    outcome: CompensationOutcome,
) -> Result<(), &'static str> {
    let id = state.nodes.find(path).ok_or("no such step")?;
    let node = state.nodes.get(id);
    let closing = if state.nodes.is_cleanup(node) {
        state.ledger.next_closing()
    } else {
        state.ledger.record(node.closing, path, node.generation, outcome)
    };
    state.change_node(id, |node| node.closing = Some(closing));
    Ok(())
}

/// What a step that runs other steps begins with.
#[derive(Default)]
struct Inner {
    part: Option<Part>,
    deadline: Option<Timestamp>,
}

fn add_node(
    state: &mut Execution,
    path: &StepPath,
    generation: u32,
    kind: NodeKind,
    node_state: NodeState,
    inner: Inner,
) -> Result<NodeId, &'static str> {
    let root = match state.phase {
        Phase::Steps | Phase::Compensation => Scope::Steps,
        Phase::OnFailure => Scope::OnFailure,
        Phase::Finally => Scope::Finally,
    };
    let scope = state.nodes.scope_of(path, root)?;
    // A step that is tried again keeps its entry in the ledger: the effects of the earlier try must still
    // be undone.
    let earlier = state.node(path).filter(|node| node.generation == generation);
    let closing = earlier.and_then(|node| node.closing);
    let Inner { part, deadline } = inner;
    Ok(state.add_node(Node {
        path: path.clone(),
        scope,
        generation,
        kind,
        state: node_state,
        part,
        deadline,
        stopped: None,
        handled: None,
        closing,
    }))
}

fn change_node(
    state: &mut Execution,
    path: &StepPath,
    change: impl FnOnce(&mut Node),
) -> Result<(), &'static str> {
    let id = state.nodes.find(path).ok_or("no such step")?;
    state.change_node(id, change);
    Ok(())
}

fn set_compensation(
    state: &mut Execution,
    step: &StepPath,
    to: CompensationStepState,
) -> Result<(), &'static str> {
    let index = state.ledger.find(step).ok_or("no such compensation")?;
    state.change_compensation(index, |compensation| compensation.state = to);
    Ok(())
}

fn change_task(
    state: &mut Execution,
    path: &StepPath,
    change: impl FnOnce(&mut Task),
) -> Result<(), &'static str> {
    match find_task(state, path)? {
        TaskRef::Step(id) => state.change_node(id, |node| {
            if let NodeKind::Task(task) = &mut node.kind {
                change(task);
            }
        }),
        TaskRef::Compensation(index) => state.change_compensation(index, |compensation| {
            if let Some(task) = &mut compensation.task {
                change(task);
            }
        }),
    }
    Ok(())
}

fn find_task(state: &Execution, path: &StepPath) -> Result<TaskRef, &'static str> {
    if let Some(step) = path.compensated() {
        let index = state.ledger.find(&step).ok_or("no such compensation")?;
        let has_begun = state.ledger.get(index).task.is_some();
        return has_begun.then_some(TaskRef::Compensation(index)).ok_or("it has not begun");
    }
    let id = state.nodes.find(path);
    let id = id.filter(|id| state.nodes.get(*id).task().is_some()).ok_or("no such task")?;
    Ok(TaskRef::Step(id))
}

fn check_open(state: &Execution, path: &StepPath, attempt: u32) -> Result<(), &'static str> {
    let task = state.task(path).ok_or("no such task")?;
    if task.attempt != attempt {
        return Err("another attempt is the latest");
    }
    task.open.as_ref().map(|_| ()).ok_or("the attempt is closed")
}

fn warn(state: &mut Execution, path: &StepPath, kind: WarningKind) {
    let warning = Warning { path: path.clone(), kind };
    if !state.warnings.contains(&warning) {
        state.warnings.push(warning);
    }
}
