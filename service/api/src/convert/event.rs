//! Converts the entries of a history.

use recoup_core::event::{AttemptOutcome, Event, PayloadSource, StopCause};
use recoup_core::execution::Part;
use recoup_core::id::{ItemKey, StepPath};
use recoup_core::plan::Plan;
use recoup_core::time::Timestamp;
use recoup_proto::v1::{self, history_entry::Event as Proto};

use super::path::{split, step_ref};
use super::{decision, error, execution, payload, time};

super::to_proto!(attempt_outcome: AttemptOutcome => v1::AttemptOutcome: Known Unknown NotStarted);
super::to_proto!(stop_cause: StopCause => v1::StopCause: Failed TimedOut Cancelled Terminated);

/// The history entries of a transition. A step whose start also schedules its first attempt is one event
/// but becomes two entries: users need not know which histories store it as one.
///
/// `plan` is the plan of the execution, if it can be read. It supplies what the events leave to the
/// definition.
pub fn to_proto(
    sequence: u64,
    at: Timestamp,
    events: &[Event],
    plan: Option<&Plan>,
) -> impl Iterator<Item = v1::HistoryEntry> {
    let told = events.iter().flat_map(move |event| {
        let first = match event {
            Event::StepStarted { .. } => event.scheduled(),
            _ => None,
        };
        let first = first.map(|(path, attempt, due)| scheduled(path, attempt, due, plan));
        std::iter::once(convert(event, plan)).chain(first)
    });
    told.zip(0..).map(move |(event, index)| v1::HistoryEntry {
        sequence,
        index,
        time: Some(time::timestamp(at)),
        // Retries of whole runs are not implemented yet, so every event belongs to the first run.
        run: 1,
        event: Some(event),
    })
}

/// The payload, or the path of the step whose output it is.
fn source(source: &PayloadSource) -> (Option<v1::Payload>, String) {
    match source {
        PayloadSource::Inline(payload) => (Some(payload::to_proto(payload)), String::new()),
        PayloadSource::Input => (None, String::new()),
        PayloadSource::Output(step) => (None, step.as_str().to_owned()),
    }
}

fn scheduled(path: &StepPath, attempt: u32, due: Timestamp, plan: Option<&Plan>) -> Proto {
    Proto::AttemptScheduled(v1::AttemptScheduled {
        step: Some(step_ref(path)),
        attempt,
        due_at: Some(time::timestamp(due)),
        max_attempts: plan.map_or(0, |plan| execution::max_attempts(plan, path, 0)),
    })
}

