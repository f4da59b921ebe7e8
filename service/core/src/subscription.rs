//! A durable reader of the failure feed: what it has been given, what it has acknowledged, what comes
//! again. Pure: a state and a time go in, the next state comes out; the store keeps it by
//! compare-and-set, so that two servers never both win a delivery.
//!
//! | entry | by | becomes |
//! | --- | --- | --- |
//! | not there | [`Subscription::admit`] | waiting |
//! | waiting, due | [`Subscription::fetch`] | delivered, due again after the ack deadline |
//! | delivered | [`Subscription::ack`] | gone |
//! | delivered | [`Subscription::nack`] | returned, due after the delay |
//! | delivered to a stream | [`Subscription::open`] | returned, due at once: that stream is gone |
//! | delivered, due | [`Subscription::fetch`] | delivered once more: the token before it is void |
//!
//! A token names one delivery, not the stream that carried it: it counts until its event is delivered
//! again, also when another stream has taken the subscription over in between.
//!
//! Events of one execution come in order: while one of them is returned, due again or with another
//! reader, later ones of that execution wait.

use std::collections::HashSet;
use std::time::Duration;

use crate::error::type_matches;
use crate::failure_event::FailureKind;
use crate::id::{ExecutionId, namespace_matches};
use crate::time::Timestamp;

/// How long a delivery may go unacknowledged, where nothing else is said.
pub const ACK_DEADLINE: Duration = Duration::from_secs(30);
/// Deliveries outstanding, where nothing else is said.
pub const WINDOW: u32 = 1_000;
pub const WINDOW_MAX: u32 = 10_000;

#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    pub filter: Filter,
    /// Where it was asked to start, as it was asked: tells a repeated creation from another one.
    pub start: String,
    pub ack_deadline: Duration,
    pub window: u32,
    /// Feed cursor: everything up to here is acknowledged or not asked for.
    pub watermark: String,
    /// Feed cursor: everything up to here is acknowledged, outstanding or not asked for.
    pub read: String,
    /// In the order of the feed.
    pub outstanding: Vec<Entry>,
    pub consumer: Option<Consumer>,
    /// Rises with each new consumer, from 1: a late one finds out that it is late.
    pub epoch: u64,
}

/// Which events a reader wants. What is empty takes all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Pattern: see [`namespace_matches`].
    pub namespace: String,
    pub workflows: Vec<String>,
    pub kinds: Vec<FailureKind>,
    /// Patterns: see [`type_matches`].
    pub error_types: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Id of the failure event.
    pub event: String,
    pub execution: Option<ExecutionId>,
    /// Where the event stands on the feed.
    pub position: Position,
    /// What the store keeps of the event, in bytes.
    pub bytes: u32,
    /// How often it was delivered.
    pub delivery: u32,
    /// When it is delivered, or delivered again.
    pub due_at: Timestamp,
    /// It was given back, its deadline passed or its stream was taken over: those behind it wait.
    pub returned: bool,
    /// Epoch of the stream that has it. 0: none; it waits, was pulled or was given back.
    pub stream: u64,
    /// Stands for events that are no longer there: the cursors around them.
    pub gap: Option<Gap>,
}

/// Lane and number, as the store has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub lane: i64,
    pub number: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub from: String,
    pub to: String,
    /// How many events are missing between the two.
    pub events: u64,
}

/// Who reads. It must come again before `until`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    pub name: String,
    pub epoch: u64,
    pub until: Timestamp,
}

/// An event that a page of the feed brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub event: String,
    pub execution: Option<ExecutionId>,
    pub position: Position,
    /// What the store keeps of it, in bytes.
    pub bytes: u32,
    pub gap: Option<Gap>,
}

/// Who asks for deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The consumer of this epoch, the only one.
    Stream { epoch: u64 },
    /// One that may pull beside others: an event also waits while an earlier delivery of its execution
    /// is not acknowledged, whoever has it.
    Pull,
}

/// How much is delivered at once: whatever is reached first, but one entry at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchLimit {
    pub entries: usize,
    pub bytes: usize,
}

/// One entry that is delivered now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub event: String,
    pub position: Position,
    pub number: u32,
    pub due_at: Timestamp,
    pub gap: Option<Gap>,
}

/// What became of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acked {
    /// Done, now or before.
    Accepted,
    /// The event has been delivered again: that delivery's token counts.
    Expired,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another consumer reads the subscription")]
pub struct InUse;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another stream took the subscription over")]
pub struct Taken;

impl Filter {
    /// Whether the filter wants an event. [`FailureKind::FeedGap`] always passes. An event without a kind is of one
    /// that only a newer binary knows, so a filter that names kinds does not want it.
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
    /// It was delivered, and is not with the stream that reads now: later ones of its execution wait.
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

    /// Makes somebody the consumer until `now + lease`. Who has the name of the one that reads takes
    /// over at once: it has come back, and its old stream may not know yet that it is dead. What the
    /// stream before had and did not acknowledge is due now, nothing waits for its deadline; what was
    /// pulled or given back keeps its time.
    ///
    /// # Errors
    /// While one with another name reads.
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

    /// Whether a stream reads now that is of another consumer than the one called so. One without a
    /// name is never the same.
    pub fn is_read_by_another(&self, name: &str, now: Timestamp) -> bool {
        self.reading(now).is_some_and(|consumer| name.is_empty() || consumer.name != name)
    }

    fn reading(&self, now: Timestamp) -> Option<&Consumer> {
        self.consumer.as_ref().filter(|consumer| consumer.until > now)
    }

    /// The consumer of `epoch` is still there.
    ///
    /// # Errors
    /// If another one has taken its place.
    pub fn renew(&mut self, epoch: u64, now: Timestamp, lease: Duration) -> Result<(), Taken> {
        match &mut self.consumer {
            Some(consumer) if consumer.epoch == epoch => consumer.until = now + lease,
            _ => return Err(Taken),
        }
        Ok(())
    }

    /// The consumer of `epoch` has left.
    pub fn close(&mut self, epoch: u64) {
        self.consumer.take_if(|consumer| consumer.epoch == epoch);
    }

    /// How many more entries the window takes.
    pub fn room(&self) -> usize {
        (self.window as usize).saturating_sub(self.outstanding.len())
    }

    /// Takes events that follow `read` and match the filter; `read` is the cursor behind them.
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

    /// What is to be delivered to this reader now, in order.
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

    /// When [`Subscription::fetch`] next has something without a new event: what waits behind an
    /// earlier one of its execution does not count.
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

    /// An entry that is no longer there has been acknowledged before. True in the end for all tokens
    /// of one event: none brings it back.
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

    /// Gives a delivery back; it comes again after `delay`.
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

    /// Sets the watermark where nothing is outstanding.
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
