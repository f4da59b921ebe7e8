//! Converts executions: what they are doing and how they ended.

use recoup_core::execution::{
    CompensationOutcome, CompensationState, CompensationStepState, Execution, Node, NodeState,
    Phase, State, Warning, WarningKind,
};
use recoup_core::id::{ExecutionId, StepPath};
use recoup_core::key::{OnEnded, OnRunning};
use recoup_core::outcome::{Outcome, ToldWarning, WARNINGS_MAX};
use recoup_core::plan::Plan;
use recoup_core::quarantine::{Quarantine, QuarantineReason};
use recoup_core::time::Timestamp;
use recoup_engine::{PartialExecution, Snapshot};
use recoup_proto::v1;
use recoup_store::Listed;

use super::inline::{Inline, Place, least_of_error, least_of_payload, least_of_text};
use super::loops::Listing;
use super::parallel::{self, Begun};
use super::path::split;
use super::time;
use crate::BATCH_BYTES_MAX;

/// The most bytes of an execution's names, key, trace and reasons.
const FRAME_BYTES: usize = 24 * 1024;
/// Bytes of one entry of a list, besides path, payload, error and text.
const ENTRY_BYTES: usize = 48;
/// Bytes of a pending attempt, besides its last error and the details of its heartbeat.
const PENDING_BYTES: usize = 2 * 1024;

/// Unspecified for a reason that only a newer server knows.
fn quarantine_reason(reason: QuarantineReason) -> v1::QuarantineReason {
    match reason {
        QuarantineReason::HistoryGap => v1::QuarantineReason::HistoryGap,
        QuarantineReason::HistoryUnreadable => v1::QuarantineReason::HistoryUnreadable,
        QuarantineReason::WorkflowUnreadable => v1::QuarantineReason::WorkflowUnreadable,
        QuarantineReason::DecisionPanicked => v1::QuarantineReason::DecisionPanicked,
        QuarantineReason::StoreRefused => v1::QuarantineReason::StoreRefused,
        QuarantineReason::Unknown => v1::QuarantineReason::Unspecified,
    }
}

super::to_proto!(state: State => v1::ExecutionState:
    Running Retrying Paused Compensating Cancelling
    Succeeded Warning Failed TimedOut Cancelled Terminated);
super::from_proto!(state_from: v1::ExecutionState => State:
    Running Retrying Paused Compensating Cancelling
    Succeeded Warning Failed TimedOut Cancelled Terminated);
super::to_proto!(phase: Phase => v1::ExecutionPhase: Steps Compensation OnFailure Finally);
super::to_proto!(compensation_state: CompensationState => v1::CompensationState:
    None Pending Running Done Parked);
super::from_proto!(compensation_state_from: v1::CompensationState => CompensationState:
    None Pending Running Done Parked);
super::to_proto!(step_outcome: CompensationOutcome => v1::StepOutcome: Completed Unknown);
super::to_proto!(warning_kind: WarningKind => v1::WarningKind:
    ErrorIgnored Retried HandlerFailed);
super::from_proto!(on_running: v1::OnRunning => OnRunning: Reject UseExisting);
super::from_proto!(on_ended: v1::OnEnded => OnEnded: Allow AllowAfterFailure Reject UseExisting);

/// Converts the outcome of an execution that has ended. The output is always inline.
pub fn outcome(outcome: &Outcome) -> v1::Outcome {
    let least_of_warning =
        |warning: &ToldWarning| least_of_warning(&warning.path, warning.error.as_ref());
    let least = FRAME_BYTES
        + outcome.output.as_ref().map_or(0, least_of_payload)
        + outcome.error.as_ref().map_or(0, least_of_error)
        + outcome.warnings.iter().map(least_of_warning).sum::<usize>();
    let mut inline = inline(outcome.execution, outcome.sequence, least);
    let warnings = outcome.warnings.iter();
    v1::Outcome {
        output: outcome.output.as_ref().map(|output| inline.payload(output)),
        error: outcome.error.as_ref().map(|error| inline.error(error)),
        state: state(outcome.state).into(),
        failed_step: step_text(outcome.failed_step.as_ref()),
        compensation_state: compensation_state(outcome.compensation).into(),
        warnings: warnings
            .map(|own| warning(&own.path, own.kind, own.error.as_ref(), &mut inline))
            .collect(),
        run: outcome.run,
        ended_at: outcome.ended_at.map(time::timestamp),
    }
}

