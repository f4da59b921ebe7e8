//! Delivery to durable subscriptions. Core decides, the store keeps the state by compare-and-set, and this
//! module carries events from the feed to the consumer. A delivery is sent only after it has been stored,
//! and an acknowledgement is answered only after it has been stored.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use recoup_core::id::Namespace;
use recoup_core::subscription::{
    self, Acked, Candidate, Delivery, FetchLimit, Gap, Position, Subscription,
};
use recoup_core::time::Timestamp;
use recoup_engine::Refusal;
use recoup_proto::v1::{self, ErrorReason};
use recoup_store::format::{Encoded, decode_subscription, encode_subscription};
use recoup_store::{Cursor, NodeId, Positioned, SubscriptionRow};
use tokio::time::Instant;

use crate::ack_token::{AckToken, subscription_digest};
use crate::context::Context;
use crate::convert::{failure, time};
use crate::feed::{self, KEEPALIVE, Responses, SEND_WITHIN, Sized};
use crate::status::{Error, Result};

/// A consumer that has not renewed its lease for this long counts as gone.
const LEASE: Duration = Duration::from_secs(15);
/// The lease is written again when only this much of it is left.
const LEASE_RENEW: Duration = Duration::from_secs(9);
/// The most deliveries in one write, so that everything on a page of the feed can be delivered at once.
const DELIVERIES_MAX: usize = feed::PAGE;
/// How many lost races a write survives before it is given up.
const RACES_MAX: u32 = 100;

/// Names a subscription.
#[derive(Clone, Debug)]
pub struct Name {
    pub namespace: Namespace,
    pub name: String,
}

/// The reader that asks for deliveries.
#[derive(Clone, Copy, Debug)]
pub enum Reader<'a> {
    /// The consumer on a stream. `epoch` changes when another stream takes over.
    Stream { epoch: u64 },
    /// A pull. Other pulls may run at the same time.
    Pull { consumer: &'a str },
}

impl Reader<'_> {
    fn of_core(self) -> subscription::Reader {
        match self {
            Self::Stream { epoch } => subscription::Reader::Stream { epoch },
            Self::Pull { .. } => subscription::Reader::Pull,
        }
    }
}

/// What a reader gets from one fetch.
pub struct Fetched {
    pub deliveries: Vec<Sized>,
    pub watermark: String,
    /// Whether more could be delivered right now.
    pub has_more: bool,
    /// When the next delivery falls due.
    pub next_due: Option<Timestamp>,
}

pub fn no_subscription(name: &str) -> Error {
    let message = format!("there is no subscription `{name}` in the namespace");
    Error::new(ErrorReason::SubscriptionNotFound, message)
}

pub fn stored(row: &SubscriptionRow) -> Result<Subscription> {
    decode_subscription(row.format, &row.state)
        .map_err(|error| Error::unreadable("a stored subscription", &error))
}

pub async fn load(context: &Context, name: &Name) -> Result<(SubscriptionRow, Subscription)> {
    let row = context.store().subscription(&name.namespace, &name.name).await?;
    let row = row.ok_or_else(|| no_subscription(&name.name))?;
    let state = stored(&row)?;
    Ok((row, state))
}

/// Stores a subscription. Returns false if another writer changed it first; the caller must read it again.
async fn save(context: &Context, row: SubscriptionRow, state: &Subscription) -> Result<bool> {
    let Encoded { format, data } = encode_subscription(state);
    let name = row.name.clone();
    let row = SubscriptionRow { format, state: data, ..row };
    match context.store().update_subscription(&row).await {
        Ok(_) => Ok(true),
        Err(recoup_store::Error::Conflict) => {
            context.races_lost.fetch_add(1, Ordering::Relaxed);
            Ok(false)
        }
        Err(recoup_store::Error::NotFound) => Err(no_subscription(&name)),
        Err(error) => Err(error.into()),
    }
}

fn contended() -> Error {
    let message = "too many callers are changing the subscription at the same time; try again";
    Error::new(ErrorReason::StoreUnavailable, message)
}

fn in_use() -> Error {
    Error::new(ErrorReason::SubscriptionInUse, "another consumer reads the subscription")
}

fn taken() -> Error {
    Error::new(ErrorReason::SubscriptionTaken, "another stream took the subscription over")
}

