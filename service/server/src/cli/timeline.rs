//! What happened in an execution, for people: its history as aligned lines. Pure: events in, lines out.

use std::collections::{HashMap, HashSet};

use recoup_proto::v1::history_entry::Event;
use recoup_proto::v1::{
    self, AttemptOutcome, AttemptState, CompensationState, ExecutionInfo, ExecutionState,
    HistoryEntry, RetryDecision, RetryReason, RetryVerdict, StepOutcome, StepRef, StopCause,
};

use super::text::{
    Paint, Style, duration, error_line, nanos_between, one_line, payload_text, state_name,
    timestamp_nanos, whole_error_line,
};

/// How many attempts the policies of a workflow allow: history does not say it, the definition does.
#[derive(Default)]
pub struct AttemptsMax {
    by_step: HashMap<(String, bool), Option<u32>>,
}

/// Type of the error of a run whose history has reached its limit.
const HISTORY_TOO_LONG: &str = "recoup.history_too_long";
/// Of so many parked compensations the commands are told.
const PARKED_MAX: usize = 3;

/// The built-in policy's, where none is named.
const ATTEMPTS_MAX: u32 = 5;

impl AttemptsMax {
    pub fn of(definition: &v1::WorkflowDefinition) -> Self {
        let default = definition.defaults.as_ref().and_then(|defaults| defaults.retry.as_ref());
        let max = |policy: Option<&v1::RetryPolicy>| match policy.or(default) {
            Some(policy) if policy.max_attempts.is_some() => policy.max_attempts,
            Some(policy) if policy.max_duration.is_some() => None,
            _ => Some(ATTEMPTS_MAX),
        };
        let mut by_step = HashMap::new();
        for step in definition.steps.iter().chain(&definition.finally) {
            by_step.insert((step.id.clone(), false), max(step.retry.as_ref()));
            if let Some(compensate) = &step.compensate {
                by_step.insert((step.id.clone(), true), max(compensate.retry.as_ref()));
            }
        }
        Self { by_step }
    }

    fn text(&self, step: &StepRef, attempt: u32) -> String {
        match self.by_step.get(&(step.step_path.clone(), step.compensation)) {
            Some(Some(max)) => format!("{attempt} of {max}"),
            Some(None) | None => attempt.to_string(),
        }
    }
}

/// One line of the timeline before it is aligned.
struct Row {
    offset: String,
    symbol: char,
    paint: Paint,
    subject: String,
    attempt: String,
    took: String,
    text: String,
    /// What was decided; set off from the text by an arrow.
    decision: String,
}

enum Line {
    Row(Row),
    Section(String),
}

/// The whole timeline of an execution: a head, a line per attempt, what is pending, how it ended.
pub fn render(
    execution: &ExecutionInfo,
    history: &[HistoryEntry],
    attempts_max: &AttemptsMax,
    style: Style,
) -> Vec<String> {
    let mut lines = head(execution, style);
    lines.push(String::new());
    lines.extend(rows(execution, history, attempts_max, style));
    lines.extend(foot(execution, style));
    lines
}

fn rows(
    execution: &ExecutionInfo,
    history: &[HistoryEntry],
    attempts_max: &AttemptsMax,
    style: Style,
) -> Vec<String> {
    let mut timeline = Timeline::new(execution, attempts_max);
    for entry in history {
        timeline.entry(entry);
    }
    for pending in &execution.pending_attempts {
        timeline.pending(pending);
    }
    align(&timeline.lines, style)
}