fn step_text(step: Option<&StepPath>) -> String {
    step.map(|step| step.as_str().to_owned()).unwrap_or_default()
}

fn warning(
    path: &StepPath,
    kind: WarningKind,
    error: Option<&recoup_core::error::TaskError>,
    inline: &mut Inline,
) -> v1::Warning {
    v1::Warning {
        step_path: path.as_str().to_owned(),
        kind: warning_kind(kind).into(),
        error: error.map(|error| inline.error(error)),
    }
}

fn least_of_warning(path: &StepPath, error: Option<&recoup_core::error::TaskError>) -> usize {
    ENTRY_BYTES + path.as_str().len() + error.map_or(0, least_of_error)
}

fn warnings(execution: &Execution, inline: &mut Inline) -> Vec<v1::Warning> {
    let warnings = execution.warnings.iter().take(WARNINGS_MAX);
    let convert = |own: &Warning| warning(&own.path, own.kind, warned(execution, own), inline);
    warnings.map(convert).collect()
}

fn warned<'a>(
    execution: &'a Execution,
    warning: &Warning,
) -> Option<&'a recoup_core::error::TaskError> {
    execution.node(&warning.path).and_then(Node::error)
}

/// The room for inline content in an answer about an execution, after its minimum size is subtracted.
fn inline(execution: ExecutionId, sequence: u64, least: usize) -> Inline {
    let place = Place { execution, sequence };
    Inline::new(BATCH_BYTES_MAX.saturating_sub(least), Some(place))
}

fn least_of_warnings(execution: &Execution) -> usize {
    let one = |warning: &Warning| least_of_warning(&warning.path, warned(execution, warning));
    execution.warnings.iter().take(WARNINGS_MAX).map(one).sum()
}

/// The steps of an execution that run several lists of steps, and what of them the answer contains.
struct Steps<'a> {
    listing: Listing<'a>,
    parallels: Vec<Begun<'a>>,
}

impl<'a> Steps<'a> {
    fn of(execution: &'a Execution, plan: Option<&'a Plan>) -> Self {
        let listing = Listing::of(execution);
        let parallels = parallel::begun(execution, plan, &listing);
        Self { listing, parallels }
    }
}

/// The size of the answer about an execution if everything that can be left out is left out.
fn least(execution: &Execution, steps: &Steps<'_>) -> usize {
    let stop_error = execution.stop.as_ref().map(|stop| &stop.error);
    let own = FRAME_BYTES
        + least_of_payload(&execution.input)
        + execution.output.as_ref().map_or(0, least_of_payload)
        + execution.error.as_ref().or(stop_error).map_or(0, least_of_error);
    let of_node = |node: &Node| {
        let output = node.output().map_or(0, least_of_payload);
        ENTRY_BYTES + node.path.as_str().len() + output
    };
    let of_compensation = |undone: &recoup_core::execution::Compensation| {
        let more = match &undone.state {
            CompensationStepState::Parked { error } => least_of_error(error),
            CompensationStepState::Skipped { reason } => least_of_text(reason),
            _ => 0,
        };
        ENTRY_BYTES + undone.step.as_str().len() + more
    };
    let of_open = |open: recoup_core::execution::Open<'_>| {
        PENDING_BYTES + open.task.last_error.as_ref().map_or(0, least_of_error)
    };
    let listing = &steps.listing;
    let attempts = execution.open_attempts().filter(|open| listing.lists_attempt(open));
    own + least_of_warnings(execution)
        + steps.parallels.iter().map(parallel::least).sum::<usize>()
        + listing.least()
        + execution.steps().filter(|node| listing.lists(node)).map(of_node).sum::<usize>()
        + listing.compensations().map(of_compensation).sum::<usize>()
        + attempts.map(of_open).sum::<usize>()
}

