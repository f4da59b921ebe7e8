//! Tests of the failure path, row by row, and of properties that hold for any sequence of commands.

#[path = "decide_blocks_tests.rs"]
mod blocks;
#[path = "decide_bounds_tests.rs"]
mod bounds;
#[path = "decide_budget_tests.rs"]
mod budget;
#[path = "decide_rig.rs"]
mod rig;

use std::time::Duration;

use self::rig::{Rig, start_with};
use super::due::can_advance;
use super::{Decided, Decider};
use crate::command::{
    AttemptTimeout, Command, Rejection, RequestId, StartBasis, StartExecution, TaskId,
};
use crate::decide::next_wake;
use crate::definition::{
    Block, Compensate, Defaults, Delivery, OnError, Step, StepKind, Task, Timeouts, Workflow,
};
use crate::error::{TaskError, builtin};
use crate::event::{BLOCKS, Event, FirstAttempt, PayloadSource, TERSE};
use crate::evolve::{Transition, fold};
use crate::execution::{
    CompensationOutcome, CompensationState, Counters, Execution, NodeState, Part, Phase, State,
    TraceContext,
};
use crate::failure_event::{FailureKind, failure_events};
use crate::id::{ExecutionId, StepId, StepPath};
use crate::payload::Payload;
use crate::plan::Plan;
use crate::retry::{Limits, Reason, RetryPolicy, Schedule, Verdict};
use crate::time::Timestamp;

const SECOND: Duration = Duration::from_secs(1);

fn step(id: &str, max_attempts: u32) -> Step {
    let retry = RetryPolicy {
        schedule: Some(Schedule::Constant { interval: SECOND }),
        jitter: Some(0.0),
        limits: Limits { max_attempts: Some(max_attempts), max_duration: None },
        ..RetryPolicy::default()
    };
    Step {
        id: StepId::from(id),
        description: String::new(),
        kind: StepKind::Task(Task { task_type: id.into(), ..Task::default() }),
        when: None,
        retry: Some(retry.clone()),
        timeout: None,
        catch: Vec::new(),
        on_error: OnError::Fail,
        allow_warning: false,
        compensate: Some(Compensate {
            task: Task { task_type: format!("undo_{id}"), ..Task::default() },
            retry: Some(retry),
            only_completed: false,
        }),
    }
}

fn workflow(steps: Vec<Step>) -> Workflow {
    Workflow {
        name: "order".into(),
        description: String::new(),
        defaults: Defaults::default(),
        steps: steps.into(),
        on_failure: Vec::new(),
        finally: Vec::new(),
        timeout: None,
        cleanup_timeout: None,
        cancel_grace: Some(10 * SECOND),
    }
}

fn finally(id: &str) -> Step {
    Step { compensate: None, ..step(id, 1) }
}

fn declined() -> TaskError {
    TaskError::new("payment.card_declined", "no")
}

fn final_error() -> TaskError {
    TaskError { non_retryable: Some(true), ..declined() }
}

#[test]
fn steps_run_in_order_and_the_last_output_is_the_result() {
    let mut rig = Rig::new(&workflow(vec![step("a", 1), step("b", 1)]));
    rig.complete("a");
    rig.complete("b");
    assert_eq!(rig.ended(), (State::Succeeded, CompensationState::None));
    assert_eq!(rig.state().output, Some(Payload::json("\"b\"")));
    assert!(rig.kinds.is_empty(), "a success writes no failure events");
}

#[test]
fn an_error_is_retried_by_policy_and_every_decision_is_recorded() {
    let mut rig = Rig::new(&workflow(vec![step("a", 3)]));
    rig.fail("a", declined());
    rig.fail("a", declined());
    let decisions: Vec<_> = rig
        .events
        .iter()
        .filter_map(|event| match event {
            Event::AttemptFailed(failed) => Some((failed.attempt, failed.decision)),
            _ => None,
        })
        .collect();
    assert_eq!(decisions.len(), 2);
    for (attempt, decision) in decisions {
        assert_eq!(decision.reason, Reason::Policy, "attempt {attempt}");
        assert!(matches!(decision.verdict, Verdict::Retry { delay, .. } if delay == SECOND));
    }
    rig.complete("a");
    assert_eq!(rig.ended().0, State::Succeeded);
    assert_eq!(rig.kinds, [FailureKind::AttemptFailed, FailureKind::AttemptFailed]);
}