/// Changes a subscription, and repeats that until no other writer interferes. `change` returns whether it
/// changed anything.
async fn update<T>(
    context: &Context,
    name: &Name,
    mut change: impl FnMut(&mut Subscription, &SubscriptionRow) -> Result<(bool, T)>,
) -> Result<T> {
    for _ in 0..RACES_MAX {
        let (row, mut state) = load(context, name).await?;
        let (changed, value) = change(&mut state, &row)?;
        if !changed || save(context, row, &state).await? {
            return Ok(value);
        }
    }
    Err(contended())
}

/// Makes `consumer` the consumer of the subscription. The deliveries that its previous stream did not
/// acknowledge become due at once.
pub async fn open(context: &Context, name: &Name, consumer: &str) -> Result<u64> {
    let now = context.engine.now();
    let opened = update(context, name, |state, _| {
        let epoch = state.open(consumer, now, LEASE).map_err(|_| in_use())?;
        Ok((true, epoch))
    });
    let epoch = opened.await?;
    // If a stream of this server was taken over, it notices now. A stream of another server notices at its
    // next fetch.
    context.acknowledged.send_modify(|count| *count = count.wrapping_add(1));
    Ok(epoch)
}

async fn close(context: &Context, name: &Name, epoch: u64) {
    let closed = update(context, name, |state, _| {
        let was_read = state.consumer.is_some();
        state.close(epoch);
        Ok((was_read && state.consumer.is_none(), ()))
    });
    if let Err(error) = closed.await {
        // That is harmless: the lease of the consumer will expire.
        tracing::debug!(%error, "a consumer could not be released; its lease will expire");
    }
}

/// Fetches what can be delivered now. The deliveries are stored before this returns.
pub async fn fetch(
    context: &Context,
    name: &Name,
    reader: Reader<'_>,
    limit: usize,
) -> Result<Fetched> {
    for _ in 0..RACES_MAX {
        let now = context.engine.now();
        let (row, before) = load(context, name).await?;
        let mut state = before.clone();
        match reader {
            Reader::Stream { epoch } => {
                let has_time =
                    before.consumer.as_ref().is_some_and(|own| own.until > now + LEASE_RENEW);
                let lease = if has_time { Duration::ZERO } else { LEASE };
                let until = before.consumer.as_ref().map(|own| own.until);
                state.renew(epoch, now, lease).map_err(|_| taken())?;
                if let (true, Some(own), Some(until)) = (has_time, &mut state.consumer, until) {
                    own.until = until;
                }
            }
            Reader::Pull { consumer } => {
                if state.is_read_by_another(consumer, now) {
                    return Err(in_use());
                }
            }
        }
        let (fresh, page_has_more) = admit(context, &mut state, now).await?;
        let limit =
            FetchLimit { entries: limit.min(DELIVERIES_MAX), bytes: context.feed_page_bytes };
        let deliveries = state.fetch(now, limit, reader.of_core());
        if state != before && !save(context, row.clone(), &state).await? {
            continue;
        }
        // Entries that did not fit into the limits are due already.
        let next_due = state.next_due();
        let has_more = (!deliveries.is_empty() && next_due.is_some_and(|due| due <= now))
            || (page_has_more && state.room() > 0);
        return Ok(Fetched {
            deliveries: convert(context, &row, &state, deliveries, fresh, now).await?,
            watermark: state.watermark.clone(),
            has_more,
            next_due,
        });
    }
    Err(contended())
}

/// Admits new events from the feed to the window of the subscription, as far as there is room. Returns them
/// by id, and whether more may follow.
async fn admit(
    context: &Context,
    state: &mut Subscription,
    now: Timestamp,
) -> Result<(HashMap<String, Positioned>, bool)> {
    let mut room = state.room();
    let mut fresh = HashMap::new();
    if room == 0 {
        return Ok((fresh, false));
    }
    let after = Cursor::decode(&state.read)?;
    let page = feed::page(context, &after, &state.filter).await?;
    let mut candidates = Vec::new();
    if let Some(gap) = page.gap {
        room -= 1;
        candidates.push(Candidate {
            event: failure::gap_id(&gap),
            execution: None,
            position: Position::default(),
            bytes: 0,
            gap: Some(gap),
        });
    }
    // How far the feed counts as read: to the end of the page, or only to the last event for which there
    // was room.
    let mut read = page.read;
    let mut has_more = page.has_more;
    let mut reached = after;
    for (event, behind) in page.events {
        if room == 0 {
            (read, has_more) = (reached, true);
            break;
        }
        room -= 1;
        reached = behind;
        candidates.push(Candidate {
            event: event.row.id.clone(),
            execution: event.row.execution,
            position: Position { lane: event.position.lane.0, number: event.position.number },
            bytes: u32::try_from(event.row.data.len()).unwrap_or(u32::MAX),
            gap: None,
        });
        fresh.insert(event.row.id.clone(), event);
    }
    let read = read.encode();
    if !candidates.is_empty() || read != state.read {
        state.admit(candidates, read, now);
    }
    Ok((fresh, has_more))
}

