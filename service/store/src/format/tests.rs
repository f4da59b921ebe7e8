use std::mem::{Discriminant, discriminant};

use proptest::collection::vec;
use proptest::prelude::*;
use recoup_core::definition::{Block, Branch, Defaults, OnError, Parallel, Step, StepKind, Task};
use recoup_core::error::TaskError;
use recoup_core::event::{FirstAttempt, PayloadSource, TERSE};
use recoup_core::id::TransitionId;
use recoup_core::limits::NESTING_MAX;
use recoup_core::payload::Payload;

use super::value::CHAIN_MAX;
use super::*;
use crate::contract::StoredTransition;

const AT: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

const NEWEST: u16 = Row::History.newest();

fn decoded(encoded: &Encoded) -> TransitionData {
    decode_transition(encoded.format, &encoded.data).expect("own bytes")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_kind_of_event_round_trips(
        decided_at in strategy::timestamp(),
        events in strategy::events_of_each_kind(),
    ) {
        let encoded = encode_transition(decided_at, &events);
        let back = decoded(&encoded);
        prop_assert_eq!(encode_transition(back.decided_at, &back.events), encoded);
        prop_assert_eq!(back, TransitionData { decided_at, events });
    }

    #[test]
    fn definition_round_trips(workflow in strategy::workflow()) {
        let Encoded { format, data } = encode_workflow(&workflow);
        prop_assert_eq!(decode_workflow(format, &data).expect("own bytes"), workflow);
    }

    #[test]
    fn failure_event_round_trips(event in strategy::failure_event()) {
        let Encoded { format, data } = encode_failure_event(&event);
        prop_assert_eq!(decode_failure_event(format, &data).expect("own bytes"), event);
    }

    #[test]
    fn subscription_round_trips(subscription in strategy::subscription()) {
        let Encoded { format, data } = encode_subscription(&subscription);
        prop_assert_eq!(decode_subscription(format, &data).expect("own bytes"), subscription);
    }

    #[test]
    fn registry_answer_round_trips(answer in strategy::registry_answer()) {
        let Encoded { format, data } = encode_registry_answer(&answer);
        prop_assert_eq!(decode_registry_answer(format, &data).expect("own bytes"), answer);
    }

    #[test]
    fn decoding_damaged_bytes_never_panics(
        events in vec(strategy::event(), 1..4),
        at in any::<prop::sample::Index>(),
        byte: u8,
    ) {
        let mut data = encode_transition(AT, &events).data.to_vec();
        let at = at.index(data.len());
        data[at] = byte;
        let _ = decode_transition(NEWEST, &data.clone().into());
        data.truncate(at);
        let _ = decode_transition(NEWEST, &data.into());
    }

    #[test]
    fn decoding_garbage_never_panics(data in vec(any::<u8>(), 0..200)) {
        let data = Bytes::from(data);
        let _ = decode_transition(NEWEST, &data);
        let _ = decode_workflow(NEWEST, &data);
        let _ = decode_failure_event(NEWEST, &data);
        let _ = decode_subscription(NEWEST, &data);
    }
}

/// The strategies above are useful only if they leave no kind out. Each strategy must give another kind, and
/// there must be as many as the format knows.
#[test]
fn strategies_cover_every_kind_of_event_and_step() {
    fn kinds<T: std::fmt::Debug>(strategies: Vec<BoxedStrategy<T>>) -> usize {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let mut kinds: Vec<Discriminant<T>> = Vec::new();
        for strategy in strategies {
            let tree = strategy.new_tree(&mut runner).expect("no filter");
            let kind = discriminant(&proptest::strategy::ValueTree::current(&tree));
            assert!(!kinds.contains(&kind), "a kind occurs twice");
            kinds.push(kind);
        }
        kinds.len()
    }
    let known = |proto: &str, message: &str| {
        let body = proto.split(&format!("message {message} {{")).nth(1);
        let oneof = body.and_then(|body| body.split("oneof kind {").nth(1)?.split('}').next());
        oneof.expect("the kinds of the message").matches(';').count()
    };
    let events = include_str!("../../proto/recoup/store/v1/transition.proto");
    assert_eq!(kinds(strategy::events_of_each_kind()), known(events, "Event"));
    let steps = include_str!("../../proto/recoup/store/v1/definition.proto");
    assert_eq!(kinds(strategy::kinds_of_steps(1)), known(steps, "Step"));
}

