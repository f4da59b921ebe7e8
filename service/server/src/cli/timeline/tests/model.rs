use super::super::model::{Attempt, Fact, Moment, Section, What, facts};
use super::*;

/// `(offset in milliseconds, attempt, took in milliseconds)` of each line about an attempt.
fn attempts(execution: &ExecutionInfo, events: Vec<(i64, Event)>) -> Vec<(i128, Attempt, i128)> {
    const MILLI: i128 = 1_000_000;
    let history = history(events);
    let of_attempt = |fact| match fact {
        Fact::Moment(Moment { offset, attempt: Some(attempt), took, .. }) => {
            let millis = |nanos: Option<i128>| nanos.map_or(-1, |nanos| nanos / MILLI);
            Some((millis(offset), attempt, millis(took)))
        }
        Fact::Moment(_) | Fact::Section(_) => None,
    };
    facts(execution, &history).into_iter().filter_map(of_attempt).collect()
}

#[test]
fn attempt_limits_are_taken_from_the_history() {
    let unlimited = Event::AttemptScheduled(v1::AttemptScheduled {
        step: step("unlimited", false),
        attempt: 2,
        due_at: at(30),
        max_attempts: 0,
    });
    let events = vec![
        (0, scheduled("charge", false, 2, 5)),
        (10, completed("charge", false, 2)),
        (20, completed("unscheduled", false, 1)),
        (20, unlimited),
        (25, completed("unlimited", false, 2)),
        (30, scheduled("reserve", true, 1, 30)),
        (40, completed("reserve", true, 1)),
    ];
    let execution = execution(ExecutionState::Failed);
    let attempt = |number, max| Attempt { number, max };
    let expected = [
        (10, attempt(2, Some(3)), 5),
        (20, attempt(1, None), -1),
        // It ended before it was due, so it took no time.
        (25, attempt(2, None), 0),
        (40, attempt(1, Some(2)), 10),
    ];
    assert_eq!(attempts(&execution, events), expected);
}

#[test]
fn attempt_is_timed_from_its_hand_over() {
    let handed = Event::AttemptStarted(v1::AttemptStarted {
        step: step("charge", false),
        attempt: 1,
        started_at: at(60),
        ..v1::AttemptStarted::default()
    });
    let events = vec![
        (0, scheduled("charge", false, 1, 0)),
        (70, handed),
        (100, completed("charge", false, 1)),
    ];
    let execution = execution(ExecutionState::Running);
    let expected = [(100, Attempt { number: 1, max: Some(3) }, 40)];
    assert_eq!(attempts(&execution, events), expected);
}

#[test]
fn retried_compensation_shows_no_attempt_limit() {
    let retried = Event::CompensationRetried(v1::CompensationRetried {
        step_path: "reserve".to_owned(),
        ..v1::CompensationRetried::default()
    });
    let mut execution = execution(ExecutionState::Failed);
    let waits = |compensation| PendingAttempt {
        step_path: "reserve".to_owned(),
        compensation,
        attempt: 4,
        max_attempts: 4,
        ..PendingAttempt::default()
    };
    execution.pending_attempts = vec![waits(true), waits(false)];
    let events = vec![(0, retried), (0, scheduled("reserve", true, 3, 0))];
    let attempt = |max| (-1, Attempt { number: 4, max }, -1);
    assert_eq!(attempts(&execution, events), [attempt(None), attempt(Some(4))]);
}

#[test]
fn step_failure_is_omitted_if_its_attempt_already_shows_it() {
    let failure = |path: &str| {
        let error = error("a.b", "");
        Event::StepFailed(v1::StepFailed { step: step(path, false), error })
    };
    let told = |events| {
        let history = history(events);
        let execution = execution(ExecutionState::Failed);
        let facts = facts(&execution, &history);
        let is_failure = |fact: &Fact<'_>| matches!(fact, Fact::Moment(moment) if matches!(moment.what, What::StepFailed(_)));
        facts.into_iter().filter(is_failure).count()
    };
    let attempt = failed("charge", 1, error("a.b", ""), stop(RetryReason::Permanent));
    assert_eq!(told(vec![(1, attempt.clone()), (1, failure("charge"))]), 0);
    assert_eq!(told(vec![(1, attempt), (1, failure("reserve"))]), 1);
}

#[test]
fn failure_of_the_steps_around_a_failed_step_has_no_line_of_its_own() {
    let failure = |path: &str| {
        (1, Event::StepFailed(v1::StepFailed { step: step(path, false), error: error("a.b", "") }))
    };
    let taken = |path: &str| {
        (
            1,
            Event::HandlerStarted(v1::HandlerStarted {
                step: step(path, false),
                ..Default::default()
            }),
        )
    };
    let told = |events| {
        let (history, execution) = (history(events), execution(ExecutionState::Failed));
        let facts = facts(&execution, &history);
        let path = |fact: Fact<'_>| match fact {
            Fact::Moment(Moment { what: What::StepFailed(event), .. }) => {
                event.step.clone().map(|step| step.step_path)
            }
            _ => None,
        };
        facts.into_iter().filter_map(path).collect::<Vec<_>>()
    };
    assert_eq!(told(vec![failure("a.b.c"), failure("a.b"), failure("a")]), ["a.b.c"]);
    assert_eq!(told(vec![failure("a.b.c"), failure("a.bc")]), ["a.b.c", "a.bc"]);
    // The error of a handler is another one than the error that it took.
    assert_eq!(told(vec![failure("a.b"), taken("a"), failure("a")]), ["a.b", "a"]);
}

#[test]
fn each_run_after_the_first_has_a_section() {
    let mut history = history(vec![(0, started()), (5, started())]);
    history[1].run = 2;
    let execution = execution(ExecutionState::Running);
    let sections = facts(&execution, &history).into_iter().filter_map(|fact| match fact {
        Fact::Section(section) => Some(section),
        Fact::Moment(_) => None,
    });
    assert!(sections.eq([Section::Run(2)]));
}
