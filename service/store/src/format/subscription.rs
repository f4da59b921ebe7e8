//! The state that a durable reader of the feed keeps.

use std::time::Duration;

use recoup_core::failure_event::FailureKind;
use recoup_core::id::ExecutionId;
use recoup_core::subscription::{Consumer, Entry, Filter, Gap, Position, Subscription};
use recoup_core::time::Timestamp;

use super::value::{Stored, list, malformed, optional, to_list};
use super::{Error, wire};

impl Stored for Subscription {
    type Wire = wire::Subscription;

    fn to_wire(&self) -> wire::Subscription {
        wire::Subscription {
            filter: Some(self.filter.to_wire()),
            start: self.start.clone(),
            ack_deadline_micros: u64::try_from(self.ack_deadline.as_micros()).unwrap_or(u64::MAX),
            window: self.window,
            watermark: self.watermark.clone(),
            read: self.read.clone(),
            outstanding: to_list(&self.outstanding),
            consumer: self.consumer.as_ref().map(Consumer::to_wire),
            epoch: self.epoch,
        }
    }

    fn from_wire(wire: wire::Subscription) -> Result<Self, Error> {
        Ok(Self {
            filter: Filter::from_wire(wire.filter.unwrap_or_default())?,
            start: wire.start,
            ack_deadline: Duration::from_micros(wire.ack_deadline_micros),
            window: wire.window,
            watermark: wire.watermark,
            read: wire.read,
            outstanding: list(wire.outstanding)?,
            consumer: optional(wire.consumer)?,
            epoch: wire.epoch,
        })
    }
}

impl Stored for Filter {
    type Wire = wire::SubscriptionFilter;

    fn to_wire(&self) -> wire::SubscriptionFilter {
        wire::SubscriptionFilter {
            namespace: self.namespace.clone(),
            workflows: self.workflows.clone(),
            kinds: to_list(&self.kinds),
            error_types: self.error_types.clone(),
        }
    }

    fn from_wire(wire: wire::SubscriptionFilter) -> Result<Self, Error> {
        Ok(Self {
            namespace: wire.namespace,
            workflows: wire.workflows,
            kinds: list::<FailureKind>(wire.kinds)?,
            error_types: wire.error_types,
        })
    }
}

impl Stored for Entry {
    type Wire = wire::SubscriptionEntry;

    fn to_wire(&self) -> wire::SubscriptionEntry {
        let execution = self.execution.map(|execution| execution.0.as_bytes().to_vec());
        wire::SubscriptionEntry {
            event: self.event.clone(),
            execution: execution.unwrap_or_default().into(),
            lane: self.position.lane,
            number: self.position.number,
            bytes: self.bytes,
            delivery: self.delivery,
            due_at: self.due_at.to_wire(),
            returned: self.returned,
            stream: self.stream,
            gap: self.gap.as_ref().map(Gap::to_wire),
        }
    }

    fn from_wire(wire: wire::SubscriptionEntry) -> Result<Self, Error> {
        let execution = match wire.execution.len() {
            0 => None,
            _ => match uuid::Uuid::from_slice(&wire.execution) {
                Ok(id) => Some(ExecutionId(id)),
                Err(_) => return malformed("an execution id that is not 16 bytes long"),
            },
        };
        Ok(Self {
            event: wire.event,
            execution,
            position: Position { lane: wire.lane, number: wire.number },
            bytes: wire.bytes,
            delivery: wire.delivery,
            due_at: Timestamp::from_wire(wire.due_at)?,
            returned: wire.returned,
            stream: wire.stream,
            gap: optional(wire.gap)?,
        })
    }
}

impl Stored for Gap {
    type Wire = wire::SubscriptionGap;

    fn to_wire(&self) -> wire::SubscriptionGap {
        wire::SubscriptionGap { from: self.from.clone(), to: self.to.clone(), events: self.events }
    }

    fn from_wire(wire: wire::SubscriptionGap) -> Result<Self, Error> {
        Ok(Self { from: wire.from, to: wire.to, events: wire.events })
    }
}

impl Stored for Consumer {
    type Wire = wire::SubscriptionConsumer;

    fn to_wire(&self) -> wire::SubscriptionConsumer {
        wire::SubscriptionConsumer {
            name: self.name.clone(),
            epoch: self.epoch,
            until: self.until.to_wire(),
        }
    }

    fn from_wire(wire: wire::SubscriptionConsumer) -> Result<Self, Error> {
        Ok(Self { name: wire.name, epoch: wire.epoch, until: Timestamp::from_wire(wire.until)? })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::format::{Encoded, Row, decode_subscription, encode_subscription};

    #[test]
    fn subscription_round_trips_and_a_newer_format_is_refused() {
        let filter = Filter {
            namespace: "a.*".into(),
            workflows: vec!["order".into()],
            kinds: vec![FailureKind::StepFailed, FailureKind::FeedGap],
            error_types: vec!["*".into()],
        };
        let mut subscription = Subscription::new(filter, "now".into(), "cursor".into());
        subscription.ack_deadline = Duration::from_millis(1500);
        subscription.consumer =
            Some(Consumer { name: "me".into(), epoch: 3, until: Timestamp::from_micros(-1) });
        let entry = Entry {
            event: "e".into(),
            execution: Some(ExecutionId(Uuid::from_u128(9))),
            position: Position { lane: -3, number: 8 },
            bytes: 1_000,
            delivery: 2,
            due_at: Timestamp::from_micros(77),
            returned: true,
            stream: 5,
            gap: None,
        };
        let gap = Some(Gap { from: "f".into(), to: "t".into(), events: 3 });
        subscription.outstanding =
            vec![entry.clone(), Entry { execution: None, gap, returned: false, ..entry }];
        let Encoded { format, data } = encode_subscription(&subscription);
        assert_eq!(decode_subscription(format, &data), Ok(subscription));
        assert!(decode_subscription(Row::Subscription.newest() + 1, &data).is_err());
    }
}