async fn convert(
    context: &Context,
    row: &SubscriptionRow,
    state: &Subscription,
    deliveries: Vec<Delivery>,
    mut fresh: HashMap<String, Positioned>,
    now: Timestamp,
) -> Result<Vec<Sized>> {
    let digest = subscription_digest(row);
    let mut converted = Vec::with_capacity(deliveries.len());
    for delivery in deliveries {
        let event = match (&delivery.gap, fresh.remove(&delivery.event)) {
            (Some(_), _) => None,
            (None, Some(event)) => Some(event),
            (None, None) => context.store().failure(&delivery.event).await?,
        };
        let (event, bytes) = match event {
            Some(event) => failure::to_proto(&failure::stored(&event.row)?),
            None => {
                // If there is no gap that explains why the event is missing, retention deleted it before
                // the consumer read it.
                let (from, to) = (state.watermark.clone(), state.read.clone());
                let lost = || Gap { from, to, events: 1 };
                let gap = delivery.gap.clone().unwrap_or_else(lost);
                (failure::gap(&gap, now), gap.from.len() + gap.to.len() + 256)
            }
        };
        let cursor = cursor(state, delivery.position, delivery.gap.as_ref());
        let token = AckToken { delivery: delivery.number, event: delivery.event };
        let bytes = bytes + cursor.len() + 256;
        let delivery = v1::FailureDelivery {
            event: Some(event),
            cursor,
            ack_token: token.encode(digest),
            delivery: delivery.number,
            ack_deadline: Some(time::timestamp(delivery.due_at)),
        };
        converted.push(Sized { delivery, bytes });
    }
    Ok(converted)
}

/// The cursor for an event: the watermark advanced to the position of the event. A gap has the cursor of
/// its beginning.
fn cursor(state: &Subscription, position: Position, gap: Option<&Gap>) -> String {
    match (gap, Cursor::decode(&state.watermark)) {
        (Some(gap), _) => gap.from.clone(),
        (None, Ok(cursor)) => behind(cursor, position).encode(),
        (None, Err(_)) => state.watermark.clone(),
    }
}

fn behind(mut cursor: Cursor, position: Position) -> Cursor {
    let lane = NodeId(position.lane);
    if lane >= cursor.floor {
        feed::advance(&mut cursor, recoup_store::Position { number: position.number, lane });
    }
    cursor
}

/// Acknowledges deliveries. Returns one answer per token.
pub async fn ack(context: &Context, name: &Name, tokens: &[String]) -> Result<Vec<ErrorReason>> {
    let acked = update(context, name, |state, row| {
        let digest = subscription_digest(row);
        let mut changed = false;
        let answers = tokens.iter().map(|token| {
            let Some(token) = AckToken::decode(token, digest) else {
                return ErrorReason::AckTokenInvalid;
            };
            let head = state.outstanding.first().filter(|head| head.event == token.event);
            let head = head.filter(|head| head.gap.is_none()).map(|head| head.position);
            let count = state.outstanding.len();
            let acked = state.ack(&token.event, token.delivery);
            if state.outstanding.len() < count {
                changed = true;
                follow_watermark(state, head);
            }
            reason(acked)
        });
        let answers = answers.collect();
        Ok((changed, answers))
    });
    let answers = acked.await?;
    // A stream that is waiting has room in its window again.
    context.acknowledged.send_modify(|count| *count = count.wrapping_add(1));
    Ok(answers)
}

/// Settles the subscription. Everything before the first entry is done, so if that entry was acknowledged,
/// the watermark first advances past its position.
fn follow_watermark(state: &mut Subscription, head: Option<Position>) {
    if let (Some(position), Ok(cursor)) = (head, Cursor::decode(&state.watermark)) {
        state.watermark = behind(cursor, position).encode();
    }
    state.settle();
}

