//! The answers to mutations of the registry.

use std::time::Duration;

use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;
use wire::registry_answer::Answer;

use super::value::{Stored, malformed, required};
use super::{Error, wire};
use crate::contract::{NamespaceRow, RegistryAnswer, SubscriptionRow};

impl Stored for RegistryAnswer {
    type Wire = wire::RegistryAnswer;

    fn to_wire(&self) -> wire::RegistryAnswer {
        let answer = match self {
            Self::NamespaceCreated(row) => Answer::NamespaceCreated(row.to_wire()),
            Self::WorkflowRegistered { name, version, is_new } => {
                let (name, version, is_new) = (name.to_wire(), *version, *is_new);
                Answer::WorkflowRegistered(wire::WorkflowRegistered { name, version, is_new })
            }
            Self::WorkflowRetired { retired_at } => {
                let retired_at = retired_at.to_wire();
                Answer::WorkflowRetired(wire::WorkflowRetired { retired_at })
            }
            Self::SubscriptionCreated(row) => Answer::SubscriptionCreated(row.to_wire()),
            Self::SubscriptionDeleted => Answer::SubscriptionDeleted(wire::SubscriptionDeleted {}),
        };
        wire::RegistryAnswer { answer: Some(answer) }
    }

    fn from_wire(wire: wire::RegistryAnswer) -> Result<Self, Error> {
        Ok(match wire.answer {
            Some(Answer::NamespaceCreated(row)) => {
                Self::NamespaceCreated(NamespaceRow::from_wire(row)?)
            }
            Some(Answer::WorkflowRegistered(wire)) => Self::WorkflowRegistered {
                name: WorkflowName::from_wire(wire.name)?,
                version: wire.version,
                is_new: wire.is_new,
            },
            Some(Answer::WorkflowRetired(wire)) => {
                Self::WorkflowRetired { retired_at: Timestamp::from_wire(wire.retired_at)? }
            }
            Some(Answer::SubscriptionCreated(row)) => {
                Self::SubscriptionCreated(SubscriptionRow::from_wire(row)?)
            }
            Some(Answer::SubscriptionDeleted(wire::SubscriptionDeleted {})) => {
                Self::SubscriptionDeleted
            }
            None => return malformed("an answer of a kind that is not known"),
        })
    }
}

impl Stored for NamespaceRow {
    type Wire = wire::NamespaceCreated;

    fn to_wire(&self) -> wire::NamespaceCreated {
        wire::NamespaceCreated {
            name: self.name.to_wire(),
            description: self.description.clone(),
            retention: Some(self.retention.to_wire()),
            created_at: self.created_at.to_wire(),
        }
    }

    fn from_wire(wire: wire::NamespaceCreated) -> Result<Self, Error> {
        Ok(Self {
            name: Namespace::from_wire(wire.name)?,
            description: wire.description,
            retention: required::<Duration>(wire.retention, "a retention")?,
            created_at: Timestamp::from_wire(wire.created_at)?,
        })
    }
}

impl Stored for SubscriptionRow {
    type Wire = wire::SubscriptionCreated;

    fn to_wire(&self) -> wire::SubscriptionCreated {
        wire::SubscriptionCreated {
            namespace: self.namespace.to_wire(),
            name: self.name.clone(),
            version: self.version,
            format: self.format.into(),
            state: self.state.clone(),
            created_at: self.created_at.to_wire(),
        }
    }

    fn from_wire(wire: wire::SubscriptionCreated) -> Result<Self, Error> {
        let Ok(format) = wire.format.try_into() else {
            return malformed("a format of more than 16 bits");
        };
        Ok(Self {
            namespace: Namespace::from_wire(wire.namespace)?,
            name: wire.name,
            version: wire.version,
            format,
            state: wire.state,
            created_at: Timestamp::from_wire(wire.created_at)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::format::{FIRST, Row, decode_registry_answer, encode_registry_answer};

    #[test]
    fn empty_answer_or_newer_format_is_refused() {
        let decoded = decode_registry_answer(FIRST, &Vec::new().into());
        assert!(matches!(decoded, Err(Error::Malformed(_))), "{decoded:?}");
        let encoded = encode_registry_answer(&RegistryAnswer::SubscriptionDeleted);
        assert!(!encoded.data.is_empty(), "an empty answer is one that is not given yet");
        let newer = Row::RegistryAnswer.newest() + 1;
        assert_eq!(decode_registry_answer(newer, &encoded.data), Err(Error::Newer(newer)));
    }

    #[test]
    fn format_number_beyond_16_bits_is_refused() {
        let row = wire::SubscriptionCreated {
            namespace: "default".into(),
            format: 65_536,
            ..wire::SubscriptionCreated::default()
        };
        let wire = wire::RegistryAnswer { answer: Some(Answer::SubscriptionCreated(row)) };
        let decoded = decode_registry_answer(FIRST, &wire.encode_to_vec().into());
        assert!(matches!(decoded, Err(Error::Malformed(_))), "{decoded:?}");
    }
}