#[test]
fn completed_steps_are_compensated_in_reverse_order() {
    let mut rig = Rig::new(&workflow(vec![step("a", 1), step("b", 1), step("c", 1)]));
    rig.complete("a");
    rig.complete("b");
    rig.fail("c", declined());
    assert_eq!(rig.state().state, State::Compensating);
    rig.complete("b/compensate");
    rig.complete("a/compensate");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
    assert_eq!(rig.state().error.as_ref().map(|e| &*e.error_type), Some("payment.card_declined"));
    let kinds = [
        FailureKind::StepFailed,
        FailureKind::CompensationStarted,
        FailureKind::CompensationDone,
        FailureKind::ExecutionFailed,
    ];
    assert_eq!(rig.kinds, kinds);
}

#[test]
fn step_with_unknown_outcome_is_compensated_unless_it_opts_out() {
    for only_completed in [false, true] {
        let mut charge = step("charge", 1);
        if let Some(compensate) = &mut charge.compensate {
            compensate.only_completed = only_completed;
        }
        let mut rig = Rig::new(&workflow(vec![charge]));
        rig.lose();
        if only_completed {
            assert_eq!(rig.ended(), (State::Failed, CompensationState::None));
            continue;
        }
        let outcome = rig.state().compensations()[0].outcome;
        assert_eq!(outcome, CompensationOutcome::Unknown);
        rig.complete("charge/compensate");
        assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
    }
}

#[test]
fn step_that_failed_with_a_reported_error_is_not_compensated() {
    let mut rig = Rig::new(&workflow(vec![step("charge", 1)]));
    rig.fail("charge", declined());
    assert_eq!(rig.ended(), (State::Failed, CompensationState::None));
}

#[test]
fn step_with_a_lost_attempt_is_compensated_even_if_a_later_one_fails() {
    let mut rig = Rig::new(&workflow(vec![step("charge", 2)]));
    rig.lose();
    rig.fail("charge", final_error());
    assert_eq!(rig.state().compensations().len(), 1);
}

#[test]
fn failed_compensation_is_parked_while_others_run_and_can_be_retried() {
    let mut rig = Rig::new(&workflow(vec![step("a", 1), step("b", 1), step("c", 1)]));
    rig.complete("a");
    rig.complete("b");
    rig.fail("c", declined());
    rig.fail("b/compensate", final_error());
    rig.complete("a/compensate");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Parked));
    assert!(rig.kinds.contains(&FailureKind::CompensationParked));
    assert!(!rig.kinds.contains(&FailureKind::CompensationDone));

    // An operator retries it: attempt numbers continue, and the retry policy starts afresh.
    let reason = "the bank is back".to_owned();
    let retry = Command::RetryCompensation { step: Some("b".into()), reason };
    rig.submit(retry.clone()).expect("it is parked");
    let says = |event: &Event| matches!(event, Event::CompensationRetried { reason, .. } if reason == "the bank is back");
    assert!(rig.events.iter().any(says), "the history keeps the reason");
    assert_eq!(rig.open().attempt, 2);
    assert!(rig.state().is_active(), "an ended execution is compensating again");
    rig.complete("b/compensate");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
    assert_eq!(rig.submit(retry), Err(Rejection::NotParked));
}

#[test]
fn a_parked_compensation_can_be_skipped() {
    let mut rig = Rig::new(&workflow(vec![step("a", 1), step("b", 1)]));
    rig.complete("a");
    rig.fail("b", declined());
    rig.fail("a/compensate", final_error());
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Parked));
    let skip = |step: &str| Command::SkipCompensation { step: step.into(), reason: "paid".into() };
    assert_eq!(rig.submit(skip("b")), Err(Rejection::NotParked));
    rig.submit(skip("a")).expect("it is parked");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
}

