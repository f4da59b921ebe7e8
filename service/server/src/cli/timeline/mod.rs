//! The history of an execution for people, as aligned lines.
//!
//! [`model`] decides which facts of a history are shown, [`words`] how each is phrased, and [`layout`]
//! where it is placed. All three are pure: events in, lines out.

mod folding;
mod layout;
mod model;
mod words;

use recoup_proto::v1::{self, CompensationState, ExecutionInfo, HistoryEntry};

pub use self::words::{STOPPED_AROUND, decision_text, state_symbol};
use super::text::{
    Paint, Part, Style, duration, nanos_between, one_line, payload_text, state_name, timestamp,
};

/// How many parked compensations have their commands shown one by one.
const PARKED_MAX: usize = 3;

/// The whole timeline of an execution: a head, one line per attempt, the pending attempts, and how it
/// ended.
pub fn render(execution: &ExecutionInfo, history: &[HistoryEntry], style: Style) -> Vec<String> {
    let mut lines = head(execution, style);
    lines.push(String::new());
    lines.extend(layout::lines(&model::facts(execution, history), style));
    lines.extend(foot(execution, style));
    lines
}

fn head(execution: &ExecutionInfo, style: Style) -> Vec<String> {
    let (symbol, paint) = state_symbol(execution.state());
    let mut state = state_name(execution.state());
    let mut after = String::new();
    if let (Some(started), Some(ended)) = (&execution.started_at, &execution.ended_at) {
        after = format!("after {}", duration(nanos_between(started, ended)));
    }
    let compensation = execution.compensation_state();
    let mut undone = "";
    if !matches!(compensation, CompensationState::Unspecified | CompensationState::None) {
        undone = compensation.as_str_name().trim_start_matches("COMPENSATION_STATE_");
        let before = if after.is_empty() { &mut state } else { &mut after };
        before.push_str(", compensation");
    }
    let undone_paint =
        if compensation == CompensationState::Parked { Paint::Bad } else { Paint::Plain };
    let title = style.flow(&[
        Part::new(paint, symbol.to_string()),
        Part::adjacent(Paint::Bold, &execution.workflow),
        Part::adjacent(Paint::Plain, format!("v{}", execution.workflow_version)),
        Part::new(Paint::Plain, &execution.execution_id),
        Part::new(paint, state),
        Part::adjacent(Paint::Plain, after),
        Part::adjacent(undone_paint, undone),
    ]);
    let mut facts = vec![format!("namespace {}", execution.namespace)];
    if !execution.execution_key.is_empty() {
        facts.push(format!("key {}", one_line(&execution.execution_key)));
    }
    if execution.run > 1 {
        facts.push(format!("run {}", execution.run));
    }
    if let Some(started) = &execution.started_at {
        facts.push(format!("started {}", timestamp(started)));
    }
    if execution.quarantined {
        facts.push("quarantined".to_owned());
    }
    let mut lines = title;
    lines.push(style.paint(Paint::Dim, &format!("  {}", facts.join(" · "))));
    if execution.input.is_some() {
        let input = format!("  input {}", payload_text(execution.input.as_ref()));
        lines.push(style.paint(Paint::Dim, &input));
    }
    lines
}

fn foot(execution: &ExecutionInfo, style: Style) -> Vec<String> {
    let mut lines = Vec::new();
    if execution.output.is_some() {
        lines.push(String::new());
        lines.push(format!("  output {}", payload_text(execution.output.as_ref())));
    }
    let parked = parked_lines(execution, style);
    if !parked.is_empty() {
        lines.push(String::new());
        lines.extend(parked);
    }
    if let Some(quarantine) = &execution.quarantine {
        lines.push(String::new());
        lines.extend(quarantined(&execution.execution_id, quarantine, style));
    }
    lines
}

/// The parked compensations, and the commands with which a person can resolve them. Empty if none is
/// parked.
pub fn parked_lines(execution: &ExecutionInfo, style: Style) -> Vec<String> {
    let parked = execution
        .compensations
        .iter()
        .filter(|one| one.state() == v1::CompensationStepState::Parked)
        .map(|one| one.step_path.as_str())
        .collect::<Vec<_>>();
    if parked.is_empty() {
        return Vec::new();
    }
    let id = &execution.execution_id;
    let must = format!("  parked, a person must act: {}", parked.join(", "));
    let mut lines = vec![style.paint(Paint::Bad, &must)];
    for step in parked.iter().take(PARKED_MAX) {
        lines.push(format!("    recoup compensation retry {id} --step {step}"));
        lines.push(format!("    recoup compensation skip {id} {step} --reason \"…\""));
    }
    if parked.len() > PARKED_MAX {
        lines.push(format!("    … or all of them: recoup compensation retry {id}"));
    }
    lines
}

fn quarantined(id: &str, quarantine: &v1::QuarantineInfo, style: Style) -> Vec<String> {
    let reason = quarantine.reason().as_str_name().trim_start_matches("QUARANTINE_REASON_");
    let since = quarantine.quarantined_at.as_ref().map(timestamp).unwrap_or_default();
    let what = format!("{reason} since {since}: {}", one_line(&quarantine.detail));
    let Some(released) = &quarantine.released_at else {
        return vec![
            style.paint(Paint::Bad, &format!("  quarantined, a person must act: {what}")),
            format!("    recoup release {id} --reason \"…\""),
        ];
    };
    let (released, why) = (timestamp(released), one_line(&quarantine.release_reason));
    let past = format!("  was quarantined: {what}; released {released}: {why}");
    vec![style.paint(Paint::Dim, &past)]
}

#[cfg(test)]
mod tests;