#[test]
fn row_that_differs_from_what_was_written_is_damaged() {
    let execution = ExecutionId(uuid::Uuid::from_u128(1));
    let Encoded { format, data } = encode_transition(
        AT,
        &[Event::RunSucceeded { output: PayloadSource::Inline(Payload::json("[1]")) }],
    );
    let row = StoredTransition {
        sequence: 7,
        transition_id: TransitionId(uuid::Uuid::from_u128(2)),
        format,
        checksum: 0,
        data,
    };
    let row = row.sealed(execution);
    assert!(row.decode(execution).is_ok());
    let damaged = |row: &StoredTransition| row.decode(execution) == Err(Error::Damaged);
    for at in 0..row.data.len() {
        let mut data = row.data.to_vec();
        data[at] ^= 1 << (at % 8);
        assert!(damaged(&StoredTransition { data: data.into(), ..row.clone() }), "byte {at}");
    }
    let transition_id = TransitionId(uuid::Uuid::from_u128(3));
    assert!(damaged(&StoredTransition { transition_id, ..row.clone() }));
    assert!(damaged(&StoredTransition { sequence: 8, ..row.clone() }), "at another sequence");
    let elsewhere = ExecutionId(uuid::Uuid::from_u128(4));
    assert_eq!(row.decode(elsewhere), Err(Error::Damaged), "in another history");
    // A damaged format number is reported as damage, and not as the format of a newer binary. An intact newer
    // number is reported as newer.
    let newer = StoredTransition { format: NEWEST + 1, ..row };
    assert!(damaged(&newer));
    let decoded = newer.sealed(execution).decode(execution);
    assert_eq!(decoded, Err(Error::Newer(NEWEST + 1)));
}

/// Rows that are already stored have this checksum. Another polynomial, or another order of the columns, would
/// make all of them look damaged.
#[test]
fn checksum_of_a_row_never_changes() {
    let execution = ExecutionId(uuid::Uuid::from_u128(0x0123_4567_89ab_cdef));
    let transition_id = TransitionId(uuid::Uuid::from_u128(0xfedc_ba98_7654_3210));
    assert_eq!(checksum(execution, 3, transition_id, 1, b"data"), 0x962f_d216);
}

#[test]
fn formats_from_the_first_to_the_newest_are_read() {
    let Encoded { data, .. } = encode_transition(AT, &[]);
    for format in FIRST..=NEWEST {
        assert!(decode_transition(format, &data).is_ok(), "format {format}");
    }
    assert_eq!(decode_transition(NEWEST + 1, &data), Err(Error::Newer(NEWEST + 1)));
    assert_eq!(decode_transition(0, &data), Err(Error::Malformed("format 0".into())));
}

#[test]
fn an_event_of_an_unknown_kind_is_an_error() {
    // Field 2 of the transition: an event with the unknown field 99, one byte long.
    let newer = Bytes::from_static(&[0x12, 4, 0x9a, 0x06, 1, 0]);
    let error = decode_transition(NEWEST, &newer).expect_err("an unknown kind");
    assert_eq!(error, Error::Malformed("an event of an unknown kind".into()));
}

#[test]
fn missing_fields_and_unknown_enum_values_are_errors() {
    use wire::event::Kind;
    let path = || "charge".to_owned();
    let cases = [
        Kind::ExecutionStarted(wire::ExecutionStarted {
            namespace: "default".to_owned(),
            workflow: "order".to_owned(),
            ..Default::default()
        }),
        Kind::StepSkipped(wire::StepSkipped { path: String::new() }),
        Kind::StepFailed(wire::StepFailed { path: path(), error: None }),
        Kind::StepFailed(wire::StepFailed {
            path: path(),
            error: Some(wire::Error { chain: Vec::new() }),
        }),
        Kind::ExecutionEnded(wire::ExecutionEnded { state: 0, error: None }),
        Kind::ExecutionEnded(wire::ExecutionEnded { state: 99, error: None }),
        Kind::CompensationEnded(wire::CompensationEnded { state: 0 }),
        Kind::AttemptFailed(wire::AttemptFailed {
            path: path(),
            attempt: 1,
            error: Some(TaskError::new("a", "").to_wire()),
            outcome: 1,
            decision: Some(wire::Decision { reason: 1, next_at: Some(5), ..Default::default() }),
            ..Default::default()
        }),
    ];
    for kind in cases {
        let transition = wire::Transition {
            decided_at: 1,
            events: vec![wire::Event { kind: Some(kind.clone()) }],
        };
        let data = Bytes::from(transition.encode_to_vec());
        let decoded = decode_transition(NEWEST, &data);
        assert!(matches!(decoded, Err(Error::Malformed(_))), "{kind:?}: {decoded:?}");
    }
}