#[test]
fn tolerated_error_ends_in_warning_unless_the_step_allows_it() {
    for (allow_warning, ended) in [(false, State::Warning), (true, State::Succeeded)] {
        let tolerant = Step { on_error: OnError::Ignore, allow_warning, ..step("a", 1) };
        let mut rig = Rig::new(&workflow(vec![tolerant, step("b", 1)]));
        rig.fail("a", declined());
        rig.complete("b");
        assert_eq!(rig.ended().0, ended);
        assert!(rig.kinds.contains(&FailureKind::StepIgnored));
        assert_eq!(rig.kinds.contains(&FailureKind::ExecutionWarning), !allow_warning);
    }
}

#[test]
fn finally_runs_once_after_every_end_except_termination() {
    type Script = fn(&mut Rig);
    let table: [(&str, Script, State, bool); 5] = [
        ("success", |rig| rig.complete("a"), State::Succeeded, true),
        ("failure", |rig| rig.fail("a", declined()), State::Failed, true),
        (
            "timeout",
            |rig| {
                rig.wake();
                rig.wake();
                rig.complete("a/compensate");
            },
            State::TimedOut,
            true,
        ),
        (
            "cancel",
            |rig| {
                rig.submit(Command::CancelExecution { reason: "stop".into() }).expect("it runs");
                rig.complete("a");
                rig.complete("a/compensate");
            },
            State::Cancelled,
            true,
        ),
        (
            "termination",
            |rig| {
                rig.submit(terminate("stop")).expect("it runs");
            },
            State::Terminated,
            false,
        ),
    ];
    for (name, script, ended, runs) in table {
        let mut workflow = workflow(vec![step("a", 1)]);
        workflow.finally = vec![finally("tidy")];
        workflow.timeout = Some(60 * SECOND);
        let mut rig = Rig::new(&workflow);
        script(&mut rig);
        if runs {
            assert_eq!(rig.state().phase, Phase::Finally, "{name}");
            rig.complete("tidy");
        }
        assert_eq!(rig.ended().0, ended, "{name}");
        let times = rig.started().iter().filter(|path| *path == "tidy").count();
        assert_eq!(times, usize::from(runs), "{name}");
    }
}

#[test]
fn failed_finally_turns_success_into_warning_and_leaves_failure_unchanged() {
    for fails in [false, true] {
        let mut workflow = workflow(vec![step("a", 1)]);
        workflow.finally = vec![finally("tidy")];
        let mut rig = Rig::new(&workflow);
        if fails {
            rig.fail("a", declined())
        } else {
            rig.complete("a")
        }
        rig.fail("tidy", TaskError::new("mail.down", "no"));
        let expected = if fails { State::Failed } else { State::Warning };
        assert_eq!(rig.ended().0, expected);
        assert!(rig.kinds.contains(&FailureKind::HandlerFailed));
        if fails {
            let error = rig.state().error.as_ref().map(|error| &*error.error_type);
            assert_eq!(error, Some("payment.card_declined"));
        }
    }
}

#[test]
fn cancel_waits_for_the_live_attempt_and_compensates_it_if_it_succeeds() {
    let mut rig = Rig::new(&workflow(vec![step("a", 1), step("b", 1)]));
    rig.complete("a");
    let cancel = Command::CancelExecution { reason: "stop".into() };
    rig.submit(cancel.clone()).expect("it runs");
    rig.submit(cancel).expect("a repeated cancel changes nothing");
    assert_eq!(rig.state().state, State::Cancelling);
    rig.complete("b");
    rig.complete("b/compensate");
    rig.complete("a/compensate");
    assert_eq!(rig.ended(), (State::Cancelled, CompensationState::Done));
    assert_eq!(rig.kinds.last(), Some(&FailureKind::ExecutionCancelled));
}