fn of_execution(execution: &Execution, steps: &Steps<'_>) -> Inline {
    inline(execution.id, execution.sequence, least(execution, steps))
}

/// Everything that is known about an execution.
pub fn info(snapshot: &Snapshot, now: Timestamp) -> v1::ExecutionInfo {
    let steps = Steps::of(&snapshot.state, Some(&snapshot.plan));
    let mut inline = of_execution(&snapshot.state, &steps);
    // Pending attempts come first, because the details of a heartbeat are not stored anywhere else.
    let pending_attempts = pending(snapshot, now, &steps.listing, &mut inline);
    v1::ExecutionInfo {
        pending_attempts,
        quarantine: snapshot.quarantine.as_ref().map(|row| {
            let released = row.released.as_ref();
            v1::QuarantineInfo {
                released_at: released.map(|released| time::timestamp(released.at)),
                release_reason: released.map_or(String::new(), |released| released.reason.clone()),
                ..quarantine(&row.quarantine)
            }
        }),
        ..of_state(&snapshot.state, &steps, &mut inline)
    }
}

/// What is known about an execution in quarantine: its history as far as it folds, together with its index
/// row, which may be more recent.
pub fn partial(partial: &PartialExecution) -> v1::ExecutionInfo {
    let indexed = listed(&partial.listed);
    let Some(state) = &partial.state else {
        return indexed;
    };
    let steps = Steps::of(state, None);
    let folded = of_state(state, &steps, &mut of_execution(state, &steps));
    v1::ExecutionInfo {
        state: indexed.state,
        phase: indexed.phase,
        compensation_state: indexed.compensation_state,
        run: indexed.run,
        ended_at: indexed.ended_at,
        error: folded.error.clone().or(indexed.error),
        quarantined: indexed.quarantined,
        quarantine: indexed.quarantine,
        ..folded
    }
}

fn quarantine(quarantine: &Quarantine) -> v1::QuarantineInfo {
    v1::QuarantineInfo {
        reason: quarantine_reason(quarantine.reason).into(),
        detail: quarantine.detail.clone(),
        quarantined_at: Some(time::timestamp(quarantine.at)),
        ..v1::QuarantineInfo::default()
    }
}

/// Converts a state, without its pending attempts.
fn of_state(execution: &Execution, steps: &Steps<'_>, inline: &mut Inline) -> v1::ExecutionInfo {
    let stop_error = execution.stop.as_ref().map(|stop| &stop.error);
    let error = execution.error.as_ref().or(stop_error).map(|error| inline.error(error));
    let input = Some(inline.payload(&execution.input));
    let output = execution.output.as_ref().map(|output| inline.payload(output));
    let completed_steps = completed(execution, &steps.listing, inline);
    let compensations = steps.listing.compensations().map(|own| compensation(own, inline));
    let compensations = compensations.collect();
    let parallels = steps.parallels.iter().map(|begun| parallel::to_proto(begun, inline));
    let parallels = parallels.collect();
    let loops = steps.listing.to_proto(inline);
    v1::ExecutionInfo {
        execution_id: execution.id.to_string(),
        execution_key: execution.key.clone().unwrap_or_default(),
        namespace: execution.namespace.as_str().to_owned(),
        workflow: execution.workflow.as_str().to_owned(),
        workflow_version: execution.version,
        state: state(execution.state).into(),
        phase: phase(execution.phase).into(),
        compensation_state: compensation_state(execution.compensation).into(),
        run: execution.run,
        started_at: Some(time::timestamp(execution.started_at)),
        ended_at: execution.ended_at.map(time::timestamp),
        deadline: execution.deadline.map(time::timestamp),
        input,
        output,
        error,
        failed_step: step_text(execution.stop.as_ref().and_then(|stop| stop.step.as_ref())),
        warnings: warnings(execution, inline),
        pending_attempts: Vec::new(),
        compensations,
        completed_steps,
        reason: execution.cancel_reason.clone().unwrap_or_default(),
        quarantined: false,
        traceparent: execution.trace.traceparent.clone(),
        quarantine: None,
        parallels,
        loops,
    }
}