fn head(execution: &ExecutionInfo, style: Style) -> Vec<String> {
    let (symbol, paint) = state_symbol(execution.state());
    let mut title = format!(
        "{} {} v{}  {}  {}",
        style.paint(paint, &symbol.to_string()),
        style.paint(Paint::Bold, &execution.workflow),
        execution.workflow_version,
        execution.execution_id,
        style.paint(paint, &state_name(execution.state())),
    );
    if let (Some(started), Some(ended)) = (&execution.started_at, &execution.ended_at) {
        title.push_str(&format!(" after {}", duration(nanos_between(started, ended))));
    }
    let compensation = execution.compensation_state();
    if !matches!(compensation, CompensationState::Unspecified | CompensationState::None) {
        let name = compensation.as_str_name().trim_start_matches("COMPENSATION_STATE_");
        let paint =
            if compensation == CompensationState::Parked { Paint::Bad } else { Paint::Plain };
        title.push_str(&format!(", compensation {}", style.paint(paint, name)));
    }
    let mut facts = vec![format!("namespace {}", execution.namespace)];
    if !execution.execution_key.is_empty() {
        facts.push(format!("key {}", one_line(&execution.execution_key)));
    }
    if execution.run > 1 {
        facts.push(format!("run {}", execution.run));
    }
    if let Some(started) = &execution.started_at {
        facts.push(format!("started {}", super::text::timestamp(started)));
    }
    if execution.quarantined {
        facts.push("quarantined".to_owned());
    }
    let mut lines = vec![title, style.paint(Paint::Dim, &format!("  {}", facts.join(" · ")))];
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

/// Which compensations are parked, and the commands for a person who acts. Empty if none is.
pub(super) fn parked_lines(execution: &ExecutionInfo, style: Style) -> Vec<String> {
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
    let since = quarantine.quarantined_at.as_ref().map(super::text::timestamp).unwrap_or_default();
    let what = format!("{reason} since {since}: {}", one_line(&quarantine.detail));
    let Some(released) = &quarantine.released_at else {
        return vec![
            style.paint(Paint::Bad, &format!("  quarantined, a person must act: {what}")),
            format!("    recoup release {id} --reason \"…\""),
        ];
    };
    let (released, why) = (super::text::timestamp(released), one_line(&quarantine.release_reason));
    let past = format!("  was quarantined: {what}; released {released}: {why}");
    vec![style.paint(Paint::Dim, &past)]
}

pub(super) fn state_symbol(state: ExecutionState) -> (char, Paint) {
    match state {
        ExecutionState::Succeeded => ('✓', Paint::Good),
        ExecutionState::Warning => ('!', Paint::Warn),
        ExecutionState::Failed | ExecutionState::TimedOut => ('✗', Paint::Bad),
        ExecutionState::Cancelled | ExecutionState::Terminated => ('■', Paint::Warn),
        ExecutionState::Compensating | ExecutionState::Cancelling => ('↩', Paint::Warn),
        ExecutionState::Paused => ('‖', Paint::Warn),
        ExecutionState::Retrying => ('↻', Paint::Warn),
        ExecutionState::Running | ExecutionState::Unspecified => ('…', Paint::Plain),
    }
}

struct Timeline<'a> {
    attempts_max: &'a AttemptsMax,
    started_at: i128,
    lines: Vec<Line>,
    /// When the open attempt of a step (or of its compensation) could begin.
    due_at: HashMap<(String, bool), i128>,
    /// Steps whose last attempt failed: their failure is told by that line.
    told: HashSet<(String, bool)>,
    /// Steps whose compensation a person had tried again.
    retried: HashSet<String>,
    /// The execution's end has been told.
    ended: bool,
    /// What a person did after it is being told.
    is_again: bool,
    run: u32,
}

fn key(step: &StepRef) -> (String, bool) {
    (step.step_path.clone(), step.compensation)
}

impl<'a> Timeline<'a> {
    fn new(execution: &ExecutionInfo, attempts_max: &'a AttemptsMax) -> Self {
        Self {
            attempts_max,
            started_at: execution.started_at.as_ref().map_or(0, timestamp_nanos),
            lines: Vec::new(),
            due_at: HashMap::new(),
            told: HashSet::new(),
            retried: HashSet::new(),
            ended: false,
            is_again: false,
            run: 1,
        }
    }

