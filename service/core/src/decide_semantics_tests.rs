//! What `docs/failure-semantics.md` promises to the authors of workers and workflows, where no other test shows it.

use super::*;
use crate::command::Command::{CancelExecution, CompleteTask, FailTask, LoseWorker, TimeOutTask};

/// An end of an attempt that no result of success has ended.
type End = fn(TaskId) -> Command;

fn worker() -> String {
    "w".to_owned()
}

fn reports(task: TaskId) -> Command {
    FailTask { task, error: declined(), worker: worker() }
}

fn is_lost(task: TaskId) -> Command {
    LoseWorker { task, worker: worker() }
}

fn times_out(task: TaskId, timeout: AttemptTimeout, possibly_started: bool) -> Command {
    TimeOutTask { task, timeout, possibly_started, worker: worker() }
}

fn cancel() -> Command {
    CancelExecution { reason: "enough".into() }
}

/// The outcome with which a step is compensated; none if it is not.
fn undone(rig: &Rig) -> Option<CompensationOutcome> {
    let compensations = rig.state().compensations();
    assert!(compensations.len() < 2, "there is one step");
    compensations.first().map(|one| one.outcome)
}

/// The decision about the latest failed attempt.
fn decision(rig: &Rig) -> Reason {
    let decided = rig.events.iter().rev().find_map(|event| match event {
        Event::AttemptFailed(failed) => Some(failed.decision.reason),
        _ => None,
    });
    decided.expect("an attempt has failed")
}

#[test]
fn end_of_an_attempt_decides_whether_it_is_repeated_and_whether_its_step_is_undone() {
    let unknown = Some(CompensationOutcome::Unknown);
    let ends: [(&str, End, bool, Option<CompensationOutcome>); 5] = [
        ("reported error", reports, true, None),
        ("lost worker", is_lost, true, unknown),
        (
            "start_to_close",
            |task| times_out(task, AttemptTimeout::StartToClose, true),
            true,
            unknown,
        ),
        ("heartbeat", |task| times_out(task, AttemptTimeout::Heartbeat, true), true, unknown),
        (
            "schedule_to_start",
            |task| times_out(task, AttemptTimeout::ScheduleToStart, false),
            false,
            None,
        ),
    ];
    for (name, end, is_repeated, outcome) in ends {
        let mut rig = Rig::new(&workflow(vec![step("charge", 2)]));
        rig.submit(end(rig.open())).expect("the attempt is open");
        let next = rig.state().task(&"charge".into()).and_then(|task| task.open.as_ref());
        assert_eq!(next.is_some(), is_repeated, "{name}");

        let mut rig = Rig::new(&workflow(vec![step("charge", 1)]));
        rig.submit(end(rig.open())).expect("the attempt is open");
        assert_eq!(undone(&rig), outcome, "{name}");
    }
}

#[test]
fn retry_that_would_begin_after_schedule_to_close_is_not_waited_for() {
    let mut charge = step("charge", 5);
    let task = charge.kind.task_mut().expect("it is a task");
    // A retry waits for a second.
    task.timeouts.schedule_to_close = Some(SECOND);
    let mut rig = Rig::new(&workflow(vec![charge]));
    rig.fail("charge", declined());
    assert_eq!(decision(&rig), Reason::Deadline);
    assert_eq!(rig.ended(), (State::Failed, CompensationState::None));
    assert_eq!(error(&rig), &declined(), "the error is the one that was reported");
}

#[test]
fn schedule_to_close_that_passes_during_an_attempt_leaves_its_outcome_unknown() {
    let mut charge = step("charge", 5);
    let task = charge.kind.task_mut().expect("it is a task");
    task.timeouts.schedule_to_close = Some(SECOND);
    let mut rig = Rig::new(&workflow(vec![charge]));
    let task = rig.open();
    rig.wake();
    assert_eq!(decision(&rig), Reason::ScheduleTimeout, "it is not repeated");
    assert_eq!(undone(&rig), Some(CompensationOutcome::Unknown));
    let late = CompleteTask { task, output: Payload::null(), worker: worker() };
    assert_eq!(rig.submit(late), Err(Rejection::AttemptClosed));
}

#[test]
fn attempt_that_ends_after_the_timeout_of_the_workflow_still_counts() {
    let complete: End = |task| CompleteTask { task, output: Payload::null(), worker: worker() };
    let ends: [(End, Option<CompensationOutcome>); 3] = [
        (complete, Some(CompensationOutcome::Completed)),
        (reports, None),
        (is_lost, Some(CompensationOutcome::Unknown)),
    ];
    for (end, outcome) in ends {
        let mut workflow = workflow(vec![step("charge", 5), step("ship", 1)]);
        workflow.timeout = Some(60 * SECOND);
        let mut rig = Rig::new(&workflow);
        rig.wake();
        rig.submit(end(rig.open())).expect("the grace period has not passed");
        assert_eq!(undone(&rig), outcome);
        assert_eq!(rig.started().first().map(String::as_str), Some("charge"));
        if outcome.is_some() {
            rig.complete("charge/compensate");
        }
        assert_eq!(rig.ended().0, State::TimedOut, "`ship` does not begin");
    }
}

