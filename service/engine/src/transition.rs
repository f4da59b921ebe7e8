//! Turns a decision into the rows that make it durable.

use recoup_core::event::Event;
use recoup_core::execution::Execution;
use recoup_core::failure_event::{FailureEvent, failure_events};
use recoup_core::plan::Plan;
use recoup_core::time::Timestamp;
use recoup_store::format::{Encoded, encode_failure_event};
use recoup_store::{FeedRow, IndexRow};

/// `format`: the highest format in the history.
pub fn index_row(state: &Execution, format: u16, wake_at: Option<Timestamp>) -> IndexRow {
    let error = state.error.as_ref().or(state.stop.as_ref().map(|stop| &stop.error));
    IndexRow {
        namespace: state.namespace.clone(),
        workflow: state.workflow.clone(),
        version: state.version,
        key: state.key.clone(),
        state: state.state.into(),
        phase: state.phase.into(),
        compensation: state.compensation.into(),
        run: state.run,
        error_type: error.map(|error| error.error_type.clone()),
        started_at: state.started_at,
        ended_at: state.ended_at,
        wake_at,
        format,
    }
}

/// Whether the index row of an execution must be written again.
pub fn index_differs(
    row: &IndexRow,
    state: &Execution,
    format: u16,
    wake_at: Option<Timestamp>,
) -> bool {
    row.format != format
        || row.state != state.state
        || row.phase != state.phase
        || row.compensation != state.compensation
        || row.run != state.run
        || row.ended_at != state.ended_at
        || row.wake_at != wake_at
}

pub fn feed_rows(state: &Execution, plan: &Plan, events: &[Event]) -> Vec<FeedRow> {
    failure_events(state, plan, events).iter().map(feed_row).collect()
}

pub fn feed_row(event: &FailureEvent) -> FeedRow {
    let subject = event.subject.as_ref();
    let Encoded { format, data } = encode_failure_event(event);
    FeedRow {
        id: event.id.clone(),
        namespace: event.namespace.clone(),
        kind: event.kind.into(),
        workflow: subject.map_or(String::new(), |subject| subject.workflow.to_string()),
        error_type: event.error.as_ref().map_or(String::new(), |error| error.error_type.clone()),
        execution: subject.map(|subject| subject.execution),
        fingerprint: event.fingerprint.clone(),
        at: event.at,
        format,
        data,
    }
}