/// The number of the last attempt that a task may have; 0 if no limit is known. `before` attempts were made
/// before a person asked for a retry, and the attempts of the policy come on top of them.
pub fn max_attempts(plan: &recoup_core::plan::Plan, path: &StepPath, before: u32) -> u32 {
    let policy = plan.task(path).and_then(|task| task.retry.max_attempts());
    policy.map_or(0, |max| max.saturating_add(before))
}

fn pending(
    snapshot: &Snapshot,
    now: Timestamp,
    listing: &Listing<'_>,
    inline: &mut Inline,
) -> Vec<v1::PendingAttempt> {
    let execution = &*snapshot.state;
    let convert = |open: recoup_core::execution::Open<'_>| {
        let task_id = execution.task_id(&open);
        let live = snapshot.live.iter().find(|live| live.task == task_id);
        let started = open.attempt.started.as_ref();
        let waits = open.attempt.scheduled_at > now;
        let attempt_state = match (live.is_some() || started.is_some(), waits) {
            (true, _) => v1::AttemptState::Running,
            (false, true) => v1::AttemptState::Waiting,
            (false, false) => v1::AttemptState::Scheduled,
        };
        let worker = live.map(|live| &live.worker).or(started.map(|started| &started.worker));
        let session = match live {
            Some(live) => live.session.as_ref(),
            None => started.map(|started| &started.session),
        };
        let plan = snapshot.plan.task(&open.path);
        let (step_path, compensation) = split(&open.path);
        v1::PendingAttempt {
            step_path,
            compensation,
            attempt: open.task.attempt,
            max_attempts: max_attempts(&snapshot.plan, &open.path, open.task.attempts_before),
            state: attempt_state.into(),
            task_type: plan.map(|task| task.task_type.clone()).unwrap_or_default(),
            queue: plan.map(|task| task.queue.clone()).unwrap_or_default(),
            worker: worker.cloned().unwrap_or_default(),
            session_id: session.cloned().unwrap_or_default(),
            scheduled_at: Some(time::timestamp(open.attempt.scheduled_at)),
            started_at: live
                .map(|live| live.since)
                .or(started.map(|started| started.at))
                .map(time::timestamp),
            next_retry_at: waits.then(|| time::timestamp(open.attempt.scheduled_at)),
            heartbeat_details: live
                .and_then(|live| live.details.as_ref())
                .and_then(|details| inline.transient(details)),
            last_error: open.task.last_error.as_ref().map(|error| inline.error(error)),
        }
    };
    let listed = execution.open_attempts().filter(|open| listing.lists_attempt(open));
    listed.map(convert).collect()
}

fn compensation(
    own: &recoup_core::execution::Compensation,
    inline: &mut Inline,
) -> v1::CompensationInfo {
    use CompensationStepState as Core;
    use v1::CompensationStepState as Proto;
    let (step_state, parked, skip_reason) = match &own.state {
        Core::Due => (Proto::Due, None, ""),
        Core::Running => (Proto::Running, None, ""),
        Core::Done { .. } => (Proto::Done, None, ""),
        Core::Parked { error } => (Proto::Parked, Some(error), ""),
        Core::Skipped { reason } => (Proto::Skipped, None, reason.as_str()),
    };
    v1::CompensationInfo {
        step_path: own.step.as_str().to_owned(),
        state: step_state.into(),
        outcome: step_outcome(own.outcome).into(),
        error: parked.map(|error| inline.error(error)),
        skip_reason: inline.text(skip_reason),
    }
}

