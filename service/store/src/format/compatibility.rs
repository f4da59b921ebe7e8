//! Checks that stored rows use only what the descriptors of their format know.
//!
//! `formats/<kind of row>/<number>.binpb` is a `google.protobuf.FileDescriptorSet`. The file of the newest
//! format equals the messages in `proto`; the files of earlier formats never change. `RECOUP_WRITE_FORMATS=1`
//! writes missing files and rewrites the file of the newest format. Use it only for a format that no release
//! has written yet.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    ReflectMessage, Value,
};

use super::*;

/// The messages in `proto`, by kind of row.
const CURRENT: [(Row, &str, &[u8]); 5] = [
    (Row::History, "Transition", include_bytes!(concat!(env!("OUT_DIR"), "/history.binpb"))),
    (Row::Definition, "Workflow", include_bytes!(concat!(env!("OUT_DIR"), "/definition.binpb"))),
    (
        Row::FailureEvent,
        "FailureEvent",
        include_bytes!(concat!(env!("OUT_DIR"), "/failure_event.binpb")),
    ),
    (
        Row::Subscription,
        "Subscription",
        include_bytes!(concat!(env!("OUT_DIR"), "/subscription.binpb")),
    ),
    (
        Row::RegistryAnswer,
        "RegistryAnswer",
        include_bytes!(concat!(env!("OUT_DIR"), "/registry_answer.binpb")),
    ),
];

fn path(row: Row, format: u16) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("formats");
    folder.join(row.name()).join(format!("{format}.binpb"))
}

fn committed(row: Row, format: u16) -> Vec<u8> {
    let path = path(row, format);
    fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; see the head of this file", path.display()))
}

fn message(row: Row, descriptors: &[u8]) -> MessageDescriptor {
    let pool = DescriptorPool::decode(descriptors).expect("a descriptor set");
    let (_, name, _) = CURRENT.iter().find(|(of, ..)| *of == row).expect("every kind is there");
    pool.get_message_by_name(&format!("recoup.store.v1.{name}")).expect("the message of the row")
}

/// The descriptors of all formats, by kind of row and number.
fn descriptors() -> BTreeMap<(&'static str, u16), MessageDescriptor> {
    let all = Row::ALL.into_iter().flat_map(|row| (FIRST..=row.newest()).map(move |n| (row, n)));
    all.map(|(row, n)| ((row.name(), n), message(row, &committed(row, n)))).collect()
}

/// The first thing in a message that its descriptor does not know.
fn unknown(message: &DynamicMessage) -> Option<String> {
    if let Some(field) = message.unknown_fields().next() {
        let name = message.descriptor().full_name().to_owned();
        return Some(format!("field {} of {name}", field.number()));
    }
    message.fields().find_map(|(field, value)| unknown_in(&field, value))
}

fn unknown_in(field: &FieldDescriptor, value: &Value) -> Option<String> {
    match (value, field.kind()) {
        (Value::Message(inner), _) => unknown(inner),
        (Value::List(values), _) => values.iter().find_map(|value| unknown_in(field, value)),
        (Value::Map(entries), _) => entries.values().find_map(|value| match value {
            Value::Message(inner) => unknown(inner),
            _ => None,
        }),
        (Value::EnumNumber(number), Kind::Enum(known)) if known.get_value(*number).is_none() => {
            Some(format!("value {number} of {}", known.full_name()))
        }
        _ => None,
    }
}

