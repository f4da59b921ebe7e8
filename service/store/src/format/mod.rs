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