#[test]
fn attempt_that_fails_after_a_cancel_is_not_repeated_and_undone_only_if_it_may_have_taken_effect() {
    let ends: [(End, Option<CompensationOutcome>); 2] =
        [(reports, None), (is_lost, Some(CompensationOutcome::Unknown))];
    for (end, outcome) in ends {
        let mut rig = Rig::new(&workflow(vec![step("charge", 5)]));
        rig.submit(cancel()).expect("it runs");
        rig.submit(end(rig.open())).expect("the grace period has not passed");
        assert_eq!(decision(&rig), Reason::Cancelled);
        assert_eq!(undone(&rig), outcome);
        if outcome.is_some() {
            rig.complete("charge/compensate");
        }
        assert_eq!(rig.ended().0, State::Cancelled);
    }
}

#[test]
fn cancel_during_a_wait_undoes_the_step_only_if_an_earlier_attempt_may_have_taken_effect() {
    let mut rig = Rig::new(&workflow(vec![step("charge", 5)]));
    rig.fail("charge", declined());
    rig.submit(cancel()).expect("it runs");
    assert_eq!(rig.ended(), (State::Cancelled, CompensationState::None), "nothing to wait for");

    let mut rig = Rig::new(&workflow(vec![step("charge", 5)]));
    rig.lose();
    rig.submit(cancel()).expect("it runs");
    assert_eq!(undone(&rig), Some(CompensationOutcome::Unknown));
    rig.complete("charge/compensate");
    assert_eq!(rig.ended(), (State::Cancelled, CompensationState::Done));
}

#[test]
fn failed_case_of_a_switch_fails_the_switch_and_its_completed_steps_are_undone() {
    let case = || vec![("true", vec![step("a", 1), step("b", 1)])];
    let mut rig = Rig::new(&workflow(vec![switch("which", &case(), None)]));
    rig.complete("which.a");
    rig.fail("which.b", declined());
    rig.complete("which.a/compensate");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
    assert_eq!(error(&rig), &declined());

    let caught = catching(switch("which", &case(), None), vec![handler("payment", vec![], None)]);
    let mut rig = Rig::new(&workflow(vec![caught, step("c", 1)]));
    rig.complete("which.a");
    rig.fail("which.b", declined());
    assert_eq!(rig.started(), ["which.a", "which.b", "c"], "a handler undoes nothing");
    rig.fail("c", declined());
    rig.complete("which.a/compensate");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
}

#[test]
fn handled_error_of_a_try_keeps_the_effects_of_its_steps_until_the_run_stops() {
    let body = group("both", vec![step("a", 1), step("b", 1)]);
    let caught = catching(body, vec![handler("payment", vec![set("note", "1")], None)]);
    for fails in [false, true] {
        let mut rig = Rig::new(&workflow(vec![caught.clone(), step("c", 1)]));
        rig.complete("both.a");
        rig.fail("both.b", declined());
        if fails {
            rig.fail("c", declined());
            rig.complete("both.a/compensate");
            assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
        } else {
            rig.complete("c");
            assert_eq!(rig.ended(), (State::Succeeded, CompensationState::None));
        }
    }
}

#[test]
fn step_of_a_handler_has_retries_of_its_own_before_its_error_passes_outwards() {
    let caught = catching(step("a", 1), vec![handler("", vec![step("tell", 2)], None)]);
    let mut rig = Rig::new(&workflow(vec![caught]));
    rig.fail("a", declined());
    let down = TaskError::new("mail.down", "no");
    rig.fail("a.tell", down.clone());
    assert_eq!(rig.open().attempt, 2);
    rig.fail("a.tell", down);
    assert_eq!(rig.ended().0, State::Failed);
    assert_eq!(error(&rig).error_type, "mail.down");
    assert_eq!(error(&rig).cause.as_deref(), Some(&declined()));
}

#[test]
fn lost_compensation_is_repeated_by_its_own_policy_and_then_parked() {
    let mut charge = step("charge", 1);
    let compensate = charge.compensate.as_mut().expect("it has one");
    compensate.retry = step("undo", 2).retry;
    let mut rig = Rig::new(&workflow(vec![charge, step("ship", 1)]));
    rig.complete("charge");
    rig.fail("ship", declined());
    let keys = |rig: &Rig| (rig.open().path.to_string(), rig.open().attempt);
    assert_eq!(keys(&rig), ("charge/compensate".to_owned(), 1));
    rig.lose();
    assert_eq!(keys(&rig), ("charge/compensate".to_owned(), 2));
    rig.lose();
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Parked));
}

#[test]
fn compensation_that_the_cleanup_timeout_cuts_off_is_parked_and_its_late_result_refused() {
    let mut workflow = workflow(vec![step("charge", 1), step("ship", 1)]);
    workflow.cleanup_timeout = Some(5 * SECOND);
    let mut rig = Rig::new(&workflow);
    rig.complete("charge");
    rig.fail("ship", declined());
    let task = rig.open();
    rig.wake();
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Parked));
    let late = CompleteTask { task, output: Payload::null(), worker: worker() };
    assert_eq!(rig.submit(late), Err(Rejection::AttemptClosed));

    rig.submit(Command::RetryCompensation { step: None, reason: String::new() })
        .expect("it is parked");
    assert_eq!(next_wake(rig.state(), &rig.plan), None, "a person's retry has no cleanup timeout");
    rig.complete("charge/compensate");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
}