#[test]
fn attempt_still_open_after_the_cancel_grace_has_an_unknown_outcome() {
    let mut rig = Rig::new(&workflow(vec![step("a", 5)]));
    rig.submit(Command::CancelExecution { reason: "stop".into() }).expect("it runs");
    let task = rig.open();
    rig.wake();
    assert_eq!(rig.state().compensations()[0].outcome, CompensationOutcome::Unknown);
    let late = Command::CompleteTask { task, output: Payload::null(), worker: "w".into() };
    assert_eq!(rig.submit(late), Err(Rejection::AttemptClosed));
    rig.complete("a/compensate");
    assert_eq!(rig.ended(), (State::Cancelled, CompensationState::Done));
}

#[test]
fn cancelled_execution_ends_once_no_worker_holds_an_attempt() {
    let mut rig = Rig::new(&workflow(vec![step("a", 5)]));
    rig.fail("a", declined());
    rig.submit(Command::CancelExecution { reason: "stop".into() }).expect("it runs");
    assert_eq!(rig.ended(), (State::Cancelled, CompensationState::None));

    let mut rig = Rig::new(&workflow(vec![step("a", 5)]));
    let task = rig.open();
    let withdraw = Command::WithdrawTask { task };
    assert_eq!(rig.submit(withdraw.clone()), Err(Rejection::NothingDue));
    rig.submit(Command::CancelExecution { reason: "stop".into() }).expect("it runs");
    rig.submit(withdraw).expect("the run is ending");
    assert_eq!(rig.ended(), (State::Cancelled, CompensationState::None));
}

#[test]
fn cancel_waits_for_an_attempt_started_before_its_scheduled_time() {
    let started = |rig: &Rig| {
        let (task, at) = (rig.open(), rig.now + SECOND);
        let basis = StartBasis::Held;
        Command::RecordStart { task, worker: "w".into(), session: "s".into(), at, basis }
    };
    let mut rig = Rig::new(&workflow(vec![step("a", 5)]));
    rig.fail("a", declined());
    let start = started(&rig);
    rig.submit(start).expect("the attempt is open");
    let open = rig.state().open_attempts().next().map(|open| open.attempt.scheduled_at);
    assert!(open.is_some_and(|at| at > rig.now), "this clock has not reached its scheduled time");
    rig.submit(Command::CancelExecution { reason: "stop".into() }).expect("it runs");
    assert_eq!(rig.state().state, State::Cancelling);
    rig.complete("a");
    rig.complete("a/compensate");
    assert_eq!(rig.ended(), (State::Cancelled, CompensationState::Done));
}

#[test]
fn a_cancel_during_the_cleanup_is_recorded_and_changes_nothing() {
    let mut rig = Rig::new(&workflow(vec![step("a", 1), step("b", 1)]));
    rig.complete("a");
    rig.fail("b", declined());
    rig.submit(Command::CancelExecution { reason: "stop".into() }).expect("it runs");
    rig.complete("a/compensate");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
    assert_eq!(rig.state().cancel_reason.as_deref(), Some("stop"));
}

fn terminate(reason: &str) -> Command {
    Command::TerminateExecution { reason: reason.to_owned(), unstarted: Vec::new() }
}

#[test]
fn termination_parks_no_compensation_for_an_attempt_no_worker_received() {
    let mut rig = Rig::new(&workflow(vec![step("a", 1), step("b", 1)]));
    let unstarted = vec![rig.open()];
    let command = Command::TerminateExecution { reason: "stop".into(), unstarted };
    rig.submit(command).expect("it runs");
    assert_eq!(rig.ended(), (State::Terminated, CompensationState::None));

    // A recorded start remains valid, even if the owner claims that no worker received the attempt.
    let mut rig = Rig::new(&workflow(vec![step("a", 1)]));
    let task = rig.open();
    let (worker, at) = ("w".to_owned(), rig.now);
    let session = String::new();
    let basis = StartBasis::Held;
    let started = Command::RecordStart { task: task.clone(), worker, session, at, basis };
    rig.submit(started).expect("it is open");
    let command = Command::TerminateExecution { reason: "stop".into(), unstarted: vec![task] };
    rig.submit(command).expect("it runs");
    assert_eq!(rig.ended(), (State::Terminated, CompensationState::Parked));
}

