//! How stored values become bytes, and how they can still be read years later.
//!
//! Every row names the format of its bytes. A format never changes; it is only followed by another one. Each
//! kind of row counts its own formats ([`Row`]). A binary reads all formats up to its newest one, and stamps
//! each row that it writes with the lowest format that can hold it (`needed`). So an older binary can read the
//! rows of a newer one as long as they contain nothing new.
//!
//! `tests/golden` holds bytes of each format. Every later binary must read them, and the binary that writes
//! that format must produce them again. `formats` holds the descriptors of each format. Data that cannot be
//! read completely is an error, because folding a history with a hole would give a state that never existed.

#[cfg(test)]
mod compatibility;
mod definition;
mod error;
mod event;
mod failure;
mod idle;
mod needed;
mod number;
mod registry;
#[cfg(test)]
pub mod strategy;
mod subscription;
pub(crate) mod value;
mod wire;

use bytes::Bytes;
use prost::Message;
use recoup_core::definition::Workflow;
use recoup_core::event::Event;
use recoup_core::failure_event::FailureEvent;
use recoup_core::id::{ExecutionId, TransitionId};
use recoup_core::subscription::Subscription;
use recoup_core::time::Timestamp;

use crate::contract::RegistryAnswer;
pub use error::Error;
pub use event::TransitionData;
pub use idle::{decode_idle, encode_idle};
use needed::Needed;
pub(crate) use number::COLUMNS;
pub use number::{FIRST, Formats, NotFinalized, Row};
use value::Stored;

/// The encoded bytes of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The lowest format that can hold the content.
    pub format: u16,
    pub data: Bytes,
}

impl Encoded {
    fn new(format: u16, message: &impl Message) -> Self {
        Self { format, data: message.encode_to_vec().into() }
    }
}

/// Encodes the events of one transition, which is a row of a history.
pub fn encode_transition(decided_at: Timestamp, events: &[Event]) -> Encoded {
    let format = events.needed(Row::History);
    Encoded::new(format, &event::transition_to_wire(decided_at, events))
}

/// The CRC-32 (ISO-HDLC) of a row of a history. It covers the data and everything that identifies the row, so
/// that a row in the place of another is detected too. It is the same for all formats, so that even a binary
/// that cannot read a row can tell whether it is damaged.
pub fn checksum(
    execution: ExecutionId,
    sequence: u64,
    transition_id: TransitionId,
    format: u16,
    data: &[u8],
) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(execution.0.as_bytes());
    hasher.update(&sequence.to_be_bytes());
    hasher.update(transition_id.0.as_bytes());
    hasher.update(&format.to_be_bytes());
    hasher.update(data);
    hasher.finalize()
}

/// Decodes the events of one transition. For a row of a history use [`crate::StoredTransition::decode`], which
/// compares the checksum first. Payloads in the result are slices of `data`.
pub fn decode_transition(format: u16, data: &Bytes) -> Result<TransitionData, Error> {
    event::transition_from_wire(format, decode(Row::History, format, data)?)
}

/// Encodes a definition.
pub fn encode_workflow(workflow: &Workflow) -> Encoded {
    Encoded::new(workflow.needed(Row::Definition), &workflow.to_wire())
}

pub fn decode_workflow(format: u16, data: &Bytes) -> Result<Workflow, Error> {
    Workflow::from_wire(decode(Row::Definition, format, data)?)
}

/// Encodes a failure event, which is a row of the feed.
pub fn encode_failure_event(event: &FailureEvent) -> Encoded {
    Encoded::new(event.needed(Row::FailureEvent), &event.to_wire())
}

/// Payloads in the result are slices of `data`.
pub fn decode_failure_event(format: u16, data: &Bytes) -> Result<FailureEvent, Error> {
    FailureEvent::from_wire(decode(Row::FailureEvent, format, data)?)
}

/// Encodes the state of a durable reader of the feed.
pub fn encode_subscription(subscription: &Subscription) -> Encoded {
    Encoded::new(subscription.needed(Row::Subscription), &subscription.to_wire())
}

pub fn decode_subscription(format: u16, data: &Bytes) -> Result<Subscription, Error> {
    Subscription::from_wire(decode(Row::Subscription, format, data)?)
}

/// Encodes the answer to a mutation of the registry. The result is never empty.
pub fn encode_registry_answer(answer: &RegistryAnswer) -> Encoded {
    Encoded::new(answer.needed(Row::RegistryAnswer), &answer.to_wire())
}

pub fn decode_registry_answer(format: u16, data: &Bytes) -> Result<RegistryAnswer, Error> {
    RegistryAnswer::from_wire(decode(Row::RegistryAnswer, format, data)?)
}

fn decode<M: Message + Default>(row: Row, format: u16, data: &Bytes) -> Result<M, Error> {
    match format {
        0 => return Err(Error::Malformed("format 0".into())),
        number if number > row.newest() => return Err(Error::Newer(number)),
        _ => {}
    }
    M::decode(data.clone()).map_err(|error| Error::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests;
