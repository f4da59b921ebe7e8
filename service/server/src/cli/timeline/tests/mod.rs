//! Whole timelines as they are printed, and the events that the tests of each module use.

mod branches;
mod items;
mod layout;
mod model;
mod words;

use recoup_proto::v1::history_entry::Event;
use recoup_proto::v1::{
    AttemptOutcome, AttemptState, CompensationInfo, CompensationStepState, DueCompensation, Error,
    ExecutionState, PendingAttempt, RetryDecision, RetryReason, RetryVerdict, StepOutcome, StepRef,
    StopCause,
};
use recoup_proto::{Duration, Timestamp};

use super::*;

/// The time that is `millis` after the start of the execution.
fn at(millis: i64) -> Option<Timestamp> {
    let nanos = i32::try_from(millis % 1_000 * 1_000_000).expect("below a second");
    Some(Timestamp { seconds: 1_790_000_000 + millis / 1_000, nanos })
}

fn step(path: &str, compensation: bool) -> Option<StepRef> {
    Some(StepRef { step_path: path.to_owned(), compensation })
}

fn error(error_type: &str, message: &str) -> Option<Error> {
    Some(Error { r#type: error_type.into(), message: message.into(), ..Error::default() })
}

fn json(text: &str) -> Option<v1::Payload> {
    let content = Some(v1::payload::Content::Json(text.to_owned()));
    Some(v1::Payload { content, ..v1::Payload::default() })
}

fn history(events: Vec<(i64, Event)>) -> Vec<HistoryEntry> {
    let entry = |(millis, event)| HistoryEntry {
        time: at(millis),
        run: 1,
        event: Some(event),
        ..HistoryEntry::default()
    };
    events.into_iter().map(entry).collect()
}

/// Schedules an attempt with the attempt limit that the workflow of these tests sets for the step.
fn scheduled(path: &str, compensation: bool, attempt: u32, due: i64) -> Event {
    let max_attempts = match (path, compensation) {
        ("reserve", true) => 2,
        ("charge", false) => 3,
        _ => 5,
    };
    let step = step(path, compensation);
    Event::AttemptScheduled(v1::AttemptScheduled { step, attempt, due_at: at(due), max_attempts })
}

fn completed(path: &str, compensation: bool, attempt: u32) -> Event {
    Event::StepCompleted(v1::StepCompleted {
        step: step(path, compensation),
        attempt,
        output: None,
        worker: "worker-1".to_owned(),
    })
}

fn retry(delay_millis: u64, reason: RetryReason, rule_index: Option<u32>) -> RetryDecision {
    RetryDecision {
        verdict: RetryVerdict::Retry.into(),
        reason: reason.into(),
        rule_index,
        delay: Some(Duration::from(std::time::Duration::from_millis(delay_millis))),
        ..RetryDecision::default()
    }
}

fn stop(reason: RetryReason) -> RetryDecision {
    RetryDecision {
        verdict: RetryVerdict::Stop.into(),
        reason: reason.into(),
        ..RetryDecision::default()
    }
}

fn failed(path: &str, attempt: u32, error: Option<Error>, decision: RetryDecision) -> Event {
    Event::AttemptFailed(v1::AttemptFailed {
        step: step(path, false),
        attempt,
        error,
        decision: Some(decision),
        outcome: AttemptOutcome::Known.into(),
        worker: "worker-1".to_owned(),
    })
}

fn started() -> Event {
    Event::ExecutionStarted(v1::ExecutionStarted {
        workflow: "order".to_owned(),
        workflow_version: 3,
        ..v1::ExecutionStarted::default()
    })
}

fn execution(state: ExecutionState) -> ExecutionInfo {
    let mut execution = ExecutionInfo {
        execution_id: "e1".to_owned(),
        execution_key: "order-7".to_owned(),
        namespace: "default".to_owned(),
        workflow: "order".to_owned(),
        workflow_version: 3,
        run: 1,
        started_at: at(0),
        input: json("{\"id\":7}"),
        ..ExecutionInfo::default()
    };
    execution.set_state(state);
    execution
}

#[track_caller]
fn assert_renders(execution: &ExecutionInfo, events: Vec<(i64, Event)>, expected: &str) {
    let lines = render(execution, &history(events), Style::PLAIN);
    let text = lines.join("\n");
    assert_eq!(text.trim(), expected.trim(), "\n--- is\n{text}\n--- should be\n{expected}");
}

#[test]
fn timeline_shows_a_compensated_failure() {
    let mut execution = execution(ExecutionState::Failed);
    execution.ended_at = at(3_420);
    execution.set_compensation_state(CompensationState::Done);
    let due = vec![DueCompensation {
        step_path: "reserve".to_owned(),
        outcome: StepOutcome::Completed.into(),
    }];
    let declined = error("payment.card_declined", "the bank said no");
    let events = vec![
        (0, started()),
        (0, scheduled("reserve", false, 1, 0)),
        (12, completed("reserve", false, 1)),
        (12, scheduled("charge", false, 1, 12)),
        (
            1_204,
            failed(
                "charge",
                1,
                error("payment.rate_limited", "slow down"),
                retry(2_100, RetryReason::Rule, Some(0)),
            ),
        ),
        (1_204, scheduled("charge", false, 2, 3_304)),
        (3_310, failed("charge", 2, declined.clone(), stop(RetryReason::NonRetryableType))),
        (
            3_310,
            Event::StepFailed(v1::StepFailed {
                step: step("charge", false),
                error: declined.clone(),
            }),
        ),
        (
            3_310,
            Event::CompensationStarted(v1::CompensationStarted { due, cleanup_deadline: None }),
        ),
        (3_310, scheduled("reserve", true, 1, 3_310)),
        (3_400, completed("reserve", true, 1)),
        (3_400, Event::FinallyStarted(v1::FinallyStarted::default())),
        (3_400, scheduled("notify", false, 1, 3_400)),
        (3_420, completed("notify", false, 1)),
        (
            3_420,
            Event::ExecutionEnded(v1::ExecutionEnded {
                state: ExecutionState::Failed.into(),
                error: declined,
                reason: String::new(),
            }),
        ),
    ];
    assert_renders(
        &execution,
        events,
        "
✗ order v3  e1  FAILED after 3.4s, compensation DONE
  namespace default · key order-7 · started 2026-09-21T14:13:20Z
  input {\"id\":7}

  +0.000s  ● started                order v3
  +0.012s  ✓ reserve  1 of 5  12ms  by worker-1
  +1.204s  ↻ charge   1 of 3  1.2s  payment.rate_limited: slow down (on worker-1) → retry in 2.1s (rules[0], attempt 2 of 3)
  +3.310s  ✗ charge   2 of 3   6ms  payment.card_declined: the bank said no (on worker-1) → stopped: non-retryable type (caller's policy)

  compensation: reserve
  +3.400s  ↩ reserve  1 of 2  90ms  undone by worker-1

  finally
  +3.420s  ✓ notify   1 of 5  20ms  by worker-1

  +3.420s  ✗ FAILED                 payment.card_declined: the bank said no
",
    );
}

#[test]
fn timeline_shows_heartbeat_details_of_running_attempts() {
    let mut execution = execution(ExecutionState::Running);
    let running = |path: &str, details: Option<v1::Payload>| {
        let mut running = PendingAttempt {
            step_path: path.to_owned(),
            attempt: 1,
            worker: "w1".to_owned(),
            heartbeat_details: details,
            ..PendingAttempt::default()
        };
        running.set_state(AttemptState::Running);
        running
    };
    execution.pending_attempts =
        vec![running("pack", json("{\"done\":7,\n\"of\":9}")), running("ship", None)];
    assert_renders(
        &execution,
        vec![(0, started())],
        "
… order v3  e1  RUNNING
  namespace default · key order-7 · started 2026-09-21T14:13:20Z
  input {\"id\":7}

  +0.000s  ● started       order v3
           … pack     1    running on w1, says {\"done\":7, \"of\":9}
           … ship     1    running on w1
",
    );
}

#[test]
fn timeline_shows_until_when_a_retry_waits() {
    let mut execution = execution(ExecutionState::Running);
    let mut waiting = PendingAttempt {
        step_path: "charge".to_owned(),
        attempt: 2,
        max_attempts: 3,
        next_retry_at: at(2_500),
        ..PendingAttempt::default()
    };
    waiting.set_state(AttemptState::Waiting);
    execution.pending_attempts = vec![waiting];
    let mut lost = failed(
        "charge",
        1,
        error("recoup.worker_lost", "its session ended"),
        retry(1_000, RetryReason::Policy, None),
    );
    if let Event::AttemptFailed(failed) = &mut lost {
        failed.set_outcome(AttemptOutcome::Unknown);
    }
    let events = vec![(0, started()), (0, scheduled("charge", false, 1, 0)), (1_500, lost)];
    assert_renders(
        &execution,
        events,
        "
… order v3  e1  RUNNING
  namespace default · key order-7 · started 2026-09-21T14:13:20Z
  input {\"id\":7}

  +0.000s  ● started                order v3
  +1.500s  ↻ charge   1 of 3  1.5s  recoup.worker_lost: its session ended (on worker-1, outcome unknown) → retry in 1.0s (policy, attempt 2 of 3)
           … charge   2 of 3        waits until +2.5s
",
    );
}

#[test]
fn timeline_shows_the_commands_for_a_parked_compensation() {
    let mut execution = execution(ExecutionState::Cancelled);
    execution.ended_at = at(90_000);
    execution.set_compensation_state(CompensationState::Parked);
    let mut parked = CompensationInfo { step_path: "reserve".to_owned(), ..Default::default() };
    parked.set_state(CompensationStepState::Parked);
    execution.compensations = vec![parked];
    let due = vec![DueCompensation {
        step_path: "reserve".to_owned(),
        outcome: StepOutcome::Unknown.into(),
    }];
    let events = vec![
        (0, started()),
        (5, Event::CancelRequested(v1::CancelRequested { reason: "wrong order".to_owned() })),
        (6, Event::CompensationStarted(v1::CompensationStarted { due, cleanup_deadline: None })),
        (
            90_000,
            Event::CompensationParked(v1::CompensationParked {
                step_path: "reserve".to_owned(),
                error: error("stock.away", ""),
            }),
        ),
    ];
    assert_renders(
        &execution,
        events,
        "
■ order v3  e1  CANCELLED after 1m30s, compensation PARKED
  namespace default · key order-7 · started 2026-09-21T14:13:20Z
  input {\"id\":7}

   +0.000s  ● started               order v3
   +0.005s  ■ cancel requested      wrong order

  compensation: reserve (outcome unknown)
  +90.000s  ‼ reserve               stock.away → parked: a person must act

  parked, a person must act: reserve
    recoup compensation retry e1 --step reserve
    recoup compensation skip e1 reserve --reason \"…\"
",
    );
}

#[test]
fn compensation_retried_after_the_end_has_its_own_section() {
    let mut execution = execution(ExecutionState::Failed);
    execution.ended_at = at(100);
    execution.set_compensation_state(CompensationState::Done);
    let message = "x".repeat(4_000);
    let away = error("stock.away", &message);
    let undo = |attempt, decision| {
        let mut event = failed("reserve", attempt, away.clone(), decision);
        let Event::AttemptFailed(failed) = &mut event else { unreachable!("it was made one") };
        failed.step = step("reserve", true);
        event
    };
    let parked = Event::CompensationParked(v1::CompensationParked {
        step_path: "reserve".to_owned(),
        error: away.clone(),
    });
    let over = |state: CompensationState| {
        Event::CompensationEnded(v1::CompensationEnded { state: state.into() })
    };
    let end = Event::ExecutionEnded(v1::ExecutionEnded {
        state: ExecutionState::Failed.into(),
        error: away.clone(),
        reason: String::new(),
    });
    let again = Event::CompensationRetried(v1::CompensationRetried {
        step_path: "reserve".to_owned(),
        reason: "the stock is back".to_owned(),
    });
    let events = vec![
        (0, started()),
        (75, scheduled("reserve", true, 2, 75)),
        (80, undo(2, stop(RetryReason::AttemptsExhausted))),
        (80, parked),
        (80, over(CompensationState::Parked)),
        (80, Event::FinallyStarted(v1::FinallyStarted::default())),
        (80, scheduled("notify", false, 1, 80)),
        (90, completed("notify", false, 1)),
        (100, end),
        (200, again),
        (200, scheduled("reserve", true, 3, 200)),
        (210, undo(3, retry(208, RetryReason::Policy, None))),
        (420, completed("reserve", true, 4)),
        (420, over(CompensationState::Done)),
    ];
    let short = format!("{}…", "x".repeat(200));
    assert_renders(
        &execution,
        events,
        &format!(
            "
✗ order v3  e1  FAILED after 100ms, compensation DONE
  namespace default · key order-7 · started 2026-09-21T14:13:20Z
  input {{\"id\":7}}

  +0.000s  ● started                     order v3
  +0.080s  ✗ reserve       2 of 2   5ms  stock.away: {short} (on worker-1) → stopped: attempts used up
  +0.080s  ‼ reserve                     stock.away: {short} → parked: a person must act
  +0.080s  ‼ compensation                not all could be undone

  finally
  +0.090s  ✓ notify        1 of 5  10ms  by worker-1

  +0.100s  ✗ FAILED                      stock.away: {message}

  compensation, again
  +0.200s  ↻ reserve                     tried again: the stock is back
  +0.210s  ↻ reserve       3       10ms  stock.away: {short} (on worker-1) → retry in 208ms (policy, attempt 4)
  +0.420s  ↩ reserve       4             undone by worker-1
  +0.420s  ✓ compensation                nothing is left to undo
"
        ),
    );
}

#[test]
fn output_expression_error_has_its_own_line() {
    let execution = execution(ExecutionState::Compensating);
    let stopped = |step: &str| {
        let mut stopped = v1::RunStopped {
            error: error("recoup.expression", "no such key"),
            step_path: step.to_owned(),
            ..v1::RunStopped::default()
        };
        stopped.set_cause(StopCause::Failed);
        Event::RunStopped(stopped)
    };
    assert_renders(
        &execution,
        vec![(0, started()), (5, stopped("charge")), (5, stopped(""))],
        "
↩ order v3  e1  COMPENSATING
  namespace default · key order-7 · started 2026-09-21T14:13:20Z
  input {\"id\":7}

  +0.000s  ● started      order v3
  +0.005s  ✗ output       recoup.expression: no such key
",
    );
}

#[test]
fn first_three_parked_steps_are_listed_with_their_commands() {
    let mut execution = execution(ExecutionState::Failed);
    let parked = |step: &str| {
        let mut parked = CompensationInfo { step_path: step.to_owned(), ..Default::default() };
        parked.set_state(CompensationStepState::Parked);
        parked
    };
    execution.compensations = ["a", "b", "c"].map(parked).into();
    let lines = parked_lines(&execution, Style::PLAIN);
    assert_eq!(lines[0], "  parked, a person must act: a, b, c");
    assert_eq!(lines[5], "    recoup compensation retry e1 --step c");
    assert_eq!(lines.len(), 7);
    execution.compensations.push(parked("d"));
    let lines = parked_lines(&execution, Style::PLAIN);
    assert_eq!(lines[7..], ["    … or all of them: recoup compensation retry e1"]);
    execution.compensations.clear();
    assert_eq!(parked_lines(&execution, Style::PLAIN), [""; 0]);
}

#[test]
fn timeline_shows_a_quarantine_and_its_release() {
    let mut quarantine = v1::QuarantineInfo {
        detail: "transition 2 is missing, 3 follows".to_owned(),
        quarantined_at: at(0),
        ..v1::QuarantineInfo::default()
    };
    quarantine.set_reason(v1::QuarantineReason::HistoryGap);
    let mut execution = ExecutionInfo {
        quarantined: true,
        quarantine: Some(quarantine),
        ..execution(ExecutionState::Running)
    };
    assert_renders(
        &execution,
        vec![(0, started())],
        "
… order v3  e1  RUNNING
  namespace default · key order-7 · started 2026-09-21T14:13:20Z · quarantined
  input {\"id\":7}

  +0.000s  ● started      order v3

  quarantined, a person must act: HISTORY_GAP since 2026-09-21T14:13:20Z: transition 2 is missing, 3 follows
    recoup release e1 --reason \"…\"
",
    );
    execution.quarantined = false;
    let quarantine = execution.quarantine.as_mut().expect("it was set");
    quarantine.released_at = at(60_000);
    quarantine.release_reason = "put it back".to_owned();
    assert_renders(
        &execution,
        vec![(0, started())],
        "
… order v3  e1  RUNNING
  namespace default · key order-7 · started 2026-09-21T14:13:20Z
  input {\"id\":7}

  +0.000s  ● started      order v3

  was quarantined: HISTORY_GAP since 2026-09-21T14:13:20Z: transition 2 is missing, 3 follows; released 2026-09-21T14:14:20Z: put it back
",
    );
}
