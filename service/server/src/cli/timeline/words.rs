//! The words of a timeline: how a fact is phrased, which symbol and colour it has, and how a decision
//! reads.

use recoup_proto::v1::{
    self, AttemptOutcome, AttemptState, ExecutionState, PendingAttempt, RetryDecision, RetryReason,
    RetryVerdict, StepOutcome, StepRef,
};

use super::model::{Attempt, Lane, Section, What};
use crate::cli::text::{
    Paint, duration, error_line, one_line, payload_text, proto_nanos, state_name, whole_error_line,
};

/// The decision about an attempt inside a step that is being stopped.
pub const STOPPED_AROUND: &str = "stopped: a step around it was stopped";

/// How many steps the title of a compensation names.
const DUE_MAX: usize = 20;

/// A fact in words.
pub struct Words {
    pub symbol: char,
    pub paint: Paint,
    pub subject: String,
    pub text: String,
    /// The decision. Empty if there is none.
    pub decision: String,
}

impl Words {
    fn new(symbol: char, paint: Paint, subject: &str, text: &str) -> Self {
        // Reasons and the names of workers come from elsewhere and may contain anything.
        let (subject, text) = (subject.to_owned(), one_line(text));
        Self { symbol, paint, subject, text, decision: String::new() }
    }
}

pub fn words(what: &What<'_>) -> Words {
    match what {
        What::Started { event, limit } => {
            let mut text = format!("{} v{}", event.workflow, event.workflow_version);
            if let Some(limit) = limit {
                text.push_str(&format!(", at most {}", duration(*limit)));
            }
            Words::new('●', Paint::Plain, "started", &text)
        }
        What::StepSkipped(event) => {
            let text = "skipped: its condition is false";
            Words::new('↷', Paint::Dim, path(event.step.as_ref()), text)
        }
        What::AttemptFailed { event, next, is_stopped } => {
            attempt_failed(event, *next, *is_stopped)
        }
        What::AttemptWithdrawn(event) => {
            let text = "taken back before a worker received it";
            Words::new('⊘', Paint::Dim, path(event.step.as_ref()), text)
        }
        What::StepCompleted(event) => completed(event),
        What::StepFailed(event) => {
            let text = error_line(event.error.as_ref());
            Words::new('✗', Paint::Bad, path(event.step.as_ref()), &text)
        }
        What::StepIgnored(event) => {
            let text = if event.warning {
                "error ignored, the run continues with a warning"
            } else {
                "error ignored, the run continues"
            };
            Words::new('!', Paint::Warn, path(event.step.as_ref()), text)
        }
        What::CaseTaken(event) => {
            let text = match event.scope.as_str() {
                "default" => "takes its default".to_owned(),
                case => format!("takes {case}"),
            };
            Words::new('→', Paint::Dim, path(event.step.as_ref()), &text)
        }
        What::BlockCompleted(event) => Words::new('✓', Paint::Good, path(event.step.as_ref()), ""),
        What::ParallelStarted(event) => {
            Words::new('⇉', Paint::Dim, path(event.step.as_ref()), &parallel_started(event))
        }
        What::BranchFailed(event) => {
            let subject = format!("{}[{}]", path(event.step.as_ref()), event.branch);
            let text = format!("the branch failed with the error of {}", event.failed_step);
            Words::new('✗', Paint::Bad, &subject, &text)
        }
        What::ParallelCompleted(event) => {
            Words::new('✓', Paint::Good, path(event.step.as_ref()), "every branch completed")
        }
        What::LoopStarted { event, count } => {
            let text = loop_started(event, *count);
            Words::new('⟳', Paint::Dim, path(event.step.as_ref()), &text)
        }
        What::ItemFailed(event) => {
            let subject = item_path(event);
            let text = format!("the item failed with the error of {}", event.failed_step);
            Words::new('✗', Paint::Bad, &subject, &text)
        }
        What::LoopCompleted(event) => {
            Words::new('✓', Paint::Good, path(event.step.as_ref()), "every item completed")
        }
        What::MoreItems { of, count } => {
            let plural = if *count == 1 { "" } else { "s" };
            let text = format!("{} more item{plural}", grouped(*count));
            Words::new('…', Paint::Dim, of, &text)
        }
        What::BlockStopped { event, failed, grace } => {
            let why = match (&event.error, failed) {
                (None, Some(Lane::Branch(id))) => format!("branch `{id}` failed"),
                (None, Some(Lane::Item(key))) => format!("item `{key}` failed"),
                (error, _) => error_line(error.as_ref()),
            };
            let text = match grace {
                0 => format!("stopped, because {why}"),
                _ => format!(
                    "stopped, because {why}; live attempts have {} to end",
                    duration(*grace)
                ),
            };
            Words::new('■', Paint::Warn, path(event.step.as_ref()), &text)
        }
        What::ScopeReturned(event) => {
            let text = "returns: no further step of its block begins";
            Words::new('↵', Paint::Dim, path(event.step.as_ref()), text)
        }
        What::HandlerStarted(event) => {
            let text =
                format!("catch[{}] takes {}", event.handler, error_line(event.error.as_ref()));
            Words::new('↪', Paint::Warn, path(event.step.as_ref()), &text)
        }
        What::StepCaught(event) => {
            let text = "caught: the run continues with the output of the handler";
            Words::new('✓', Paint::Warn, path(event.step.as_ref()), text)
        }
        What::OutputFailed(event) => {
            Words::new('✗', Paint::Bad, "output", &error_line(event.error.as_ref()))
        }
        What::TimedOut(event) => {
            Words::new('✗', Paint::Bad, "timed out", &error_line(event.error.as_ref()))
        }
        What::HistoryFull(event) => {
            Words::new('✗', Paint::Bad, "history", &error_line(event.error.as_ref()))
        }
        What::Terminating => {
            Words::new('■', Paint::Warn, "terminating", "everything ends, in parts")
        }
        What::Cancelling => Words::new('■', Paint::Warn, "cancelling", "no further step begins"),
        What::CancelRequested(event) => {
            Words::new('■', Paint::Warn, "cancel requested", &event.reason)
        }
        What::CompensationParked(event) => {
            let text = error_line(event.error.as_ref());
            let decision = "parked: a person must act".to_owned();
            Words { decision, ..Words::new('‼', Paint::Bad, &event.step_path, &text) }
        }
        What::CompensationRetried(event) => {
            let text = match event.reason.as_str() {
                "" => "tried again".to_owned(),
                reason => format!("tried again: {reason}"),
            };
            Words::new('↻', Paint::Warn, &event.step_path, &text)
        }
        What::CompensationSkipped(event) => {
            let text = format!("skipped by a person: {}", event.reason);
            Words::new('↷', Paint::Warn, &event.step_path, &text)
        }
        What::CompensationIncomplete => {
            Words::new('‼', Paint::Bad, "compensation", "not all could be undone")
        }
        What::CompensationComplete => {
            Words::new('✓', Paint::Good, "compensation", "nothing is left to undo")
        }
        What::HandlerFailed(event) => {
            let text = "failed; the end state does not change";
            Words::new('!', Paint::Warn, path(event.step.as_ref()), text)
        }
        What::Ended(event) => {
            let (symbol, paint) = state_symbol(event.state());
            let text = match event.reason.as_str() {
                "" => whole_error_line(event.error.as_ref()),
                reason => reason.to_owned(),
            };
            Words::new(symbol, paint, &state_name(event.state()), &text)
        }
        What::Pending { attempt, retry_offset } => {
            let text = pending(attempt, *retry_offset);
            Words::new('…', Paint::Plain, &attempt.step_path, &text)
        }
    }
}

