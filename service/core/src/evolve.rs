//! Folding: what an event changes. No expression, policy, default or clock is asked; the event holds
//! the result.

use crate::event::{AttemptFailed, AttemptOutcome, Event, ExecutionStarted, StopCause};
use crate::execution::{
    Block, Compensation, CompensationState, CompensationStepState, Execution, Node, NodeKind,
    NodeState, OpenAttempt, Phase, REQUESTS_MAX, Started, State, Stop, Task, Warning, WarningKind,
};
use crate::id::{ExecutionId, StepPath};
use crate::payload::Payload;
use crate::retry::{Decision, Reason};
use crate::time::Timestamp;

/// The history does not fold: it is damaged, or was written by other rules.
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

/// Folds one more transition.
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

/// The state right after the first event.
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
        started_at: at,
        deadline: started.deadline,
        state: State::Running,
        phase: Phase::Steps,
        compensation: CompensationState::None,
        run: 1,
        steps: Block::default(),
        compensations: Vec::new(),
        finally: Block::default(),
        output: None,
        stop: None,
        cancel_reason: None,
        cleanup_deadline: None,
        warnings: Vec::new(),
        ended_at: None,
        error: None,
        requests: std::collections::VecDeque::new(),
        closings: 0,
    }
}

/// Changes the state as the event says; what does not fit is named.
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
        Event::StepStarted { path, generation, input } => {
            start_step(state, path, *generation, input)?
        }
        Event::StepSkipped { path } => {
            let node = node(path, 0, NodeKind::Skipped, NodeState::Skipped);
            current_block(state).nodes.push(node);
        }
        Event::AttemptScheduled { path, attempt, at } => {
            let sequence = state.sequence;
            let task = task_mut(state, path)?;
            task.attempt = *attempt;
            task.open = Some(OpenAttempt { sequence, scheduled_at: *at, started: None });
        }
        Event::AttemptStarted { path, attempt, worker, session, at } => {
            let open = open_mut(state, path, *attempt)?;
            let (worker, session) = (worker.clone(), session.clone());
            open.started = Some(Started { worker, session, at: *at });
        }
        Event::AttemptFailed(failed) => fail_attempt(state, failed)?,
        Event::AttemptWithdrawn { path, attempt } => {
            open_mut(state, path, *attempt)?;
            let task = task_mut(state, path)?;
            (task.open, task.last_error) = (None, None);
            if let Some(node) = node_mut(state, path) {
                node.state = NodeState::Cancelled;
            }
        }
        Event::StepCompleted { path, output, .. } => complete_step(state, path, output)?,
        Event::StepFailed { path, error } => {
            let node = node_mut(state, path).ok_or("no such step")?;
            node.state = NodeState::Failed { error: error.clone() };
        }
        Event::StepIgnored { path, error, warning } => {
            let node = node_mut(state, path).ok_or("no such step")?;
            node.state = NodeState::Ignored { error: error.clone() };
            if *warning {
                warn(state, path, WarningKind::ErrorIgnored);
            }
        }
        Event::RunSucceeded { output } => state.output = Some(output.clone()),
        Event::RunStopped { cause, error, step, grace_until, compensation_due } => {
            state.state = match cause {
                StopCause::Failed | StopCause::TimedOut => State::Compensating,
                StopCause::Cancelled => State::Cancelling,
            };
            if *compensation_due {
                state.compensation = CompensationState::Pending;
            }
            let (error, step) = (error.clone(), step.clone());
            state.stop = Some(Stop { cause: *cause, error, step, grace_until: *grace_until });
        }
        Event::CancelRequested { reason } => {
            state.cancel_reason.get_or_insert_with(|| reason.clone());
        }
        Event::CompensationStarted { due, cleanup_deadline } => {
            state.phase = Phase::Compensation;
            state.compensation = CompensationState::Running;
            state.cleanup_deadline = *cleanup_deadline;
            state.compensations.extend(due.iter().map(|due| Compensation {
                step: due.step.clone(),
                generation: due.generation,
                outcome: due.outcome,
                state: CompensationStepState::Due,
                task: None,
            }));
        }
        Event::CompensationParked { path, error } => {
            let error = error.clone();
            compensation_mut(state, path)?.state = CompensationStepState::Parked { error };
        }
        Event::CompensationRetried { path, .. } => {
            compensation_mut(state, path)?.state = CompensationStepState::Due;
            state.compensation = CompensationState::Running;
        }
        Event::CompensationSkipped { path, reason } => {
            let reason = reason.clone();
            compensation_mut(state, path)?.state = CompensationStepState::Skipped { reason };
        }
        Event::CompensationEnded { state: ended } => state.compensation = *ended,
        Event::FinallyStarted { cleanup_deadline } => {
            state.phase = Phase::Finally;
            state.cleanup_deadline = *cleanup_deadline;
        }
        Event::HandlerFailed { path, .. } => warn(state, path, WarningKind::HandlerFailed),
        Event::ExecutionEnded { state: ended, error } => {
            state.state = *ended;
            state.error = error.clone();
            state.ended_at = Some(state.decided_at);
        }
    }
    Ok(())
}