#[test]
fn references_to_payloads_need_the_terse_format() {
    let events = [
        Event::StepStarted {
            path: "charge".into(),
            generation: 0,
            input: PayloadSource::Input,
            first: None,
        },
        Event::RunSucceeded { output: PayloadSource::Output("charge".into()) },
    ];
    for event in events {
        let encoded = encode_transition(AT, std::slice::from_ref(&event));
        assert_eq!(encoded.format, TERSE, "{event:?}");
        assert_eq!(decoded(&encoded).events, [event]);
        let before = decode_transition(TERSE - 1, &encoded.data);
        assert!(matches!(before, Err(Error::Malformed(_))), "{before:?}");
    }
}

#[test]
fn payloads_are_slices_of_the_row() {
    let output = PayloadSource::Inline(Payload::json(vec![b'1'; 1000]));
    let encoded = encode_transition(AT, &[Event::RunSucceeded { output }]);
    let [Event::RunSucceeded { output: PayloadSource::Inline(output) }] =
        &*decoded(&encoded).events
    else {
        panic!("the event that was written");
    };
    assert!(encoded.data.as_ptr_range().contains(&output.data.as_ptr()), "the payload was copied");
}

#[test]
fn events_of_a_step_take_at_most_45_bytes_and_24_in_the_terse_format() {
    let path = recoup_core::id::StepPath::from("charge");
    let input = PayloadSource::Inline(Payload::null());
    let events = [
        Event::StepStarted { path: path.clone(), generation: 1, input, first: None },
        Event::AttemptScheduled { path: path.clone(), attempt: 1, at: AT },
    ];
    let len = encode_transition(AT, &events).data.len();
    assert!(len <= 45, "{len} bytes");
    let first = Some(FirstAttempt { number: 1, at: AT });
    let terse = [Event::StepStarted { path, generation: 0, input: PayloadSource::Input, first }];
    let len = encode_transition(AT, &terse).data.len();
    assert!(len <= 24, "{len} bytes");
}

fn nested(depth: usize) -> TaskError {
    let mut error = TaskError::new("root", "");
    for _ in 1..depth {
        error = TaskError { cause: Some(Box::new(error)), ..TaskError::new("wrapped", "") };
    }
    error
}

/// Twenty levels of branches are the deepest messages, and a decoder reads 100 of them inside each other.
#[test]
fn branches_may_nest_as_deep_as_blocks_may() {
    let step = |kind| Step {
        id: "s".into(),
        description: String::new(),
        kind,
        when: None,
        timeout: None,
        retry: None,
        catch: Vec::new(),
        on_error: OnError::Fail,
        allow_warning: false,
        compensate: None,
    };
    let innermost = step(StepKind::Task(Task::default()));
    let nested = (0..NESTING_MAX).fold(innermost, |inner, _| {
        let block = Block { steps: vec![inner], output: None };
        let branches = [("left".into(), Branch { block, after: Vec::new() })].into();
        step(StepKind::Parallel(Parallel { branches, ..Parallel::default() }))
    });
    let workflow = Workflow {
        name: "deep".into(),
        description: String::new(),
        defaults: Defaults::default(),
        steps: Block { steps: vec![nested], output: None },
        on_failure: Vec::new(),
        finally: Vec::new(),
        timeout: None,
        cleanup_timeout: None,
        cancel_grace: None,
    };
    let Encoded { format, data } = encode_workflow(&workflow);
    assert_eq!(decode_workflow(format, &data), Ok(workflow));
}

#[test]
fn error_chains_are_bounded_when_written_and_when_read() {
    let ended = |error| Event::ExecutionEnded { state: State::Failed, error: Some(error) };
    use recoup_core::execution::State;

    let deepest = [ended(nested(CHAIN_MAX))];
    assert_eq!(decoded(&encode_transition(AT, &deepest)).events, deepest);
    // Whatever is written can be read again.
    let too_deep = encode_transition(AT, &[ended(nested(CHAIN_MAX + 50))]);
    let [Event::ExecutionEnded { error: Some(error), .. }] = &*decoded(&too_deep).events else {
        panic!("the event that was written");
    };
    assert_eq!(error.chain().count(), CHAIN_MAX);

    let link = wire::ErrorLink::default();
    let hostile = wire::Transition {
        decided_at: 1,
        events: vec![wire::Event {
            kind: Some(wire::event::Kind::StepFailed(wire::StepFailed {
                path: "charge".into(),
                error: Some(wire::Error { chain: vec![link; 1_000_000] }),
            })),
        }],
    };
    let data = Bytes::from(hostile.encode_to_vec());
    assert!(matches!(decode_transition(NEWEST, &data), Err(Error::Malformed(_))));
}