fn path(step: Option<&StepRef>) -> &str {
    step.map_or("", |step| &step.step_path)
}

fn parallel_started(event: &v1::ParallelStarted) -> String {
    let mut text = format!("begins {}", event.ready.join(", "));
    if event.concurrency > 0 {
        text.push_str(&format!(", at most {} at a time", event.concurrency));
    }
    text
}

/// The beginning of the paths inside an item, such as `lines[3]`.
fn item_path(event: &v1::ItemFailed) -> String {
    let around = path(event.step.as_ref());
    let inside = event.failed_step.strip_prefix(around).filter(|rest| rest.starts_with("["));
    match inside.and_then(|rest| rest.split_once("]")) {
        Some((key, _)) => format!("{around}{key}]"),
        // The error arose in the output of the item.
        None => format!("{around}[{}]", event.item),
    }
}

/// A number with a comma after every three digits: `9,970`.
fn grouped(number: usize) -> String {
    match number {
        0..1_000 => number.to_string(),
        _ => format!("{},{:03}", grouped(number / 1_000), number % 1_000),
    }
}

fn loop_started(event: &v1::LoopStarted, count: Option<u32>) -> String {
    let mut text = match count {
        Some(1) => "repeats its steps for 1 item".to_owned(),
        Some(count) => format!("repeats its steps for {} items", grouped(count as usize)),
        None => "repeats its steps for each item".to_owned(),
    };
    if event.concurrency > 1 {
        text.push_str(&format!(", at most {} at a time", event.concurrency));
    }
    text
}

