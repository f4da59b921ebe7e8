//! The records of the failure feed. Each record is complete in itself, and the records of a transition are
//! derived from it by one pure function.

use std::collections::HashMap;

use crate::definition::FailureMode;
use crate::error::{TaskError, builtin, type_matches};
use crate::event::{AttemptFailed, AttemptOutcome, Event, StopCause};
use crate::execution::{
    CompensationOutcome, CompensationState, CompensationStepState, Execution, Handled, NodeState,
    Parallel, State, TraceContext,
};
use crate::id::{ExecutionId, Namespace, StepPath, WorkflowName};
use crate::payload::Payload;
use crate::plan::{Plan, StepKind};
use crate::quarantine::Quarantine;
use crate::retry::{Decision, Reason};
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq)]
pub struct FailureEvent {
    /// The id of the event, which is the same each time the event is delivered.
    pub id: String,
    pub kind: FailureKind,
    pub at: Timestamp,
    pub namespace: Namespace,
    /// The execution, and possibly the step, that the event is about. None for [`FailureKind::WorkerLost`],
    /// which is about a session.
    pub subject: Option<Subject>,
    pub worker: String,
    pub session: String,
    pub error: Option<TaskError>,
    /// A hash of the error type, the step and the workflow, equal for failures of one kind. For an event
    /// about a worker or a quarantine it is a hash of the type and the worker, or of the type, the reason
    /// and the workflow.
    pub fingerprint: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    pub execution: ExecutionId,
    pub key: Option<String>,
    pub workflow: WorkflowName,
    pub version: u32,
    pub run: u32,
    pub step: Option<StepPath>,
    pub attempt: u32,
    /// None: unlimited.
    pub max_attempts: Option<u32>,
    /// No further attempt follows.
    pub is_final: bool,
    pub decision: Option<Decision>,
    pub state: State,
    pub compensation: CompensationState,
    /// The steps that took effect, or may have. Filled in for events about an execution as a whole, so that
    /// a subscriber can compensate from outside.
    pub completed: Vec<CompletedStep>,
    /// Sequence of the transition in the history.
    pub sequence: u64,
    pub trace: TraceContext,
}

impl Subject {
    /// For an event about the execution as a whole.
    pub fn of(state: &Execution) -> Self {
        Self { completed: completed(state), ..Self::bare(state) }
    }