#[test]
fn termination_parks_all_compensations_that_are_due() {
    let mut rig = Rig::new(&workflow(vec![step("a", 1), step("b", 1)]));
    rig.complete("a");
    rig.submit(terminate("stop")).expect("it runs");
    assert_eq!(rig.ended(), (State::Terminated, CompensationState::Parked));
    assert_eq!(rig.state().compensations().len(), 2, "a completed, b may have run");
    assert!(rig.state().open_attempts().next().is_none());
    let again = rig.submit(terminate("again"));
    assert_eq!(again, Err(Rejection::ExecutionEnded(State::Terminated)));
    rig.submit(Command::RetryCompensation { step: None, reason: String::new() })
        .expect("two are parked");
    rig.complete("b/compensate");
    rig.complete("a/compensate");
    assert_eq!(rig.ended(), (State::Terminated, CompensationState::Done));
}

#[test]
fn compensation_retried_after_the_end_can_be_stopped_by_a_termination() {
    let mut rig = Rig::new(&workflow(vec![step("a", 1), step("b", 1), step("c", 1)]));
    rig.complete("a");
    rig.complete("b");
    rig.fail("c", final_error());
    rig.fail("b/compensate", final_error());
    rig.fail("a/compensate", final_error());
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Parked));
    let ended = Err(Rejection::ExecutionEnded(State::Failed));
    assert_eq!(rig.submit(terminate("nothing runs")), ended);

    let retry = || Command::RetryCompensation { step: None, reason: "the bank is back".into() };
    rig.submit(retry()).expect("both are parked");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Running));
    let cancel = Command::CancelExecution { reason: "wait".into() };
    assert_eq!(rig.submit(cancel), ended, "an ended execution cannot be cancelled");
    let (at, running) = (rig.events.len(), rig.open());
    rig.submit(terminate("it pays twice")).expect("a compensation runs");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Parked), "it stays FAILED");
    assert!(rig.state().open_attempts().next().is_none(), "its attempt is closed");
    let is_end = |event: &Event| matches!(event, Event::ExecutionEnded { .. });
    assert!(!rig.events[at..].iter().any(is_end), "it had ended before");
    let late = Command::CompleteTask { task: running, output: Payload::null(), worker: "w".into() };
    assert_eq!(rig.submit(late), Err(Rejection::AttemptClosed));
    assert_eq!(rig.submit(terminate("again")), ended);

    rig.submit(retry()).expect("both are parked again");
    rig.complete("b/compensate");
    rig.complete("a/compensate");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
}

#[test]
fn cleanup_timeout_parks_the_remaining_compensations() {
    let mut workflow = workflow(vec![step("a", 1), step("b", 1), step("c", 1)]);
    workflow.cleanup_timeout = Some(5 * SECOND);
    workflow.finally = vec![finally("tidy")];
    let mut rig = Rig::new(&workflow);
    rig.complete("a");
    rig.complete("b");
    rig.fail("c", declined());
    rig.wake();
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Parked));
    assert_eq!(rig.kinds.iter().filter(|k| **k == FailureKind::CompensationParked).count(), 2);
}