fn start_step(
    state: &mut Execution,
    path: &StepPath,
    generation: u32,
    input: &Payload,
) -> Result<(), &'static str> {
    let first_scheduled_at = state.decided_at;
    let new = |attempts_before, unknown| Task {
        input: input.clone(),
        first_scheduled_at,
        attempts_before,
        attempt: attempts_before,
        open: None,
        decided: Vec::new(),
        last_error: None,
        unknown,
    };
    if let Some(step) = path.compensated() {
        let compensation = compensation_mut(state, &step)?;
        compensation.state = CompensationStepState::Running;
        // Tried again by a person: attempts keep their numbers, the policy starts anew.
        let before = compensation.task.as_ref();
        let before = before.map_or((0, false), |task| (task.attempt, task.unknown));
        compensation.task = Some(new(before.0, before.1));
    } else {
        let kind = NodeKind::Task(new(0, false));
        current_block(state).nodes.push(node(path, generation, kind, NodeState::Running));
    }
    Ok(())
}

fn fail_attempt(state: &mut Execution, failed: &AttemptFailed) -> Result<(), &'static str> {
    let AttemptFailed { path, attempt, error, outcome, decision, warning, .. } = failed;
    let is_unknown = *outcome == AttemptOutcome::Unknown;
    let task = task_mut(state, path)?;
    task.attempt = *attempt;
    task.open = None;
    task.unknown |= is_unknown;
    task.last_error = Some(error.clone());
    if decision.is_retry() {
        count(&mut task.decided, decision);
    }
    let closing = is_unknown.then(|| next_closing(state));
    if let Some(node) = node_mut(state, path) {
        node.closing = closing.or(node.closing);
        if decision.reason == Reason::Cancelled {
            node.state = NodeState::Cancelled;
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
    let task = task_mut(state, path)?;
    (task.open, task.last_error) = (None, None);
    if let Some(step) = path.compensated() {
        let output = output.clone();
        compensation_mut(state, &step)?.state = CompensationStepState::Done { output };
        return Ok(());
    }
    let closing = next_closing(state);
    let node = node_mut(state, path).ok_or("no such step")?;
    node.state = NodeState::Completed { output: output.clone() };
    node.closing = Some(closing);
    Ok(())
}

fn node(path: &StepPath, generation: u32, kind: NodeKind, state: NodeState) -> Node {
    Node { path: path.clone(), generation, kind, state, closing: None }
}

/// The block that the phase runs.
fn current_block(state: &mut Execution) -> &mut Block {
    if state.phase == Phase::Finally { &mut state.finally } else { &mut state.steps }
}

fn node_mut<'a>(state: &'a mut Execution, path: &StepPath) -> Option<&'a mut Node> {
    state.steps.node_mut(path).or_else(|| state.finally.node_mut(path))
}

fn compensation_mut<'a>(
    state: &'a mut Execution,
    step: &StepPath,
) -> Result<&'a mut Compensation, &'static str> {
    let mut compensations = state.compensations.iter_mut();
    compensations.find(|compensation| compensation.step == *step).ok_or("no such compensation")
}

fn task_mut<'a>(state: &'a mut Execution, path: &StepPath) -> Result<&'a mut Task, &'static str> {
    match path.compensated() {
        Some(step) => {
            compensation_mut(state, &step)?.task.as_mut().ok_or("the compensation has not begun")
        }
        None => node_mut(state, path).and_then(Node::task_mut).ok_or("no such task"),
    }
}

fn open_mut<'a>(
    state: &'a mut Execution,
    path: &StepPath,
    attempt: u32,
) -> Result<&'a mut OpenAttempt, &'static str> {
    let task = task_mut(state, path)?;
    if task.attempt != attempt {
        return Err("another attempt is the latest");
    }
    task.open.as_mut().ok_or("the attempt is closed")
}

fn next_closing(state: &mut Execution) -> u32 {
    state.closings += 1;
    state.closings
}

fn warn(state: &mut Execution, path: &StepPath, kind: WarningKind) {
    let warning = Warning { path: path.clone(), kind };
    if !state.warnings.contains(&warning) {
        state.warnings.push(warning);
    }
}