fn is_known(
    known: &BTreeMap<(&'static str, u16), MessageDescriptor>,
    row: Row,
    encoded: Encoded,
) -> Result<(), TestCaseError> {
    let Encoded { format, data } = encoded;
    let descriptor = known.get(&(row.name(), format));
    let descriptor = descriptor.ok_or_else(|| TestCaseError::fail(format!("format {format}")))?;
    let message = DynamicMessage::decode(descriptor.clone(), data);
    let message = message.map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(unknown(&message), None, "format {} of {}", format, row.name());
    Ok(())
}

#[test]
fn rows_contain_only_what_their_format_defines() {
    let known = descriptors();
    let mut runner = TestRunner::new(ProptestConfig::with_cases(64));
    let everything = (
        strategy::timestamp(),
        strategy::events_of_each_kind(),
        vec(strategy::event(), 0..3),
        strategy::workflow(),
        strategy::failure_event(),
        (strategy::subscription(), strategy::registry_answer()),
    );
    runner
        .run(&everything, |(at, each, some, workflow, failure, (subscription, answer))| {
            for event in &each {
                let alone = encode_transition(at, std::slice::from_ref(event));
                is_known(&known, Row::History, alone)?;
            }
            is_known(&known, Row::History, encode_transition(at, &some))?;
            is_known(&known, Row::Definition, encode_workflow(&workflow))?;
            is_known(&known, Row::FailureEvent, encode_failure_event(&failure))?;
            is_known(&known, Row::Subscription, encode_subscription(&subscription))?;
            is_known(&known, Row::RegistryAnswer, encode_registry_answer(&answer))
        })
        .expect("every value is known to the format that it is stamped with");
}

#[test]
fn newest_descriptors_match_the_messages() {
    for (row, _, current) in CURRENT {
        let newest = path(row, row.newest());
        if std::env::var_os("RECOUP_WRITE_FORMATS").is_some() {
            fs::create_dir_all(newest.parent().expect("it was joined")).expect("a folder");
            fs::write(&newest, current).expect("a descriptor set");
        }
        assert!(
            committed(row, row.newest()) == current,
            "the messages of {0} differ from the descriptors of format {1}: if no release has written \
             format {1}, set RECOUP_WRITE_FORMATS=1 to write its descriptors again; otherwise add \
             format {2}; see \"Adding a format\" in CONTRIBUTING.md",
            row.name(),
            row.newest(),
            row.newest() + 1,
        );
        let beyond = path(row, row.newest() + 1);
        assert!(!beyond.exists(), "{} is of a format that is not known", beyond.display());
    }
}

/// A later format only adds: everything in the format before it stays unchanged.
#[test]
fn every_format_keeps_everything_of_the_one_before_it() {
    let known = descriptors();
    for row in Row::ALL {
        for format in FIRST + 1..=row.newest() {
            let (before, after) =
                (&known[&(row.name(), format - 1)], &known[&(row.name(), format)]);
            assert_eq!(lost(before, after), None, "{} {format}", row.name());
        }
    }
}

/// The first thing in the messages and enums of `before` that `after` lacks or has changed.
fn lost(before: &MessageDescriptor, after: &MessageDescriptor) -> Option<String> {
    let (old, new) = (before.parent_pool(), after.parent_pool());
    let messages = old.all_messages().find_map(|message| {
        let name = message.full_name();
        let Some(kept) = new.get_message_by_name(name) else { return Some(name.to_owned()) };
        message.fields().find_map(|field| {
            let same = kept.get_field(field.number()).is_some_and(|kept| is_same(&field, &kept));
            (!same).then(|| field.full_name().to_owned())
        })
    });
    messages.or_else(|| old.all_enums().find_map(|values| lost_value(&values, new)))
}

fn lost_value(values: &EnumDescriptor, new: &DescriptorPool) -> Option<String> {
    let name = values.full_name();
    let Some(kept) = new.get_enum_by_name(name) else { return Some(name.to_owned()) };
    values.values().find_map(|value| {
        let same = kept.get_value(value.number()).is_some_and(|kept| kept.name() == value.name());
        (!same).then(|| value.full_name().to_owned())
    })
}

fn is_same(one: &FieldDescriptor, other: &FieldDescriptor) -> bool {
    let shape = |field: &FieldDescriptor| {
        let oneof = field.containing_oneof().map(|oneof| oneof.name().to_owned());
        (field.name().to_owned(), field.kind().raw_name(), field.cardinality(), oneof)
    };
    shape(one) == shape(other)
}

trait RawName {
    fn raw_name(&self) -> String;
}

impl RawName for Kind {
    fn raw_name(&self) -> String {
        match self {
            Self::Message(message) => message.full_name().to_owned(),
            Self::Enum(values) => values.full_name().to_owned(),
            scalar => format!("{scalar:?}"),
        }
    }
}

/// Checks that the test above can find what it looks for: a field, an enum value and a oneof member that the
/// descriptors do not know.
#[test]
fn unknown_fields_enum_values_and_oneof_members_are_detected() {
    let known = descriptors();
    let check = |message: wire::Transition, more: &[u8]| {
        let mut data = message.encode_to_vec();
        data.extend_from_slice(more);
        let encoded = Encoded { format: FIRST, data: data.into() };
        is_known(&known, Row::History, encoded).is_ok()
    };
    let ended = |state| wire::Transition {
        decided_at: 1,
        events: vec![wire::Event {
            kind: Some(wire::event::Kind::ExecutionEnded(wire::ExecutionEnded {
                state,
                error: None,
            })),
        }],
    };
    assert!(check(ended(6), &[]));
    assert!(!check(ended(99), &[]), "a value of an enum");
    // Field 99 of the transition, one byte long.
    assert!(!check(ended(6), &[0x9a, 0x06, 1, 0]), "a field");
    // Field 2 of the transition: an event with field 99.
    assert!(!check(ended(6), &[0x12, 4, 0x9a, 0x06, 1, 0]), "a member of a oneof");
}