#[test]
fn timed_out_attempt_fails_and_is_retried_except_for_schedule_to_start() {
    for (timeout, possibly_started, error_type, retried) in [
        (AttemptTimeout::StartToClose, true, builtin::START_TO_CLOSE, true),
        (AttemptTimeout::Heartbeat, true, builtin::HEARTBEAT, true),
        (AttemptTimeout::ScheduleToStart, false, builtin::SCHEDULE_TO_START, false),
    ] {
        let mut rig = Rig::new(&workflow(vec![step("a", 2)]));
        let task = rig.open();
        let worker = "w".to_owned();
        rig.submit(Command::TimeOutTask { task, timeout, possibly_started, worker })
            .expect("the attempt is open");
        let failed = rig.events.iter().find_map(|event| match event {
            Event::AttemptFailed(failed) => Some(failed.clone()),
            _ => None,
        });
        let failed = failed.expect("it is recorded");
        assert_eq!(failed.error.error_type, error_type);
        assert_eq!(failed.decision.is_retry(), retried, "{error_type}");
        assert_eq!(rig.state().state.is_ended(), !retried);
    }
}

#[test]
fn schedule_to_close_spans_all_attempts() {
    let mut slow = step("a", 100);
    let task = slow.kind.task_mut().expect("it is a task");
    task.timeouts = Timeouts { schedule_to_close: Some(3 * SECOND), ..Timeouts::default() };
    let mut rig = Rig::new(&workflow(vec![slow]));
    rig.fail("a", declined());
    rig.wake();
    let error = rig.state().error.as_ref().or(rig.state().stop.as_ref().map(|stop| &stop.error));
    assert_eq!(error.map(|error| &*error.error_type), Some(builtin::SCHEDULE_TO_CLOSE));
}

#[test]
fn at_most_once_attempt_is_handed_over_once_and_never_retried_if_lost() {
    let mut once = step("a", 5);
    let task = once.kind.task_mut().expect("it is a task");
    task.delivery = Delivery::AtMostOnce;
    let mut rig = Rig::new(&workflow(vec![once]));
    let task = rig.open();
    let at = Timestamp::from_micros(1_000_000);
    let record = |session: &str, at, basis| Command::RecordStart {
        task: task.clone(),
        worker: "w".into(),
        session: session.into(),
        at,
        basis,
    };
    let hand_over = |unsent| StartBasis::HandOver { unsent };
    rig.submit(record("s", at, hand_over(None))).expect("no worker has it");
    rig.submit(record("s", at, hand_over(None))).expect("a repeated hand-over changes nothing");
    let later = at + SECOND;
    let refused = Err(Rejection::AttemptClosed);
    assert_eq!(rig.submit(record("t", at, StartBasis::Held)), refused);
    assert_eq!(rig.submit(record("t", later, hand_over(None))), refused);
    // The attempt is not handed over a second time, not even to the worker that holds it.
    assert_eq!(rig.submit(record("s", later, hand_over(None))), refused);
    assert_eq!(rig.submit(record("t", later, hand_over(Some(later)))), refused);
    // The attempt may be handed over to another session if its owner knows that the first hand-over never
    // left.
    rig.submit(record("t", later, hand_over(Some(at)))).expect("no worker has it");
    rig.submit(record("t", later + SECOND, StartBasis::Held)).expect("its worker holds it");
    assert_eq!(rig.submit(record("s", later, StartBasis::Held)), refused);
    rig.lose();
    let error = rig.state().stop.as_ref().map(|stop| &stop.error);
    assert_eq!(error.map(|error| &*error.error_type), Some(builtin::OUTCOME_UNKNOWN));
    let cause = error.and_then(|error| error.cause.as_deref());
    assert_eq!(cause.map(|error| &*error.error_type), Some(builtin::WORKER_LOST));
}

#[test]
fn expression_error_at_run_time_fails_the_execution_and_compensates() {
    let mut bad = step("b", 3);
    bad.when = Some("steps.a.output.missing > 1".into());
    let mut rig = Rig::new(&workflow(vec![step("a", 1), bad]));
    rig.complete("a");
    rig.complete("a/compensate");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
    let error = rig.state().error.as_ref().map(|error| &*error.error_type);
    assert_eq!(error, Some(builtin::EXPRESSION));
}

#[test]
fn step_is_skipped_if_its_condition_is_false() {
    let mut skipped = step("a", 1);
    skipped.when = Some("input.amount > 100".into());
    let mut rig = Rig::new(&workflow(vec![skipped, step("b", 1)]));
    assert!(matches!(rig.state().steps().next().map(|node| &node.state), Some(NodeState::Skipped)));
    rig.complete("b");
    assert_eq!(rig.ended().0, State::Succeeded);
}