fn attempt_failed(event: &v1::AttemptFailed, next: Attempt, is_stopped: bool) -> Words {
    let decision = event.decision.unwrap_or_default();
    let (symbol, paint) = match decision.verdict() {
        RetryVerdict::Retry => ('↻', Paint::Warn),
        RetryVerdict::Stop | RetryVerdict::Unspecified => ('✗', Paint::Bad),
    };
    let mut text = error_line(event.error.as_ref());
    let mut notes = Vec::new();
    if !event.worker.is_empty() {
        notes.push(format!("on {}", event.worker));
    }
    if event.outcome() == AttemptOutcome::Unknown {
        notes.push("outcome unknown".to_owned());
    }
    if !notes.is_empty() {
        text.push_str(&format!(" ({})", notes.join(", ")));
    }
    let decision = match decision.reason() {
        RetryReason::Cancelled if is_stopped => STOPPED_AROUND.to_owned(),
        _ => decision_text(&decision, &attempt_text(next), event.error.as_ref()),
    };
    Words { decision, ..Words::new(symbol, paint, path(event.step.as_ref()), &text) }
}

fn completed(event: &v1::StepCompleted) -> Words {
    let is_undone = event.step.as_ref().is_some_and(|step| step.compensation);
    let (symbol, undone) = if is_undone { ('↩', "undone") } else { ('✓', "") };
    let text = if event.worker.is_empty() {
        undone.to_owned()
    } else if undone.is_empty() {
        format!("by {}", event.worker)
    } else {
        format!("{undone} by {}", event.worker)
    };
    Words::new(symbol, Paint::Good, path(event.step.as_ref()), &text)
}

fn pending(pending: &PendingAttempt, retry_offset: Option<i128>) -> String {
    let mut text = match pending.state() {
        AttemptState::Running if pending.worker.is_empty() => "running".to_owned(),
        AttemptState::Running => format!("running on {}", pending.worker),
        AttemptState::Waiting => match retry_offset {
            Some(offset) => format!("waits until +{}", duration(offset)),
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
    text
}

/// The title of a section. Empty if it has none.
pub fn title(section: &Section<'_>) -> String {
    match section {
        Section::Run(run) => format!("run {run}"),
        Section::Compensation(started) => {
            let due = started.due.iter().map(|due| match due.outcome() {
                StepOutcome::Unknown => format!("{} (outcome unknown)", due.step_path),
                StepOutcome::Completed | StepOutcome::Unspecified => due.step_path.clone(),
            });
            let more = started.due.len().saturating_sub(DUE_MAX);
            let due = due.take(DUE_MAX).collect::<Vec<_>>().join(", ");
            match (due.is_empty(), more) {
                (true, _) => "compensation".to_owned(),
                (false, 0) => format!("compensation: {due}"),
                (false, more) => format!("compensation: {due}, and {} more", grouped(more)),
            }
        }
        Section::CompensationAgain => "compensation, again".to_owned(),
        Section::OnFailure => "on failure".to_owned(),
        Section::Finally => "finally".to_owned(),
        Section::End => String::new(),
    }
}

/// `2 of 5`, or `2` if no limit is known.
pub fn attempt_text(Attempt { number, max }: Attempt) -> String {
    match max {
        Some(max) => format!("{number} of {max}"),
        None => number.to_string(),
    }
}

pub fn state_symbol(state: ExecutionState) -> (char, Paint) {
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

/// A decision with its reason, in words: `retry in 2.1s (policy, attempt 2 of 5)`. A rule is named as in the paths
/// of fields, and so counted from 0, as are the cases of a switch and the handlers of a `catch`.
pub fn decision_text(
    decision: &RetryDecision,
    next_attempt: &str,
    error: Option<&v1::Error>,
) -> String {
    let rule =
        || decision.rule_index.map_or("a rule".to_owned(), |index| format!("rules[{index}]"));
    if decision.verdict() == RetryVerdict::Retry {
        let delay = decision.delay.map_or(0, |delay| proto_nanos(&delay));
        let why = match decision.reason() {
            _ if decision.delay_from_error => "asked for by the error".to_owned(),
            RetryReason::Rule => rule(),
            RetryReason::Category => "category".to_owned(),
            _ => "policy".to_owned(),
        };
        return format!("retry in {} ({why}, attempt {next_attempt})", duration(delay));
    }
    let why = match decision.reason() {
        // All ways of ending share this reason; the error tells which one it was.
        RetryReason::Cancelled => match error.map_or("", |error| &error.r#type) {
            "recoup.terminated" => "the execution was terminated".to_owned(),
            "recoup.timeout.execution" => "the execution timed out".to_owned(),
            _ => "the execution is being cancelled".to_owned(),
        },
        RetryReason::ScheduleTimeout => "the time for all attempts is used up".to_owned(),
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
