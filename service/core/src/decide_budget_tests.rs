//! Tests of decisions that would have to parse more JSON than one transition may.

use super::*;
use crate::limits::{EXPRESSION_READ_BYTES_MAX, PAYLOAD_BYTES_MAX};

const SKIPPED: usize = 10;

#[test]
fn decision_over_the_parse_budget_is_split_into_several_transitions() {
    let skipped = |n| Step { when: Some("size(input) == 0".into()), ..step(&format!("s{n}"), 1) };
    let steps = (0..SKIPPED).map(skipped).chain([step("last", 1)]);
    let plan = Plan::compile(&workflow(steps.collect()), 1).expect("it compiles");
    let now = Timestamp::from_micros(1_000_000);
    let start = Command::StartExecution(Box::new(StartExecution {
        id: ExecutionId::new(now, [7; 10]),
        namespace: "default".into(),
        key: None,
        input: Payload::json(format!("\"{}\"", "x".repeat(PAYLOAD_BYTES_MAX - 2))),
        timeout: None,
        trace: TraceContext::default(),
    }));
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
    let mut rig = Rig::of(
        &workflow((0..SKIPPED).map(skipped).collect()),
        Payload::json(format!("\"{}\"", "x".repeat(PAYLOAD_BYTES_MAX - 2))),
    );
    assert!(rig.state().open_attempts().next().is_none(), "the decision is unfinished");
    rig.submit(Command::CancelExecution { reason: "enough".into() }).expect("it is open");
    assert_eq!(rig.ended(), (State::Cancelled, CompensationState::None));
}