#[test]
fn thousand_tolerated_failures_in_a_row_do_not_recurse_deeply() {
    let steps = (0..1000).map(|n| Step {
        on_error: OnError::Ignore,
        when: Some("input.missing == 1".into()),
        ..step(&format!("s{n}"), 1)
    });
    let mut rig = Rig::new(&workflow(steps.collect()));
    while !rig.state().state.is_ended() {
        assert_eq!(next_wake(rig.state(), &rig.plan), Some(rig.now), "the rest is due at once");
        rig.wake();
    }
    assert_eq!(rig.ended().0, State::Warning);
}

#[test]
fn repeated_request_id_has_no_effect_and_is_rejected_with_another_body() {
    let mut rig = Rig::new(&workflow(vec![step("a", 1)]));
    let cancel = || Command::CancelExecution { reason: "stop".into() };
    let request = |digest| RequestId { id: "r".into(), digest };
    rig.submit_as(cancel(), Some(&request(1))).expect("it runs");
    let events = rig.events.len();
    rig.submit_as(cancel(), Some(&request(1))).expect("the same again");
    assert_eq!(rig.events.len(), events);
    let other = rig.submit_as(cancel(), Some(&request(2)));
    assert_eq!(other, Err(Rejection::RequestIdReused));
}

#[test]
fn result_for_a_closed_future_or_foreign_attempt_is_rejected() {
    let mut rig = Rig::new(&workflow(vec![step("a", 3)]));
    let first = rig.open();
    rig.fail("a", declined());
    let complete =
        |task: TaskId| Command::CompleteTask { task, output: Payload::null(), worker: "w".into() };
    assert_eq!(rig.submit(complete(first.clone())), Err(Rejection::AttemptClosed));
    let future = TaskId { attempt: 9, ..first.clone() };
    assert_eq!(rig.submit(complete(future)), Err(Rejection::NoSuchAttempt));
    let foreign = TaskId { path: "zzz".into(), ..first };
    assert_eq!(rig.submit(complete(foreign)), Err(Rejection::NoSuchAttempt));
}

#[test]
fn repeated_error_report_is_accepted_and_changes_nothing() {
    let mut rig = Rig::new(&workflow(vec![step("a", 3)]));
    let report = |task: &TaskId, error: TaskError| Command::FailTask {
        task: task.clone(),
        error,
        worker: "w".into(),
    };
    let busy = TaskError::new("bank.busy", "later");
    let first = rig.open();
    rig.submit(report(&first, busy.clone())).expect("it is open");
    let events = rig.events.len();
    rig.submit(report(&first, busy.clone())).expect("a repeated report is accepted");
    assert_eq!(rig.events.len(), events, "the second attempt waits as before");
    let other = rig.submit(report(&first, TaskError::new("bank.closed", "")));
    assert_eq!(other, Err(Rejection::AttemptClosed), "a different error is not a repetition");

    let second = rig.open();
    rig.submit(report(&second, declined())).expect("it is open");
    let events = rig.events.len();
    rig.submit(report(&second, declined())).expect("a repeated report is accepted");
    assert_eq!(rig.events.len(), events);
    let stale = rig.submit(report(&first, busy));
    assert_eq!(stale, Err(Rejection::AttemptClosed), "two attempts have closed since");
}

#[test]
fn completed_compensation_rejects_a_different_result() {
    let mut rig = Rig::new(&workflow(vec![step("a", 1), step("b", 1)]));
    rig.complete("a");
    rig.fail("b", final_error());
    let task = rig.open();
    rig.complete("a/compensate");
    let report = |output: &'static str| Command::CompleteTask {
        task: task.clone(),
        output: Payload::json(output),
        worker: "another".into(),
    };
    assert_eq!(rig.submit(report("\"a/compensate\"")), Ok(()), "the same result again");
    assert_eq!(rig.submit(report("\"other\"")), Err(Rejection::AttemptClosed));
}

