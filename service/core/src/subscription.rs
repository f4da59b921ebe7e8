//! A durable reader of the failure feed: which events have been delivered to it, which it has acknowledged,
//! and which are to be delivered again. The code is pure: a state and a time go in, and the next state
//! comes out. The store saves the state by compare-and-set, so two servers never both succeed with a
//! delivery.
//!
//! | entry | by | becomes |
//! | --- | --- | --- |
//! | none | [`Subscription::admit`] | waiting |
//! | waiting, due | [`Subscription::fetch`] | delivered, due again after the ack deadline |
//! | delivered | [`Subscription::ack`] | removed |
//! | delivered | [`Subscription::nack`] | returned, due after the delay |
//! | delivered to a stream | [`Subscription::open`] | returned, due at once, because that stream is gone |
//! | delivered, due | [`Subscription::fetch`] | delivered again; the earlier token is void |
//!
//! A token names one delivery, not the stream that carried it. It remains valid until its event is
//! delivered again, even if another stream takes over the subscription in the meantime.
//!
//! Events of one execution are delivered in order: while one of them is returned, due again or with another
//! reader, later events of that execution wait.

use std::collections::HashSet;
use std::time::Duration;

use crate::error::type_matches;
use crate::failure_event::FailureKind;
use crate::id::{ExecutionId, namespace_matches};
use crate::time::Timestamp;

/// Default of the time in which a delivery must be acknowledged.
pub const ACK_DEADLINE: Duration = Duration::from_secs(30);
/// Default of the maximum number of outstanding entries.
pub const WINDOW: u32 = 1_000;
/// The largest window that a subscription may have.
pub const WINDOW_MAX: u32 = 10_000;

#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    pub filter: Filter,
    /// The position at which the subscription was asked to start, as the caller wrote it. It tells a
    /// repeated creation from a different one.
    pub start: String,
    pub ack_deadline: Duration,
    /// The maximum number of outstanding entries.
    pub window: u32,
    /// Feed cursor: every event up to here is acknowledged or does not match the filter.
    pub watermark: String,
    /// Feed cursor: every event up to here is acknowledged, outstanding or does not match the filter.
    pub read: String,
    /// Events that are waiting or delivered but not acknowledged, in the order of the feed.
    pub outstanding: Vec<Entry>,
    pub consumer: Option<Consumer>,
    /// Increases with each new consumer, starting at 1. A consumer that has been replaced recognises this
    /// by its old epoch.
    pub epoch: u64,
}

/// Which events a reader wants. An empty list matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// A pattern; see [`namespace_matches`].
    pub namespace: String,
    pub workflows: Vec<String>,
    pub kinds: Vec<FailureKind>,
    /// Patterns; see [`type_matches`].
    pub error_types: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Id of the failure event.
    pub event: String,
    pub execution: Option<ExecutionId>,
    /// The place of the event on the feed.
    pub position: Position,
    /// Size of the event in the store, in bytes.
    pub bytes: u32,
    /// How many times the event has been delivered.
    pub delivery: u32,
    /// When the event is to be delivered, or delivered again.
    pub due_at: Timestamp,
    /// The event was given back, its deadline passed, or its stream was taken over. Later events of its
    /// execution wait.
    pub returned: bool,
    /// Epoch of the stream that holds the event. 0 if no stream does: the event is waiting, was pulled or
    /// was given back.
    pub stream: u64,
    /// Set if the entry stands for events that no longer exist: the cursors before and after them.
    pub gap: Option<Gap>,
}

/// Lane and number, as the store numbers events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub lane: i64,
    pub number: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Feed cursor before the missing events.
    pub from: String,
    /// Feed cursor after the missing events.
    pub to: String,
    /// How many events are missing between the two cursors.
    pub events: u64,
}

/// The consumer that is reading. Its reading lease ends at `until` unless it is renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    pub name: String,
    pub epoch: u64,
    pub until: Timestamp,
}

/// An event from a page of the feed that matches the filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub event: String,
    pub execution: Option<ExecutionId>,
    pub position: Position,
    /// Size of the event in the store, in bytes.
    pub bytes: u32,
    pub gap: Option<Gap>,
}