fn convert(event: &Event, plan: Option<&Plan>) -> Proto {
    match event {
        Event::ExecutionStarted(started) => Proto::ExecutionStarted(v1::ExecutionStarted {
            namespace: started.namespace.as_str().to_owned(),
            workflow: started.workflow.as_str().to_owned(),
            workflow_version: started.version,
            execution_key: started.key.clone().unwrap_or_default(),
            input: Some(payload::to_proto(&started.input)),
            deadline: started.deadline.map(time::timestamp),
            traceparent: started.trace.traceparent.clone(),
            tracestate: started.trace.tracestate.clone(),
        }),
        Event::RequestRecorded { request_id, .. } => {
            Proto::RequestRecorded(v1::RequestRecorded { request_id: request_id.clone() })
        }
        Event::StepStarted { path, generation, input, .. } => {
            let (input, input_from) = source(input);
            Proto::StepStarted(v1::StepStarted {
                step: Some(step_ref(path)),
                input,
                generation: *generation,
                input_from,
            })
        }
        Event::StepSkipped { path } => {
            Proto::StepSkipped(v1::StepSkipped { step: Some(step_ref(path)) })
        }
        Event::AttemptScheduled { path, attempt, at } => scheduled(path, *attempt, *at, plan),
        Event::AttemptStarted { path, attempt, worker, session, at } => {
            Proto::AttemptStarted(v1::AttemptStarted {
                step: Some(step_ref(path)),
                attempt: *attempt,
                worker: worker.clone(),
                session_id: session.clone(),
                started_at: Some(time::timestamp(*at)),
            })
        }
        Event::AttemptFailed(failed) => Proto::AttemptFailed(v1::AttemptFailed {
            step: Some(step_ref(&failed.path)),
            attempt: failed.attempt,
            error: Some(error::to_proto(&failed.error)),
            decision: Some(decision::to_proto(&failed.decision)),
            outcome: attempt_outcome(failed.outcome).into(),
            worker: failed.worker.clone(),
        }),
        Event::AttemptWithdrawn { path, attempt } => {
            Proto::AttemptWithdrawn(v1::AttemptWithdrawn {
                step: Some(step_ref(path)),
                attempt: *attempt,
            })
        }
        Event::StepCompleted { path, attempt, output, worker } => {
            Proto::StepCompleted(v1::StepCompleted {
                step: Some(step_ref(path)),
                attempt: *attempt,
                output: Some(payload::to_proto(output)),
                worker: worker.clone(),
            })
        }
        Event::BlockStarted { path, generation, part, deadline } => {
            Proto::BlockStarted(v1::BlockStarted {
                step: Some(step_ref(path)),
                generation: *generation,
                scope: part.map(scope).unwrap_or_default(),
                deadline: deadline.map(time::timestamp),
            })
        }
        Event::BlockCompleted { path, output } => {
            let (output, output_from) = source(output);
            let step = Some(step_ref(path));
            Proto::BlockCompleted(v1::BlockCompleted { step, output, output_from })
        }
        Event::ScopeReturned { path, output } => {
            let (output, output_from) = source(output);
            let step = Some(step_ref(path));
            Proto::ScopeReturned(v1::ScopeReturned { step, output, output_from })
        }
        Event::ParallelStarted { path, generation, ready, concurrency, deadline } => {
            Proto::ParallelStarted(v1::ParallelStarted {
                step: Some(step_ref(path)),
                generation: *generation,
                ready: names(ready),
                concurrency: concurrency.unwrap_or_default(),
                deadline: deadline.map(time::timestamp),
            })
        }
        Event::BranchCompleted { path, branch, output, ready } => {
            let (output, output_from) = source(output);
            Proto::BranchCompleted(v1::BranchCompleted {
                step: Some(step_ref(path)),
                branch: branch.as_str().to_owned(),
                output,
                output_from,
                ready: names(ready),
            })
        }
        Event::BranchFailed { path, branch, error, origin } => {
            Proto::BranchFailed(v1::BranchFailed {
                step: Some(step_ref(path)),
                branch: branch.as_str().to_owned(),
                error: Some(error::to_proto(error)),
                failed_step: origin.as_str().to_owned(),
            })
        }
        Event::ParallelCompleted { path } => {
            Proto::ParallelCompleted(v1::ParallelCompleted { step: Some(step_ref(path)) })
        }
        Event::LoopStarted { path, generation, items, keys, concurrency, deadline } => {
            let (items, items_from) = source(items);
            Proto::LoopStarted(v1::LoopStarted {
                step: Some(step_ref(path)),
                generation: *generation,
                items,
                items_from,
                keys: keys.as_deref().map(names).unwrap_or_default(),
                concurrency: *concurrency,
                deadline: deadline.map(time::timestamp),
            })
        }
        Event::ItemCompleted { path, item, output } => {
            let (output, output_from) = source(output);
            let (step, item) = (Some(step_ref(path)), item.as_str().to_owned());
            Proto::ItemCompleted(v1::ItemCompleted { step, item, output, output_from })
        }
        Event::ItemFailed { path, item, error, origin } => Proto::ItemFailed(v1::ItemFailed {
            step: Some(step_ref(path)),
            item: item.as_str().to_owned(),
            error: Some(error::to_proto(error)),
            failed_step: origin.as_str().to_owned(),
        }),
        Event::LoopCompleted { path } => {
            Proto::LoopCompleted(v1::LoopCompleted { step: Some(step_ref(path)) })
        }
        Event::BlockStopped { path, error, grace_until } => Proto::BlockStopped(v1::BlockStopped {
            step: Some(step_ref(path)),
            error: error.as_ref().map(error::to_proto),
            grace_until: Some(time::timestamp(*grace_until)),
        }),
        Event::HandlerStarted { path, handler, error, origin } => {
            Proto::HandlerStarted(v1::HandlerStarted {
                step: Some(step_ref(path)),
                handler: *handler,
                error: Some(error::to_proto(error)),
                failed_step: origin.as_str().to_owned(),
            })
        }
        Event::StepCaught { path, output } => {
            let (output, output_from) = source(output);
            let step = Some(step_ref(path));
            Proto::StepCaught(v1::StepCaught { step, output, output_from })
        }
        other => convert_ending(other),
    }
}

fn names(ids: &[ItemKey]) -> Vec<String> {
    ids.iter().map(|id| id.as_str().to_owned()).collect()
}

/// The field of the definition that holds a list of steps.
fn scope(part: Part) -> String {
    match part {
        Part::Body => "steps".to_owned(),
        // ParallelStarted says which branches begin.
        Part::Branch => "branches".to_owned(),
        Part::Item => "steps".to_owned(),
        Part::Case(index) => format!("cases[{index}]"),
        Part::Default => "default".to_owned(),
        Part::Handler(index) => format!("catch[{index}]"),
    }
}