#[test]
fn result_of_an_earlier_run_is_rejected_even_if_the_current_run_has_the_same() {
    let mut rig = Rig::new(&workflow(vec![step("a", 1), step("b", 3)]));
    let a = rig.open();
    rig.complete("a");
    let b = rig.open();
    rig.fail("b", declined());
    // Make it look as if all this had happened in the second run.
    for state in [rig.state.as_deref_mut(), rig.folded.as_mut()] {
        state.expect("it was started").run = 2;
    }
    let complete = |run| Command::CompleteTask {
        task: TaskId { run, ..a.clone() },
        output: Payload::json("\"a\""),
        worker: "w".into(),
    };
    assert_eq!(rig.submit(complete(2)), Ok(()), "the same result again");
    assert_eq!(rig.submit(complete(1)), Err(Rejection::AttemptClosed));
    let fail = |run| Command::FailTask {
        task: TaskId { run, ..b.clone() },
        error: declined(),
        worker: "w".into(),
    };
    assert_eq!(rig.submit(fail(2)), Ok(()), "the same error again");
    assert_eq!(rig.submit(fail(1)), Err(Rejection::AttemptClosed));
}

#[test]
fn error_report_is_rejected_even_if_the_previous_attempt_had_the_same_error() {
    let mut rig = Rig::new(&workflow(vec![step("a", 3), step("b", 3)]));
    let busy = || TaskError::new("bank.busy", "later");
    let report = |task| Command::FailTask { task, error: busy(), worker: "w".into() };
    rig.fail("a", busy());
    let completed = rig.open();
    rig.complete("a");
    assert_eq!(rig.submit(report(completed)), Err(Rejection::AttemptClosed), "it succeeded");
    rig.fail("b", busy());
    let withdrawn = rig.open();
    rig.submit(Command::CancelExecution { reason: "stop".into() }).expect("it runs");
    assert_eq!(rig.submit(report(withdrawn)), Err(Rejection::AttemptClosed), "it never began");
}

#[path = "decide_property_tests.rs"]
mod properties;

#[test]
fn terse_history_repeats_neither_payloads_nor_first_attempts() {
    let plan = Plan::compile(&workflow(vec![step("a", 3), step("b", 3)]), 1).expect("valid");
    let now = Timestamp::from_micros(1_000_000);
    let input = Payload::json("{\"amount\":5}");
    let start = start_with(now, input.clone());
    let decide = |state: Option<Box<Execution>>, command| {
        // The format of an execution is fixed by its start; the later value has no effect.
        let format = if state.is_none() { TERSE } else { 1 };
        let mut decider = Decider::new(state, &plan, now, 42).starting_in(format);
        decider.decide(command, None).expect("it fits");
        let Decided { state, events } = decider.finish();
        (state.expect("it was started"), events)
    };
    let begun = |path: &str| Event::StepStarted {
        path: path.into(),
        generation: 0,
        input: PayloadSource::Input,
        first: Some(FirstAttempt { number: 1, at: now }),
    };
    let complete = |state: &Execution| {
        let task = state.task_id(&state.open_attempts().next().expect("an attempt is open"));
        let (output, worker) = (Payload::json("\"done\""), "w".to_owned());
        Command::CompleteTask { task, output, worker }
    };

    let (state, events) = decide(None, start);
    assert_eq!(events[1..], [begun("a")]);
    assert_eq!(state.task(&"a".into()).map(|task| &task.input), Some(&input));
    let command = complete(&state);
    let (state, events) = decide(Some(state), command);
    assert_eq!(events[1..], [begun("b")]);
    let command = complete(&state);
    let (state, events) = decide(Some(state), command);
    assert_eq!(events[1], Event::RunSucceeded { output: PayloadSource::Output("b".into()) });
    assert_eq!(state.output, Some(Payload::json("\"done\"")));
}