/// The kind of reader that asks for deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The stream of the consumer with this epoch, which reads alone.
    Stream { epoch: u64 },
    /// A caller that pulls, possibly while other callers do. An event also waits while an earlier event of
    /// its execution is delivered to any reader and not acknowledged.
    Pull,
}

/// How much is delivered at once. Delivery stops at the limit that is reached first, but at least one entry
/// is delivered, whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchLimit {
    pub entries: usize,
    pub bytes: usize,
}

/// An entry that is being delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub event: String,
    pub position: Position,
    /// How many times the event has been delivered, this time included. Together with the event's id it
    /// identifies the delivery.
    pub number: u32,
    pub due_at: Timestamp,
    pub gap: Option<Gap>,
}

/// The result of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acked {
    /// The delivery is acknowledged, by this call or by an earlier one.
    Accepted,
    /// The event has been delivered again, and only the token of the latest delivery is valid.
    Expired,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another consumer reads the subscription")]
pub struct InUse;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another stream took the subscription over")]
pub struct Taken;

impl Filter {
    /// Whether the filter matches an event. [`FailureKind::FeedGap`] always matches. An event without a
    /// kind has a kind that only a newer binary knows, so a filter that lists kinds does not match it.
    pub fn takes(
        &self,
        namespace: &str,
        workflow: &str,
        kind: Option<FailureKind>,
        error_type: &str,
    ) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|own| type_matches(own, error_type));
        kind == Some(FailureKind::FeedGap)
            || (namespace_matches(&self.namespace, namespace)
                && (self.workflows.is_empty() || self.workflows.iter().any(|own| own == workflow))
                && (self.kinds.is_empty() || kind.is_some_and(|kind| self.kinds.contains(&kind)))
                && (self.error_types.is_empty()
                    || (!error_type.is_empty() && any(&self.error_types))))
    }
}

impl Entry {
    /// Whether the event was delivered but is not held by the stream that is reading now. Later events of
    /// its execution must wait.
    fn is_elsewhere(&self) -> bool {
        self.returned || (self.delivery > 0 && self.stream == 0)
    }
}

impl Subscription {
    pub fn new(filter: Filter, start: String, cursor: String) -> Self {
        Self {
            filter,
            start,
            ack_deadline: ACK_DEADLINE,
            window: WINDOW,
            watermark: cursor.clone(),
            read: cursor,
            outstanding: Vec::new(),
            consumer: None,
            epoch: 0,
        }
    }

    /// Makes `name` the consumer until `now + lease` and returns its epoch. A consumer with the same name
    /// as the current one takes over at once: it has reconnected, and the server may not have noticed yet
    /// that its old stream is dead.
    ///
    /// Events that the previous stream held and did not acknowledge are due now instead of at their
    /// deadline. Events that were pulled or given back keep their times.
    ///
    /// # Errors
    /// [`InUse`] while a consumer with another name is reading.
    pub fn open(&mut self, name: &str, now: Timestamp, lease: Duration) -> Result<u64, InUse> {
        if self.reading(now).is_some_and(|consumer| consumer.name != name) {
            return Err(InUse);
        }
        self.epoch += 1;
        let consumer = Consumer { name: name.to_owned(), epoch: self.epoch, until: now + lease };
        self.consumer = Some(consumer);
        for entry in self.outstanding.iter_mut().filter(|entry| entry.stream != 0) {
            entry.stream = 0;
            entry.returned = true;
            entry.due_at = entry.due_at.min(now);
        }
        Ok(self.epoch)
    }

    /// Whether a stream of another consumer than `name` is reading now. An empty name never counts as the
    /// same consumer.
    pub fn is_read_by_another(&self, name: &str, now: Timestamp) -> bool {
        self.reading(now).is_some_and(|consumer| name.is_empty() || consumer.name != name)
    }

    fn reading(&self, now: Timestamp) -> Option<&Consumer> {
        self.consumer.as_ref().filter(|consumer| consumer.until > now)
    }

    /// Extends the reading lease of the consumer with this epoch until `now + lease`.
    ///
    /// # Errors
    /// [`Taken`] if another consumer has replaced it or the consumer has left.
    pub fn renew(&mut self, epoch: u64, now: Timestamp, lease: Duration) -> Result<(), Taken> {
        match &mut self.consumer {
            Some(consumer) if consumer.epoch == epoch => consumer.until = now + lease,
            _ => return Err(Taken),
        }
        Ok(())
    }