    fn entry(&mut self, entry: &HistoryEntry) {
        let at = entry.time.as_ref().map_or(self.started_at, timestamp_nanos);
        if entry.run > self.run {
            self.ended = false;
            self.run = entry.run;
            self.lines.push(Line::Section(format!("run {}", entry.run)));
        }
        // Cases may be added: an event of a later version is none here.
        let Some(event) = &entry.event else { return };
        match event {
            Event::ExecutionStarted(started) => {
                let mut text = format!("{} v{}", started.workflow, started.workflow_version);
                if let Some(deadline) = &started.deadline {
                    let limit = duration(timestamp_nanos(deadline) - at);
                    text.push_str(&format!(", at most {limit}"));
                }
                self.row(at, '●', Paint::Plain, "started", &text);
            }
            Event::StepStarted(_) | Event::RunSucceeded(_) | Event::RequestRecorded(_) => {}
            Event::StepSkipped(skipped) => {
                let step = skipped.step.clone().unwrap_or_default();
                self.row(at, '↷', Paint::Dim, &step.step_path, "skipped: its condition is false");
            }
            Event::AttemptScheduled(scheduled) => {
                let due = scheduled.due_at.as_ref().map_or(at, timestamp_nanos);
                self.due_at.insert(key(&scheduled.step.clone().unwrap_or_default()), due);
            }
            Event::AttemptStarted(started) => {
                // The hand-over is a better beginning than the schedule.
                if let Some(begun) = &started.started_at {
                    let step = key(&started.step.clone().unwrap_or_default());
                    self.due_at.insert(step, timestamp_nanos(begun));
                }
            }
            Event::AttemptFailed(failed) => self.attempt_failed(at, failed),
            Event::AttemptWithdrawn(withdrawn) => {
                let step = withdrawn.step.clone().unwrap_or_default();
                let text = "taken back before a worker had it";
                self.attempt_row(at, '⊘', Paint::Dim, &step, withdrawn.attempt, text, "");
            }
            Event::StepCompleted(completed) => {
                let step = completed.step.clone().unwrap_or_default();
                let (symbol, undone) =
                    if step.compensation { ('↩', "undone") } else { ('✓', "") };
                let by = if completed.worker.is_empty() {
                    undone.to_owned()
                } else if undone.is_empty() {
                    format!("by {}", completed.worker)
                } else {
                    format!("{undone} by {}", completed.worker)
                };
                self.attempt_row(at, symbol, Paint::Good, &step, completed.attempt, &by, "");
            }
            Event::StepFailed(failed) => {
                let step = failed.step.clone().unwrap_or_default();
                if !self.told.contains(&key(&step)) {
                    let text = error_line(failed.error.as_ref());
                    self.row(at, '✗', Paint::Bad, &step.step_path, &text);
                }
            }
            Event::StepIgnored(ignored) => {
                let step = ignored.step.clone().unwrap_or_default();
                let text = if ignored.warning {
                    "error tolerated, the run goes on with a warning"
                } else {
                    "error tolerated, the run goes on"
                };
                self.row(at, '!', Paint::Warn, &step.step_path, text);
            }
            Event::RunStopped(stopped) => self.run_stopped(at, stopped),
            Event::CancelRequested(cancel) => {
                self.row(at, '■', Paint::Warn, "cancel requested", &cancel.reason);
            }
            Event::CompensationStarted(started) => self.compensation_started(started),
            Event::CompensationParked(parked) => {
                let text = error_line(parked.error.as_ref());
                let decision = "parked: a person must act";
                self.push(Row {
                    offset: self.offset(at),
                    symbol: '‼',
                    paint: Paint::Bad,
                    subject: parked.step_path.clone(),
                    attempt: String::new(),
                    took: String::new(),
                    text,
                    decision: decision.to_owned(),
                });
            }
            Event::CompensationRetried(retried) => {
                self.again();
                self.retried.insert(retried.step_path.clone());
                let text = match retried.reason.as_str() {
                    "" => "tried again".to_owned(),
                    reason => format!("tried again: {reason}"),
                };
                self.row(at, '↻', Paint::Warn, &retried.step_path, &text);
            }
            Event::CompensationSkipped(skipped) => {
                self.again();
                let text = format!("skipped by a person: {}", skipped.reason);
                self.row(at, '↷', Paint::Warn, &skipped.step_path, &text);
            }
            Event::CompensationEnded(ended) => {
                if ended.state() == CompensationState::Parked {
                    self.row(at, '‼', Paint::Bad, "compensation", "not all could be undone");
                } else if self.is_again {
                    self.row(at, '✓', Paint::Good, "compensation", "nothing is left to undo");
                }
                self.is_again = false;
            }
            Event::FinallyStarted(_) => self.lines.push(Line::Section("finally".to_owned())),
            Event::HandlerFailed(failed) => {
                let step = failed.step.clone().unwrap_or_default();
                self.row(at, '!', Paint::Warn, &step.step_path, "failed; the end state stays");
            }
            Event::ExecutionEnded(ended) => {
                self.lines.push(Line::Section(String::new()));
                let (symbol, paint) = state_symbol(ended.state());
                self.ended = true;
                let mut text = whole_error_line(ended.error.as_ref());
                if !ended.reason.is_empty() {
                    text = ended.reason.clone();
                }
                self.row(at, symbol, paint, &state_name(ended.state()), &text);
            }
        }
    }

    fn attempt_failed(&mut self, at: i128, failed: &v1::AttemptFailed) {
        let step = failed.step.clone().unwrap_or_default();
        let decision = failed.decision.unwrap_or_default();
        let (symbol, paint) = match decision.verdict() {
            RetryVerdict::Retry => ('↻', Paint::Warn),
            RetryVerdict::Stop | RetryVerdict::Unspecified => ('✗', Paint::Bad),
        };
        let mut text = error_line(failed.error.as_ref());
        if failed.outcome() == AttemptOutcome::Unknown {
            text.push_str(" (outcome unknown)");
        }
        let next = self.attempt_text(&step, failed.attempt + 1);
        let decision = decision_text(&decision, &next, failed.error.as_ref());
        self.attempt_row(at, symbol, paint, &step, failed.attempt, &text, &decision);
        self.told.insert(key(&step));
    }