    /// For an event about a step. It lists no completed steps, because their outputs may be large.
    fn bare(state: &Execution) -> Self {
        Self {
            execution: state.id,
            key: state.key.clone(),
            workflow: state.workflow.clone(),
            version: state.version,
            run: state.run,
            step: None,
            attempt: 0,
            max_attempts: None,
            is_final: true,
            decision: None,
            state: state.state,
            compensation: state.compensation,
            completed: Vec::new(),
            sequence: state.sequence,
            trace: state.trace.clone(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct CompletedStep {
    pub step: StepPath,
    pub outcome: CompensationOutcome,
    /// None if the outcome is unknown.
    pub output: Option<Payload>,
    /// The step's compensation has completed.
    pub compensated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    AttemptFailed,
    StepFailed,
    StepIgnored,
    /// A handler took the error of the step.
    StepCaught,
    ExecutionFailed,
    ExecutionTimedOut,
    ExecutionWarning,
    ExecutionCancelled,
    ExecutionTerminated,
    CompensationStarted,
    CompensationDone,
    CompensationParked,
    HandlerFailed,
    WorkerLost,
    QueueUnserved,
    DeliveryFailed,
    Recovered,
    FeedGap,
    ExecutionQuarantined,
}

/// The failure events of one transition, in the order of its events. `state` is the state after the
/// transition.
pub fn failure_events(state: &Execution, plan: &Plan, events: &[Event]) -> Vec<FailureEvent> {
    let mut found = Vec::new();
    // The attempt with the decision that led to the failure of a step is usually in the same transition,
    // before the failure.
    let mut last = LastAttempts::new();
    let listed = events.iter().map(|event| match event {
        Event::CompensationStarted { due, .. } => due.len(),
        _ => 0,
    });
    let mut listed_before = state.compensations().len().saturating_sub(listed.sum());
    // Whether a step has failed with an error that nothing has taken so far.
    let mut passes_on = false;
    for event in events {
        match event {
            Event::AttemptFailed(failed) => {
                last.insert(&failed.path, failed);
                if failed.decision.is_retry() {
                    found.push(of_attempt(state, plan, FailureKind::AttemptFailed, failed));
                } else if failed.decision.reason == Reason::Cancelled
                    && failed.outcome == AttemptOutcome::Known
                {
                    // A worker reported the error while the run was ending, so no other event follows from
                    // it.
                    found.push(of_attempt(state, plan, FailureKind::StepFailed, failed));
                }
            }
            Event::StepFailed { .. } => passes_on = true,
            Event::BranchFailed { path, branch, error, origin } => {
                passes_on = false;
                // What becomes of the error that comes first is decided when the `parallel` ends. Nothing
                // takes the others.
                let first = state.parallel(path).and_then(Parallel::first_failure);
                if first.is_some_and(|(first, _)| first != branch) {
                    found.push(of_step(state, plan, FailureKind::StepFailed, origin, error, &last));
                }
            }
            // Nothing takes the error of an item: the loop fails with an error of its own.
            Event::ItemFailed { error, origin, .. } => {
                passes_on = false;
                found.push(of_step(state, plan, FailureKind::StepFailed, origin, error, &last));
            }
            Event::BlockStopped { path, error, .. } => {
                let own = state.parallel(path).filter(|_| error.is_some());
                let own = own.and_then(Parallel::first_failure).map(|(_, failed)| failed);
                let cut = own.into_iter().chain(cut_off(state, plan, Cut::Inside(path)));
                found.extend(cut.map(|failed| of_cut_off(state, plan, failed, &last)));
            }
            // The error has passed through all steps around it, and no handler took it. Of the events of
            // these steps, one is published: that of the step in which the error arose.
            Event::RunStopped { cause, error, step, .. } => {
                passes_on = false;
                let cut = match cause {
                    // The steps of a run that had stopped before did not go on anyway.
                    StopCause::Terminated if state.stop.is_some() => Cut::Cleanup,
                    StopCause::Terminated => Cut::All,
                    _ => Cut::Steps,
                };
                let cut = cut_off(state, plan, cut);
                found.extend(cut.map(|failed| of_cut_off(state, plan, failed, &last)));
                if let (StopCause::Failed, Some(path)) = (cause, step) {
                    found.push(of_step(state, plan, FailureKind::StepFailed, path, error, &last));
                }
            }
            Event::HandlerStarted { error, origin, .. } => {
                passes_on = false;
                found.push(of_step(state, plan, FailureKind::StepCaught, origin, error, &last));
            }
            Event::StepIgnored { path, error, .. } => {
                passes_on = false;
                found.push(of_step(state, plan, FailureKind::StepIgnored, path, error, &last));
            }
            Event::CompensationParked { path, error } => {
                let (kind, path) = (FailureKind::CompensationParked, path.compensation());
                found.push(of_step(state, plan, kind, &path, error, &last));
            }
            Event::HandlerFailed { path, error } => {
                // A step that the cleanup's timeout cut off, or never let begin, has not failed.
                if std::mem::take(&mut passes_on) {
                    found.push(of_step(state, plan, FailureKind::StepFailed, path, error, &last));
                }
                found.push(of_step(state, plan, FailureKind::HandlerFailed, path, error, &last));
            }
            Event::CompensationStarted { due, .. } => {
                // Compensations that are listed later belong to the same compensation, which is announced
                // once.
                if listed_before == 0 {
                    found.push(of_execution(state, FailureKind::CompensationStarted));
                }
                listed_before += due.len();
            }
            Event::CompensationEnded { state: CompensationState::Done } => {
                found.push(of_execution(state, FailureKind::CompensationDone));
            }
            Event::ExecutionEnded { state: ended, .. } => {
                let has_stopped = state.stop.is_some() || state.termination.is_some();
                let cut = if has_stopped { Cut::Cleanup } else { Cut::All };
                let cut = cut_off(state, plan, cut);
                found.extend(cut.map(|failed| of_cut_off(state, plan, failed, &last)));
                found.extend(end_kind(*ended).map(|kind| of_execution(state, kind)));
            }
            _ => {}
        }
    }
    for (index, event) in found.iter_mut().enumerate() {
        event.id = format!("{}-{}-{index}", state.id, state.sequence);
    }
    found
}

/// A session ended while it held attempts. This event is added to those of the attempts. If the session
/// held attempts at several nodes, each node publishes one. `node` is the id of the node's life.
pub fn worker_lost(
    namespace: Namespace,
    worker: String,
    session: String,
    attempts: usize,
    node: i64,
    at: Timestamp,
) -> FailureEvent {
    let plural = if attempts == 1 { "" } else { "s" };
    let message = format!("the session ended while it held {attempts} attempt{plural}");
    let error = TaskError::builtin(builtin::WORKER_LOST, message);
    FailureEvent {
        // A worker may use and lose the same session id again, and so may a worker of another namespace.
        // Two nodes may lose it at the same time, and the time may stand still while the database's clock
        // is behind; hence the node's id.
        id: format!("session-{namespace}/{session}-{node}-{}", at.as_micros()),
        kind: FailureKind::WorkerLost,
        at,
        fingerprint: fingerprint(&[builtin::WORKER_LOST, &worker]),
        namespace,
        subject: None,
        worker,
        session,
        error: Some(error),
    }
}

/// An execution was quarantined. The event does not come from a transition, and the history remains
/// unchanged. Fields that are not known, such as the key or the state of the execution, are left empty in
/// `subject`.
pub fn quarantined(
    namespace: Namespace,
    subject: Subject,
    quarantine: &Quarantine,
) -> FailureEvent {
    let Quarantine { reason, at, .. } = quarantine;
    let error = TaskError::builtin(builtin::QUARANTINED, quarantine.to_string());
    FailureEvent {
        // An execution may be released and quarantined again, so the time is part of the id.
        id: format!("{}-quarantined-{}", subject.execution, at.as_micros()),
        kind: FailureKind::ExecutionQuarantined,
        at: *at,
        fingerprint: fingerprint(&[builtin::QUARANTINED, reason.name(), subject.workflow.as_str()]),
        namespace,
        subject: Some(subject),
        worker: String::new(),
        session: String::new(),
        error: Some(error),
    }
}

fn end_kind(ended: State) -> Option<FailureKind> {
    match ended {
        State::Warning => Some(FailureKind::ExecutionWarning),
        State::Failed => Some(FailureKind::ExecutionFailed),
        State::TimedOut => Some(FailureKind::ExecutionTimedOut),
        State::Cancelled => Some(FailureKind::ExecutionCancelled),
        State::Terminated => Some(FailureKind::ExecutionTerminated),
        _ => None,
    }
}

/// The attempts that failed in a transition, so far, by the paths of their tasks.
type LastAttempts<'a> = HashMap<&'a StepPath, &'a AttemptFailed>;

/// Which steps do not go on.
#[derive(Clone, Copy)]
enum Cut<'a> {
    Inside(&'a StepPath),
    /// Those of the workflow's `steps`.
    Steps,
    /// Those of `on_failure` and `finally`.
    Cleanup,
    All,
}

/// The errors with which branches failed first, of each `parallel` that will not decide about its error any
/// more, because it does not go on.
fn cut_off<'a>(
    state: &'a Execution,
    plan: &'a Plan,
    cut: Cut<'a>,
) -> impl Iterator<Item = &'a Handled> {
    let steps = state.steps().filter(move |_| !matches!(cut, Cut::Cleanup));
    let cleanup = state.cleanup_steps().filter(move |_| !matches!(cut, Cut::Steps));
    let cancelled = steps.chain(cleanup).filter(|node| node.state == NodeState::Cancelled);
    let failed =
        cancelled.filter_map(|node| Some((node, state.parallel(&node.path)?.first_failure()?.1)));
    let failed = failed.filter(move |(node, _)| {
        let around: Vec<_> = std::iter::successors(node.path.parent(), StepPath::parent).collect();
        let end = match cut {
            Cut::Inside(outer) => around.iter().position(|path| path == outer),
            Cut::Steps | Cut::Cleanup | Cut::All => Some(around.len()),
        };
        // If a step around it was being stopped already, the error has been published.
        end.is_some_and(|end| !around[..end].iter().any(|path| was_stopped(state, plan, path)))
    });
    failed.map(|(_, failed)| failed)
}

/// Whether a step was stopped before the run, or before a step around it.
fn was_stopped(state: &Execution, plan: &Plan, path: &StepPath) -> bool {
    let Some(node) = state.node(path).filter(|node| node.state == NodeState::Cancelled) else {
        return false;
    };
    let is_late = node.deadline.is_some_and(|deadline| deadline <= state.decided_at);
    let kind = plan.step(path).map(|step| &step.kind);
    let fails_fast = kind.and_then(StepKind::mode) == Some(FailureMode::FailFast);
    let has_failed = state.lanes(path).is_some_and(|own| own.first_failure().is_some());
    is_late || (fails_fast && has_failed)
}

fn of_cut_off(
    state: &Execution,
    plan: &Plan,
    failed: &Handled,
    last: &LastAttempts<'_>,
) -> FailureEvent {
    of_step(state, plan, FailureKind::StepFailed, &failed.origin, &failed.error, last)
}

fn of_attempt(
    state: &Execution,
    plan: &Plan,
    kind: FailureKind,
    failed: &AttemptFailed,
) -> FailureEvent {
    let last = LastAttempts::from([(&failed.path, failed)]);
    of_step(state, plan, kind, &failed.path, &failed.error, &last)
}

fn of_step(
    state: &Execution,
    plan: &Plan,
    kind: FailureKind,
    path: &StepPath,
    error: &TaskError,
    last: &LastAttempts<'_>,
) -> FailureEvent {
    let failed = last.get(path);
    // The attempt may have failed in an earlier transition, if a `parallel` waited for its other branches.
    let attempt = failed
        .map_or_else(|| state.task(path).map_or(0, |task| task.attempt), |failed| failed.attempt);
    let mut event = of_subject(state, kind, Subject::bare(state));
    event.error = Some(error.clone());
    event.fingerprint = fingerprint(&[&error.error_type, path.as_str(), state.workflow.as_str()]);
    event.worker = failed.map_or(String::new(), |failed| failed.worker.clone());
    if let Some(subject) = &mut event.subject {
        subject.step = Some(path.clone());
        subject.attempt = attempt;
        // An event about no attempt has no limit of attempts either.
        let task = plan.task(path).filter(|_| attempt > 0);
        subject.max_attempts = task.and_then(|task| task.retry.max_attempts());
        subject.is_final = kind != FailureKind::AttemptFailed;
        subject.decision = failed.map(|failed| failed.decision);
    }
    event
}

fn of_execution(state: &Execution, kind: FailureKind) -> FailureEvent {
    of_subject(state, kind, Subject::of(state))
}

fn of_subject(state: &Execution, kind: FailureKind, subject: Subject) -> FailureEvent {
    let error = state.error.clone().or_else(|| state.stop.as_ref().map(|stop| stop.error.clone()));
    let step = state.stop.as_ref().and_then(|stop| stop.step.clone());
    let error_type = error.as_ref().map_or("", |error| &error.error_type);
    let path = step.as_ref().map_or("", StepPath::as_str);
    FailureEvent {
        id: String::new(),
        kind,
        at: state.decided_at,
        namespace: state.namespace.clone(),
        fingerprint: fingerprint(&[error_type, path, state.workflow.as_str()]),
        worker: String::new(),
        session: String::new(),
        subject: Some(Subject { step, ..subject }),
        error,
    }
}

/// The steps that took effect, or may have.
fn completed(state: &Execution) -> Vec<CompletedStep> {
    let tasks = state.steps().filter(|node| node.task().is_some());
    let completed = tasks.filter_map(|node| {
        let (outcome, output) = match &node.state {
            NodeState::Completed { output } => {
                (CompensationOutcome::Completed, Some(output.clone()))
            }
            _ if node.task().is_some_and(|task| task.unknown) => {
                (CompensationOutcome::Unknown, None)
            }
            _ => return None,
        };
        let compensated = state.compensation_of(&node.path).is_some_and(|compensation| {
            matches!(compensation.state, CompensationStepState::Done { .. })
        });
        Some(CompletedStep { step: node.path.clone(), outcome, output, compensated })
    });
    completed.collect()
}

/// The FNV-1a hash of the parts, which is the same on every machine.
fn fingerprint(parts: &[&str]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

/// Whether one of the patterns matches an error type; without patterns every type matches.
pub fn takes_error_type(patterns: &[String], error_type: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| type_matches(pattern, error_type))
}