    /// The consumer with this epoch stops reading.
    pub fn close(&mut self, epoch: u64) {
        self.consumer.take_if(|consumer| consumer.epoch == epoch);
    }

    /// How many more entries fit into the window.
    pub fn room(&self) -> usize {
        (self.window as usize).saturating_sub(self.outstanding.len())
    }

    /// Adds the events that follow `read` and match the filter. The new `read` is the cursor after the last
    /// event that was looked at.
    pub fn admit(&mut self, events: Vec<Candidate>, read: String, now: Timestamp) {
        self.outstanding.extend(events.into_iter().map(|event| Entry {
            event: event.event,
            execution: event.execution,
            position: event.position,
            bytes: event.bytes,
            delivery: 0,
            due_at: now,
            returned: false,
            stream: 0,
            gap: event.gap,
        }));
        self.read = read;
        self.settle();
    }

    /// Delivers what is due to this reader now, in the order of the feed.
    pub fn fetch(&mut self, now: Timestamp, limit: FetchLimit, reader: Reader) -> Vec<Delivery> {
        let stream = match reader {
            Reader::Stream { epoch } => epoch,
            Reader::Pull => 0,
        };
        let mut held: HashSet<ExecutionId> = HashSet::new();
        let mut deliveries = Vec::new();
        let mut room = limit.bytes;
        for entry in &mut self.outstanding {
            if deliveries.len() >= limit.entries {
                break;
            }
            let is_held = entry.execution.is_some_and(|execution| held.contains(&execution));
            let is_due = entry.due_at <= now;
            if is_due && !is_held {
                let bytes = entry.bytes as usize;
                if bytes > room && !deliveries.is_empty() {
                    break;
                }
                room = room.saturating_sub(bytes);
                entry.returned = entry.delivery > 0;
                entry.delivery = entry.delivery.saturating_add(1);
                entry.due_at = now + self.ack_deadline;
                entry.stream = stream;
                deliveries.push(Delivery {
                    event: entry.event.clone(),
                    position: entry.position,
                    number: entry.delivery,
                    due_at: entry.due_at,
                    gap: entry.gap.clone(),
                });
                if !entry.returned {
                    continue;
                }
            }
            if is_due || entry.is_elsewhere() || reader == Reader::Pull {
                held.extend(entry.execution);
            }
        }
        deliveries
    }

    /// The earliest time at which [`Subscription::fetch`] has something to deliver even if no new event
    /// arrives. Events that wait for an earlier event of their execution do not count.
    pub fn next_due(&self) -> Option<Timestamp> {
        let mut held: HashSet<ExecutionId> = HashSet::new();
        let free = self.outstanding.iter().filter(|entry| {
            let is_held = entry.execution.is_some_and(|execution| held.contains(&execution));
            if entry.is_elsewhere() {
                held.extend(entry.execution);
            }
            !is_held
        });
        free.map(|entry| entry.due_at).min()
    }

    /// Acknowledges a delivery. If the event is no longer there, it was acknowledged before, so every token
    /// of the event is then accepted.
    pub fn ack(&mut self, event: &str, delivery: u32) -> Acked {
        let Some(index) = self.index(event) else {
            return Acked::Accepted;
        };
        if self.outstanding[index].delivery != delivery {
            return Acked::Expired;
        }
        self.outstanding.remove(index);
        Acked::Accepted
    }

    /// Gives a delivery back. It is delivered again after `delay`.
    pub fn nack(&mut self, event: &str, delivery: u32, now: Timestamp, delay: Duration) -> Acked {
        let index = self.index(event);
        let Some(entry) = index.map(|index| &mut self.outstanding[index]) else {
            return Acked::Expired;
        };
        if entry.delivery != delivery {
            return Acked::Expired;
        }
        entry.returned = true;
        entry.stream = 0;
        entry.due_at = now + delay;
        Acked::Accepted
    }

    /// Advances the watermark to `read` if nothing is outstanding.
    pub fn settle(&mut self) {
        if self.outstanding.is_empty() {
            self.watermark.clone_from(&self.read);
        }
    }

    fn index(&self, event: &str) -> Option<usize> {
        self.outstanding.iter().position(|entry| entry.event == event)
    }
}

#[cfg(test)]
#[path = "subscription_tests.rs"]
mod tests;