/// Converts the events of failing steps and ending runs.
fn convert_ending(event: &Event) -> Proto {
    match event {
        Event::StepFailed { path, error } => Proto::StepFailed(v1::StepFailed {
            step: Some(step_ref(path)),
            error: Some(error::to_proto(error)),
        }),
        Event::StepIgnored { path, error, warning } => Proto::StepIgnored(v1::StepIgnored {
            step: Some(step_ref(path)),
            error: Some(error::to_proto(error)),
            warning: *warning,
        }),
        Event::RunSucceeded { output } => {
            let (output, output_from) = source(output);
            Proto::RunSucceeded(v1::RunSucceeded { output, output_from })
        }
        Event::RunStopped { cause, error, step, grace_until, .. } => {
            Proto::RunStopped(v1::RunStopped {
                cause: stop_cause(*cause).into(),
                error: Some(error::to_proto(error)),
                step_path: step.as_ref().map(|step| step.as_str().to_owned()).unwrap_or_default(),
                grace_until: Some(time::timestamp(*grace_until)),
            })
        }
        Event::CancelRequested { reason } => {
            Proto::CancelRequested(v1::CancelRequested { reason: reason.clone() })
        }
        Event::CompensationStarted { due, cleanup_deadline } => {
            let due = due.iter().map(|due| v1::DueCompensation {
                step_path: due.step.as_str().to_owned(),
                outcome: execution::step_outcome(due.outcome).into(),
            });
            Proto::CompensationStarted(v1::CompensationStarted {
                due: due.collect(),
                cleanup_deadline: cleanup_deadline.map(time::timestamp),
            })
        }
        Event::CompensationParked { path, error } => {
            Proto::CompensationParked(v1::CompensationParked {
                step_path: split(path).0,
                error: Some(error::to_proto(error)),
            })
        }
        Event::CompensationRetried { path, reason } => {
            Proto::CompensationRetried(v1::CompensationRetried {
                step_path: split(path).0,
                reason: reason.clone(),
            })
        }
        Event::CompensationSkipped { path, reason } => {
            Proto::CompensationSkipped(v1::CompensationSkipped {
                step_path: split(path).0,
                reason: reason.clone(),
            })
        }
        Event::CompensationEnded { state } => Proto::CompensationEnded(v1::CompensationEnded {
            state: execution::compensation_state(*state).into(),
        }),
        Event::OnFailureStarted { cleanup_deadline } => {
            Proto::OnFailureStarted(v1::OnFailureStarted {
                cleanup_deadline: cleanup_deadline.map(time::timestamp),
            })
        }
        Event::FinallyStarted { cleanup_deadline } => Proto::FinallyStarted(v1::FinallyStarted {
            cleanup_deadline: cleanup_deadline.map(time::timestamp),
        }),
        Event::HandlerFailed { path, error } => Proto::HandlerFailed(v1::HandlerFailed {
            step: Some(step_ref(path)),
            error: Some(error::to_proto(error)),
        }),
        Event::ExecutionEnded { state, error } => Proto::ExecutionEnded(v1::ExecutionEnded {
            state: execution::state(*state).into(),
            error: error.as_ref().map(error::to_proto),
            reason: String::new(),
        }),
        Event::ExecutionStarted(_)
        | Event::RequestRecorded { .. }
        | Event::StepStarted { .. }
        | Event::StepSkipped { .. }
        | Event::AttemptScheduled { .. }
        | Event::AttemptStarted { .. }
        | Event::AttemptFailed(_)
        | Event::AttemptWithdrawn { .. }
        | Event::StepCompleted { .. }
        | Event::BlockStarted { .. }
        | Event::ParallelStarted { .. }
        | Event::BranchCompleted { .. }
        | Event::BranchFailed { .. }
        | Event::ParallelCompleted { .. }
        | Event::LoopStarted { .. }
        | Event::ItemCompleted { .. }
        | Event::ItemFailed { .. }
        | Event::LoopCompleted { .. }
        | Event::BlockStopped { .. }
        | Event::BlockCompleted { .. }
        | Event::ScopeReturned { .. }
        | Event::HandlerStarted { .. }
        | Event::StepCaught { .. } => unreachable!("converted by the caller"),
    }
}

#[cfg(test)]
mod tests {
    use recoup_core::error::TaskError;
    use recoup_core::event::FirstAttempt;
    use recoup_core::payload::Payload;

    use super::*;

    #[test]
    fn event_of_a_compensation_is_marked_as_such() {
        let path = StepPath::from("charge/compensate");
        let event = Event::StepFailed { path, error: TaskError::new("a", "b") };
        let entry = to_proto(7, Timestamp::from_micros(1), &[event], None).next();
        let entry = entry.expect("an entry per event");
        assert_eq!((entry.sequence, entry.index), (7, 0));
        let Some(Proto::StepFailed(failed)) = entry.event else { panic!("{entry:?}") };
        assert!(failed.step.is_some_and(|step| step.compensation));
    }

    #[test]
    fn step_start_with_its_first_attempt_is_shown_as_two_history_entries() {
        let (path, at) = (StepPath::from("charge"), Timestamp::from_micros(5));
        let skipped = Event::StepSkipped { path: StepPath::from("other") };
        let told = |began: &[Event]| {
            let events = [began, std::slice::from_ref(&skipped)].concat();
            to_proto(7, Timestamp::from_micros(1), &events, None).collect::<Vec<_>>()
        };
        let begin = |first| Event::StepStarted {
            path: path.clone(),
            generation: 0,
            input: PayloadSource::Inline(Payload::null()),
            first,
        };
        let terse = told(&[begin(Some(FirstAttempt { number: 1, at }))]);
        let scheduled = Event::AttemptScheduled { path: path.clone(), attempt: 1, at };
        assert_eq!(terse, told(&[begin(None), scheduled]));
        assert_eq!(terse.iter().map(|entry| entry.index).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