/// Gives deliveries back. Returns one answer per token.
pub async fn nack(
    context: &Context,
    name: &Name,
    nacks: &[(String, Duration)],
) -> Result<Vec<ErrorReason>> {
    let now = context.engine.now();
    let nacked = update(context, name, |state, row| {
        let digest = subscription_digest(row);
        let mut changed = false;
        let answers = nacks.iter().map(|(token, delay)| {
            let Some(token) = AckToken::decode(token, digest) else {
                return ErrorReason::AckTokenInvalid;
            };
            let nacked = state.nack(&token.event, token.delivery, now, *delay);
            changed |= nacked == Acked::Accepted;
            reason(nacked)
        });
        let answers = answers.collect();
        Ok((changed, answers))
    });
    let answers = nacked.await?;
    context.acknowledged.send_modify(|count| *count = count.wrapping_add(1));
    Ok(answers)
}

fn reason(acked: Acked) -> ErrorReason {
    match acked {
        Acked::Accepted => ErrorReason::Unspecified,
        Acked::Expired => ErrorReason::AckExpired,
    }
}

/// Streams to the consumer of `epoch` until the consumer leaves, another stream takes over, the
/// subscription is deleted or the server stops.
pub async fn stream(context: Arc<Context>, name: Name, epoch: u64, responses: Responses) {
    let ended = tokio::select! {
        ended = follow(&context, &name, epoch, &responses) => ended,
        () = responses.closed() => Ok(()),
        () = context.stopping() => Err(Refusal::Stopping.into()),
    };
    close(&context, &name, epoch).await;
    if let Err(error) = ended {
        // If the consumer does not accept the error either, the error is dropped.
        let _ = responses.send_timeout(Err(error.into()), SEND_WITHIN).await;
    }
}

/// Serves the stream. Returns `Ok` if the consumer stops accepting responses.
async fn follow(context: &Context, name: &Name, epoch: u64, responses: &Responses) -> Result<()> {
    let mut written = context.engine.feed_written();
    let mut acknowledged = context.acknowledged.subscribe();
    let mut keepalive_at = Instant::now();
    loop {
        // Wait for room first: otherwise the deadline of a delivery could start before it can be sent.
        let Some(slot) = feed::slot(responses).await else { return Ok(()) };
        let mut slot = Some(slot);
        written.borrow_and_update();
        acknowledged.borrow_and_update();
        let reader = Reader::Stream { epoch };
        let fetched = fetch(context, name, reader, DELIVERIES_MAX).await?;
        let watermark = fetched.watermark;
        for deliveries in feed::chunks(fetched.deliveries) {
            if !feed::send(context, responses, &mut slot, deliveries, watermark.clone()).await {
                return Ok(());
            }
            keepalive_at = Instant::now() + KEEPALIVE;
        }
        if Instant::now() >= keepalive_at {
            if !feed::send(context, responses, &mut slot, Vec::new(), watermark).await {
                return Ok(());
            }
            keepalive_at = Instant::now() + KEEPALIVE;
        }
        drop(slot);
        if !fetched.has_more {
            let due = fetched.next_due.map(|due| due.since(context.engine.now()));
            let due = due.map(|wait| Instant::now() + wait.max(Duration::from_millis(5)));
            let until = due.map_or(keepalive_at, |due| due.min(keepalive_at));
            tokio::select! {
                () = feed::changed(&mut written, until) => {}
                _ = acknowledged.changed() => {}
            }
        }
    }
}

/// Returns the deliveries that are due, or waits until there are some.
pub async fn pull(
    context: &Context,
    name: &Name,
    consumer: &str,
    limit: usize,
    wait: Duration,
) -> Result<Fetched> {
    let mut written = context.engine.feed_written();
    let deadline = Instant::now() + wait;
    loop {
        written.borrow_and_update();
        let fetched = fetch(context, name, Reader::Pull { consumer }, limit).await?;
        if !fetched.deliveries.is_empty() || Instant::now() >= deadline {
            return Ok(fetched);
        }
        if !fetched.has_more {
            tokio::select! {
                () = feed::changed(&mut written, deadline) => {}
                () = context.stopping() => return Ok(fetched),
            }
        }
    }
}

#[cfg(test)]
#[path = "durable_tests.rs"]
mod tests;