fn completed(
    execution: &Execution,
    listing: &Listing<'_>,
    inline: &mut Inline,
) -> Vec<v1::CompletedStep> {
    let mut nodes: Vec<_> = execution
        .steps()
        // Only tasks have effects.
        .filter(|node| node.task().is_some() && listing.lists(node))
        .filter_map(|node| match &node.state {
            NodeState::Completed { output } => {
                Some((node, CompensationOutcome::Completed, Some(output)))
            }
            _ if node.task().is_some_and(|task| task.unknown) => {
                Some((node, CompensationOutcome::Unknown, None))
            }
            _ => None,
        })
        .collect();
    nodes.sort_by_key(|(node, ..)| node.closing);
    let is_undone = |node: &Node| {
        execution
            .compensation_of(&node.path)
            .is_some_and(|own| matches!(own.state, CompensationStepState::Done { .. }))
    };
    let convert = |(node, outcome, output): (&Node, _, Option<&_>)| v1::CompletedStep {
        step_path: node.path.as_str().to_owned(),
        outcome: step_outcome(outcome).into(),
        output: output.map(|output| inline.payload(output)),
        compensated: is_undone(node),
    };
    nodes.into_iter().map(convert).collect()
}

/// Converts an entry of a list.
pub fn listed(listed: &Listed) -> v1::ExecutionInfo {
    let index = &listed.index;
    let error = index.error_type.as_ref().filter(|error_type| !error_type.is_empty());
    v1::ExecutionInfo {
        execution_id: listed.execution.to_string(),
        execution_key: index.key.clone().unwrap_or_default(),
        namespace: index.namespace.as_str().to_owned(),
        workflow: index.workflow.as_str().to_owned(),
        workflow_version: index.version,
        state: index.state.known().map_or(v1::ExecutionState::Unspecified, state).into(),
        phase: index.phase.known().map_or(v1::ExecutionPhase::Unspecified, phase).into(),
        compensation_state: index
            .compensation
            .known()
            .map_or(v1::CompensationState::Unspecified, compensation_state)
            .into(),
        run: index.run,
        started_at: Some(time::timestamp(index.started_at)),
        ended_at: index.ended_at.map(time::timestamp),
        error: error
            .map(|error_type| v1::Error { r#type: error_type.clone(), ..v1::Error::default() }),
        quarantined: listed.quarantine.is_some(),
        quarantine: listed.quarantine.as_ref().map(quarantine),
        ..v1::ExecutionInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use recoup_store::{IndexRow, Named};

    use super::*;

    #[test]
    fn every_state_has_the_same_name_in_core_and_proto() {
        for own in State::ALL {
            assert_eq!(state_from(state(own)), Some(own));
            assert_eq!(state(own).as_str_name(), format!("EXECUTION_STATE_{own}"));
        }
        assert_eq!(state_from(v1::ExecutionState::Unspecified), None);
    }

    #[test]
    fn values_known_only_to_a_newer_server_are_reported_as_unspecified() {
        let unknown = || "HIBERNATING".to_owned();
        let row = |quarantine| Listed {
            execution: ExecutionId(uuid::Uuid::nil()),
            index: IndexRow {
                format: 9,
                namespace: "default".into(),
                workflow: "order".into(),
                version: 1,
                key: None,
                state: Named::Unknown(unknown()),
                phase: Named::Unknown(unknown()),
                compensation: Named::Unknown(unknown()),
                run: 1,
                error_type: None,
                started_at: Timestamp::default(),
                ended_at: None,
                wake_at: None,
            },
            quarantine,
        };
        let (detail, at) = (unknown(), Timestamp::default());
        let quarantine = Quarantine { reason: QuarantineReason::Unknown, detail, at };
        let info = listed(&row(Some(quarantine)));
        assert_eq!(info.state(), v1::ExecutionState::Unspecified);
        assert_eq!(info.phase(), v1::ExecutionPhase::Unspecified);
        assert_eq!(info.compensation_state(), v1::CompensationState::Unspecified);
        let quarantine = info.quarantine.expect("it is in quarantine");
        assert_eq!(quarantine.reason(), v1::QuarantineReason::Unspecified);
    }

    #[test]
    fn unset_key_policies_use_the_defaults_of_core() {
        assert_eq!(on_running(v1::OnRunning::Unspecified), None);
        assert_eq!(OnRunning::default(), OnRunning::Reject);
        assert_eq!(on_ended(v1::OnEnded::Unspecified), None);
        assert_eq!(OnEnded::default(), OnEnded::Allow);
        assert_eq!(on_ended(v1::OnEnded::AllowAfterFailure), Some(OnEnded::AllowAfterFailure));
    }
}