    fn run_stopped(&mut self, at: i128, stopped: &v1::RunStopped) {
        match stopped.cause() {
            StopCause::Failed if stopped.step_path.is_empty() => {
                let error = stopped.error.as_ref();
                let is_full = error.is_some_and(|error| error.r#type == HISTORY_TOO_LONG);
                // Otherwise every step is done, and the output cannot be made.
                let title = if is_full { "history" } else { "output" };
                self.row(at, '✗', Paint::Bad, title, &error_line(error));
            }
            // The line of the failed step says it all.
            StopCause::Failed | StopCause::Unspecified => {}
            StopCause::TimedOut => {
                self.row(at, '✗', Paint::Bad, "timed out", &error_line(stopped.error.as_ref()));
            }
            StopCause::Cancelled => {
                self.row(at, '■', Paint::Warn, "cancelling", "no further step begins");
            }
            StopCause::Terminated => {
                self.row(at, '■', Paint::Warn, "terminating", "everything ends, in parts");
            }
        }
    }

    /// What a person has done about an execution that had ended stands apart from its end.
    fn again(&mut self) {
        if self.ended && !self.is_again {
            self.is_again = true;
            self.lines.push(Line::Section("compensation, again".to_owned()));
        }
    }

    /// A person's retry begins anew with the attempts that the policy allows, but the numbers go on.
    fn attempt_text(&self, step: &StepRef, attempt: u32) -> String {
        if step.compensation && self.retried.contains(&step.step_path) {
            return attempt.to_string();
        }
        self.attempts_max.text(step, attempt)
    }

    fn compensation_started(&mut self, started: &v1::CompensationStarted) {
        let due = started.due.iter().map(|due| match due.outcome() {
            StepOutcome::Unknown => format!("{} (outcome unknown)", due.step_path),
            StepOutcome::Completed | StepOutcome::Unspecified => due.step_path.clone(),
        });
        let due = due.collect::<Vec<_>>().join(", ");
        let title =
            if due.is_empty() { "compensation".to_owned() } else { format!("compensation: {due}") };
        self.lines.push(Line::Section(title));
    }

    fn pending(&mut self, pending: &v1::PendingAttempt) {
        let step =
            StepRef { step_path: pending.step_path.clone(), compensation: pending.compensation };
        let mut text = match pending.state() {
            AttemptState::Running if pending.worker.is_empty() => "running".to_owned(),
            AttemptState::Running => format!("running on {}", pending.worker),
            AttemptState::Waiting => match &pending.next_retry_at {
                Some(next) => {
                    let next = timestamp_nanos(next) - self.started_at;
                    format!("waits until +{}", duration(next))
                }
                None => "waits".to_owned(),
            },
            AttemptState::Scheduled | AttemptState::Unspecified => {
                format!("waits for a worker of queue {}", pending.queue)
            }
        };
        if pending.heartbeat_details.is_some() {
            let details = payload_text(pending.heartbeat_details.as_ref());
            text.push_str(&format!(", says {details}"));
        }
        let max = match pending.max_attempts {
            0 => pending.attempt.to_string(),
            _ if step.compensation && self.retried.contains(&step.step_path) => {
                pending.attempt.to_string()
            }
            max => format!("{} of {max}", pending.attempt),
        };
        self.push(Row {
            offset: String::new(),
            symbol: '…',
            paint: Paint::Plain,
            subject: step.step_path,
            attempt: max,
            took: String::new(),
            text,
            decision: String::new(),
        });
    }

    fn row(&mut self, at: i128, symbol: char, paint: Paint, subject: &str, text: &str) {
        self.push(Row {
            offset: self.offset(at),
            symbol,
            paint,
            subject: subject.to_owned(),
            attempt: String::new(),
            took: String::new(),
            text: text.to_owned(),
            decision: String::new(),
        });
    }

    #[expect(clippy::too_many_arguments, reason = "the columns of a line")]
    fn attempt_row(
        &mut self,
        at: i128,
        symbol: char,
        paint: Paint,
        step: &StepRef,
        attempt: u32,
        text: &str,
        decision: &str,
    ) {
        let took = self.due_at.remove(&key(step)).map(|due| duration((at - due).max(0)));
        self.push(Row {
            offset: self.offset(at),
            symbol,
            paint,
            subject: step.step_path.clone(),
            attempt: self.attempt_text(step, attempt),
            took: took.unwrap_or_default(),
            text: text.to_owned(),
            decision: decision.to_owned(),
        });
    }

    fn offset(&self, at: i128) -> String {
        let nanos = (at - self.started_at).max(0);
        if nanos < 1_000 * 1_000_000_000 {
            let millis = (nanos + 500_000) / 1_000_000;
            format!("+{}.{:03}s", millis / 1_000, millis % 1_000)
        } else {
            format!("+{}", duration(nanos))
        }
    }

    fn push(&mut self, row: Row) {
        // Reasons and names of workers are whatever others wrote.
        self.lines.push(Line::Row(Row { text: one_line(&row.text), ..row }));
    }
}

/// What was decided and why, in words: `retry in 2.1s (policy, attempt 2 of 5)`.
pub(super) fn decision_text(
    decision: &RetryDecision,
    next_attempt: &str,
    error: Option<&v1::Error>,
) -> String {
    let rule =
        || decision.rule_index.map_or("rule".to_owned(), |index| format!("rule {}", index + 1));
    if decision.verdict() == RetryVerdict::Retry {
        let delay = decision.delay.map_or(0, |delay| super::text::proto_nanos(&delay));
        let why = match decision.reason() {
            _ if decision.delay_from_error => "asked for by the error".to_owned(),
            RetryReason::Rule => rule(),
            RetryReason::Category => "category".to_owned(),
            _ => "policy".to_owned(),
        };
        return format!("retry in {} ({why}, attempt {next_attempt})", duration(delay));
    }
    let why = match decision.reason() {
        // One reason for every way of ending: the error says which.
        RetryReason::Cancelled => match error.map_or("", |error| &error.r#type) {
            "recoup.terminated" => "the execution was terminated".to_owned(),
            "recoup.timeout.execution" => "the time of the execution is up".to_owned(),
            _ => "the execution is being cancelled".to_owned(),
        },
        RetryReason::ScheduleTimeout => "its time over all attempts is up".to_owned(),
        RetryReason::NonRetryable => "non-retryable (the error says so)".to_owned(),
        RetryReason::NonRetryableType => "non-retryable type (caller's policy)".to_owned(),
        RetryReason::NotOnAllowList => "type is not on the allow-list (caller's policy)".to_owned(),
        RetryReason::Permanent => "permanent (the error says so)".to_owned(),
        RetryReason::AttemptsExhausted => "attempts used up".to_owned(),
        RetryReason::DurationExhausted => "retry time used up".to_owned(),
        RetryReason::RuleAttemptsExhausted => format!("attempts of {} used up", rule()),
        RetryReason::RuleDurationExhausted => format!("retry time of {} used up", rule()),
        RetryReason::Deadline => "the next attempt would come after a deadline".to_owned(),
        RetryReason::Unspecified
        | RetryReason::Rule
        | RetryReason::Category
        | RetryReason::Policy => "no reason given".to_owned(),
    };
    format!("stopped: {why}")
}

fn align(lines: &[Line], style: Style) -> Vec<String> {
    let rows = || {
        lines.iter().filter_map(|line| match line {
            Line::Row(row) => Some(row),
            Line::Section(_) => None,
        })
    };
    let width = |cell: fn(&Row) -> &String| {
        rows().map(|row| cell(row).chars().count()).max().unwrap_or_default()
    };
    let offset = width(|row| &row.offset);
    let subject = width(|row| &row.subject);
    let attempt = width(|row| &row.attempt);
    let took = width(|row| &row.took);
    let mut aligned = Vec::with_capacity(lines.len());
    for line in lines {
        match line {
            Line::Section(title) if title.is_empty() => aligned.push(String::new()),
            Line::Section(title) => {
                aligned.push(String::new());
                aligned.push(style.paint(Paint::Bold, &format!("  {title}")));
            }
            Line::Row(row) => {
                let mut text = format!(
                    "  {}  {} {}  {}  {}  {}",
                    style.paint(Paint::Dim, &format!("{:>offset$}", row.offset)),
                    style.paint(row.paint, &row.symbol.to_string()),
                    style.paint(row.paint, &format!("{:<subject$}", row.subject)),
                    format_args!("{:<attempt$}", row.attempt),
                    style.paint(Paint::Dim, &format!("{:>took$}", row.took)),
                    row.text,
                );
                if !row.decision.is_empty() {
                    let arrow = if row.text.is_empty() { "" } else { " " };
                    text.push_str(&format!(
                        "{arrow}{}",
                        style.paint(Paint::Dim, &format!("→ {}", row.decision))
                    ));
                }
                aligned.push(text.trim_end().to_owned());
            }
        }
    }
    aligned
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
