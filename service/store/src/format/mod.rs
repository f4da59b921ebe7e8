//! How what is stored becomes bytes, and comes back after years.
//!
//! Every row names the format of its bytes. A format is never changed, only followed by another:
//! `tests/golden` holds bytes of each, which every later binary must read, and which the binary that
//! writes that format must give again. What can not be read whole is an error: folding a history
//! with a hole would give a state that never was.

mod definition;
mod event;
mod failure;
mod idle;
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
pub use idle::{decode_idle, encode_idle};
use value::Stored;

/// The format that this binary writes.
pub const CURRENT: u16 = 1;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Of a newer binary.
    #[error("format {0} is not known to this binary")]
    UnknownFormat(u16),
    #[error("malformed data: {0}")]
    Malformed(String),
    /// The bytes are not those that were written.
    #[error("the checksum does not match")]
    Damaged,
}

/// What one row of a history holds.
#[derive(Clone, Debug, PartialEq)]
pub struct TransitionData {
    pub decided_at: Timestamp,
    pub events: Vec<Event>,
}

/// The events of one transition, in [`CURRENT`].
pub fn encode_transition(decided_at: Timestamp, events: &[Event]) -> Bytes {
    event::transition_to_wire(decided_at, events).encode_to_vec().into()
}

/// CRC-32 (ISO-HDLC) of a row of a history: of its data, and of everything that says which row it is, so
/// that a row in the place of another is found out as well. It is the same for all formats: whether a row
/// is damaged is known even to a binary that cannot read it.
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

/// Of a row of a history use [`crate::StoredTransition::decode`], which compares its checksum first.
/// Payloads of the result are slices of `data`.
pub fn decode_transition(format: u16, data: &Bytes) -> Result<TransitionData, Error> {
    event::transition_from_wire(decode(format, data)?)
}

/// A definition, in [`CURRENT`].
pub fn encode_workflow(workflow: &Workflow) -> Bytes {
    workflow.to_wire().encode_to_vec().into()
}

pub fn decode_workflow(format: u16, data: &Bytes) -> Result<Workflow, Error> {
    Workflow::from_wire(decode(format, data)?)
}

/// A failure event, in [`CURRENT`].
pub fn encode_failure_event(event: &FailureEvent) -> Bytes {
    event.to_wire().encode_to_vec().into()
}

/// Payloads of the result are slices of `data`.
pub fn decode_failure_event(format: u16, data: &Bytes) -> Result<FailureEvent, Error> {
    FailureEvent::from_wire(decode(format, data)?)
}

/// The state of a durable reader of the feed, in [`CURRENT`].
pub fn encode_subscription(subscription: &Subscription) -> Bytes {
    subscription.to_wire().encode_to_vec().into()
}

pub fn decode_subscription(format: u16, data: &Bytes) -> Result<Subscription, Error> {
    Subscription::from_wire(decode(format, data)?)
}

/// What a mutation of the registry answered, in [`CURRENT`]; never empty.
pub fn encode_registry_answer(answer: &RegistryAnswer) -> Bytes {
    answer.to_wire().encode_to_vec().into()
}

pub fn decode_registry_answer(format: u16, data: &Bytes) -> Result<RegistryAnswer, Error> {
    RegistryAnswer::from_wire(decode(format, data)?)
}

fn decode<M: Message + Default>(format: u16, data: &Bytes) -> Result<M, Error> {
    if format != CURRENT {
        return Err(Error::UnknownFormat(format));
    }
    M::decode(data.clone()).map_err(|error| Error::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests;
