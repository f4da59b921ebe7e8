//! Tests of decisions that would have to parse more JSON than one transition may.

use super::*;
use crate::definition::{Case, Catch, Switch};
use crate::limits::{EXPRESSION_READ_BYTES_MAX, PAYLOAD_BYTES_MAX};

const SKIPPED: usize = 10;

#[test]
fn decision_over_the_parse_budget_is_split_into_several_transitions() {
    let skipped = |n| Step { when: Some("size(input) == 0".into()), ..step(&format!("s{n}"), 1) };
    let steps = (0..SKIPPED).map(skipped).chain([step("last", 1)]);
    let plan = Plan::compile(&workflow(steps.collect()), 1).expect("it compiles");
    let now = Timestamp::from_micros(1_000_000);
    let start = start_with(now, large_text());
    let (mut state, mut command, mut transitions) = (None, start, 0);
    let state = loop {
        let mut decider = Decider::new(state.take(), &plan, now, 42);
        decider.decide(command, None).expect("there is something to do");
        assert!(decider.parsed() <= EXPRESSION_READ_BYTES_MAX);
        let Decided { state: next, events } = decider.finish();
        assert!(!events.is_empty(), "something was decided");
        let next = next.expect("events make a state");
        transitions += 1;
        if next_wake(&next, &plan).is_none() {
            break next;
        }
        assert_eq!(next_wake(&next, &plan), Some(now), "the rest is due at once");
        (state, command) = (Some(next), Command::Wake);
    };
    assert_eq!(transitions, (SKIPPED * PAYLOAD_BYTES_MAX).div_ceil(EXPRESSION_READ_BYTES_MAX));
    assert_eq!(state.steps().count(), SKIPPED + 1);
    let open: Vec<_> = state.open_attempts().map(|open| open.path).collect();
    assert_eq!(open, ["last".into()]);
}

#[test]
fn execution_with_an_unfinished_decision_can_be_cancelled() {
    let skipped = |n| Step { when: Some("size(input) == 0".into()), ..step(&format!("s{n}"), 1) };
    let mut rig = Rig::of(&workflow((0..SKIPPED).map(skipped).collect()), large_text());
    assert!(rig.state().open_attempts().next().is_none(), "the decision is unfinished");
    rig.submit(Command::CancelExecution { reason: "enough".into() }).expect("it is open");
    assert_eq!(rig.ended(), (State::Cancelled, CompensationState::None));
}

fn large_text() -> Payload {
    Payload::json(format!("\"{}\"", "x".repeat(PAYLOAD_BYTES_MAX - 2)))
}

/// A switch with these conditions, none of which has steps.
fn switch(conditions: impl Iterator<Item = String>) -> Step {
    let cases = conditions.map(|when| Case { when, block: Block::default() }).collect();
    let kind = StepKind::Switch(Switch { cases, default: None });
    Step { kind, retry: None, compensate: None, ..step("switch", 1) }
}

#[test]
fn conditions_of_a_switch_and_those_of_its_handlers_parse_a_variable_once_each() {
    let conditions = || (0..100).map(|n| format!("size(input) == {n}"));
    let handlers = conditions().map(|when| Catch { when: Some(when), ..Catch::default() });
    let failing = conditions().chain(["input.nothing".to_owned()]);
    let guarded = Step { catch: handlers.collect(), ..switch(failing) };
    let plan = Plan::compile(&workflow(vec![guarded]), 1).expect("it compiles");
    let now = Timestamp::from_micros(1_000_000);
    let mut decider = Decider::new(None, &plan, now, 42).starting_in(BLOCKS);
    let start = start_with(now, large_text());
    decider.decide(start, None).expect("it is new");
    assert_eq!(
        decider.parsed(),
        2 * PAYLOAD_BYTES_MAX,
        "once for the cases, once for the handlers"
    );
    assert_eq!(decider.finish().state.expect("it was started").state, State::Failed);
}

#[test]
fn conditions_of_a_switch_share_the_bytes_that_one_may_read() {
    let ids = ["a", "b", "c", "d"];
    let run = |conditions: &[String]| {
        let steps = ids.iter().map(|id| step(id, 1));
        let steps = steps.chain([switch(conditions.iter().cloned())]).collect();
        let mut rig = Rig::of(&workflow(steps), large_text());
        for _ in ids {
            let task = rig.open();
            let (output, worker) = (large_text(), "w".into());
            rig.submit(Command::CompleteTask { task, output, worker }).expect("it is open");
        }
        if can_advance(rig.state()) {
            rig.wake();
        }
        rig
    };
    let mut conditions: Vec<_> =
        ids.iter().map(|id| format!("size(steps.{id}.output) == 0")).collect();
    assert_eq!(run(&conditions).ended().0, State::Succeeded);
    conditions.push("size(input) == 0".into());
    let rig = run(&conditions);
    let stop = rig.state().stop.as_ref().expect("five payloads are too many");
    assert_eq!(stop.error.error_type, builtin::EXPRESSION);
}
