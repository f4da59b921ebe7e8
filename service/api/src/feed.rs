//! Reading the failure feed: filtered pages with a cursor for each event, and the stream of a reader that
//! keeps its own cursor.

use std::sync::Arc;
use std::time::Duration;

use recoup_core::subscription::{Filter, Gap};
use recoup_engine::Refusal;
use recoup_proto::v1;
use recoup_store::{Cursor, PageLimit, Position, Positioned};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

use crate::BATCH_BYTES_MAX;
use crate::context::Context;
use crate::convert::enumeration::known;
use crate::convert::{failure, time};
use crate::status::{Error, Result};

/// How many events are read at a time.
pub const PAGE: usize = 128;
/// How often the feed is checked for events that other nodes wrote.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long the stream waits for further events, so that events in quick succession go out together.
const GATHER: Duration = Duration::from_millis(2);
/// About a quarter of the interval that the protocol promises.
pub const KEEPALIVE: Duration = Duration::from_secs(4);
/// A reader that accepts nothing for this long is disconnected.
pub const SEND_WITHIN: Duration = Duration::from_secs(60);

pub type Responses = mpsc::Sender<Result<v1::SubscribeFailuresResponse, Status>>;

pub type Slot<'a> = mpsc::Permit<'a, Result<v1::SubscribeFailuresResponse, Status>>;

/// A page of the feed.
pub struct Page {
    pub gap: Option<Gap>,
    /// The events, each with the cursor after it.
    pub events: Vec<(Positioned, Cursor)>,
    /// The cursor after the whole page.
    pub read: Cursor,
    /// Whether more events may be available right now.
    pub has_more: bool,
}

/// Reads the page after a cursor.
pub async fn page(context: &Context, after: &Cursor, filter: &Filter) -> Result<Page> {
    let limit = PageLimit { events: PAGE, bytes: context.feed_page_bytes };
    let page = context.store().read_feed(after, limit).await?;
    let (from, to) = (after.encode(), page.cursor.encode());
    let gap = page.gap.map(|events| Gap { from, to, events });
    let mut reached = after.clone();
    let mut events = Vec::new();
    for event in page.events {
        advance(&mut reached, event.position);
        let row = &event.row;
        let kind = row.kind.known();
        if filter.takes(row.namespace.as_str(), &row.workflow, kind, &row.error_type) {
            events.push((event, reached.clone()));
        }
    }
    Ok(Page { gap, events, read: page.cursor, has_more: page.has_more })
}

/// Moves a cursor past an event.
pub fn advance(cursor: &mut Cursor, position: Position) {
    match cursor.lanes.binary_search_by_key(&position.lane, |(lane, _)| *lane) {
        Ok(index) => cursor.lanes[index].1 = cursor.lanes[index].1.max(position.number),
        Err(index) => cursor.lanes.insert(index, (position.lane, position.number)),
    }
}

/// Waits until there may be more events, but at most until `until`.
pub async fn changed(written: &mut watch::Receiver<u64>, until: Instant) {
    let poll = Instant::now() + POLL_INTERVAL;
    tokio::select! {
        changed = written.changed() => match changed {
            Ok(()) => tokio::time::sleep(GATHER).await,
            // The engine is gone, but its store may still be readable.
            Err(_) => tokio::time::sleep_until(poll.min(until)).await,
        },
        () = tokio::time::sleep_until(poll.min(until)) => {}
    }
}

/// Converts a page to deliveries for a reader without a subscription.
pub fn deliveries(page: Page, now: recoup_core::time::Timestamp) -> Result<Vec<Sized>> {
    let mut all = Vec::with_capacity(page.events.len());
    if let Some(gap) = &page.gap {
        let event = failure::gap(gap, now);
        let bytes = gap.from.len() + gap.to.len() + 256;
        all.push(Sized { delivery: delivery(event, gap.from.clone()), bytes });
    }
    for (event, cursor) in page.events {
        let (event, bytes) = failure::to_proto(&failure::stored(&event.row)?);
        let cursor = cursor.encode();
        let bytes = bytes + cursor.len() + 64;
        all.push(Sized { delivery: delivery(event, cursor), bytes });
    }
    Ok(all)
}

/// A delivery and its approximate size in bytes.
pub struct Sized {
    pub delivery: v1::FailureDelivery,
    pub bytes: usize,
}

fn delivery(event: v1::FailureEvent, cursor: String) -> v1::FailureDelivery {
    v1::FailureDelivery {
        event: Some(event),
        cursor,
        ack_token: String::new(),
        delivery: 1,
        ack_deadline: None,
    }
}

/// Splits deliveries into messages. No message is empty.
pub fn chunks(all: Vec<Sized>) -> Vec<Vec<v1::FailureDelivery>> {
    let mut chunks: Vec<Vec<_>> = Vec::new();
    let mut bytes = 0;
    for Sized { delivery, bytes: own } in all {
        match chunks.last_mut() {
            Some(chunk) if bytes + own <= BATCH_BYTES_MAX => {
                bytes += own;
                chunk.push(delivery);
            }
            _ => {
                bytes = own;
                chunks.push(vec![delivery]);
            }
        }
    }
    chunks
}

/// Streams to a reader that keeps its own cursor, until the reader leaves or the server stops.
pub async fn stream(context: Arc<Context>, filter: Filter, cursor: Cursor, responses: Responses) {
    let ended = tokio::select! {
        ended = follow(&context, &filter, cursor, &responses) => ended,
        () = responses.closed() => return,
        () = context.stopping() => Err(Refusal::Stopping.into()),
    };
    if let Err(error) = ended {
        // If the reader does not accept the error either, the error is dropped.
        let _ = responses.send_timeout(Err(error.into()), SEND_WITHIN).await;
    }
}

/// Serves the stream. Returns `Ok` if the reader stops accepting responses.
async fn follow(
    context: &Context,
    filter: &Filter,
    mut cursor: Cursor,
    responses: &Responses,
) -> Result<()> {
    let mut written = context.engine.feed_written();
    // The first response is sent at once. It gives the reader its cursor and shows that the stream works.
    let mut keepalive_at = Instant::now();
    loop {
        let Some(slot) = slot(responses).await else { return Ok(()) };
        let mut slot = Some(slot);
        written.borrow_and_update();
        let page = page(context, &cursor, filter).await?;
        let (read, has_more) = (page.read.clone(), page.has_more);
        for deliveries in chunks(deliveries(page, context.engine.now())?) {
            let behind = deliveries.last().map_or(String::new(), |last| last.cursor.clone());
            if !send(context, responses, &mut slot, deliveries, behind).await {
                return Ok(());
            }
            keepalive_at = Instant::now() + KEEPALIVE;
        }
        cursor = read;
        if Instant::now() >= keepalive_at {
            if !send(context, responses, &mut slot, Vec::new(), cursor.encode()).await {
                return Ok(());
            }
            keepalive_at = Instant::now() + KEEPALIVE;
        }
        drop(slot);
        if !has_more {
            changed(&mut written, keepalive_at).await;
        }
    }
}

/// Waits for room for one response. This happens before anything is read, so that a reader that accepts
/// nothing does not cause another page to be held besides the one that is on its way. `None` if the reader
/// is gone or accepts nothing.
pub async fn slot(responses: &Responses) -> Option<Slot<'_>> {
    tokio::time::timeout(SEND_WITHIN, responses.reserve()).await.ok()?.ok()
}

/// Sends a response in the slot, or waits for another slot if it is used up. Returns false if the reader is
/// gone or accepts nothing.
pub async fn send<'a>(
    context: &Context,
    responses: &'a Responses,
    slot: &mut Option<Slot<'a>>,
    deliveries: Vec<v1::FailureDelivery>,
    cursor: String,
) -> bool {
    let room = match slot.take() {
        Some(room) => Some(room),
        None => self::slot(responses).await,
    };
    let Some(room) = room else { return false };
    let time = Some(time::timestamp(context.engine.now()));
    room.send(Ok(v1::SubscribeFailuresResponse { deliveries, cursor, time }));
    true
}

/// The cursor at which a reader starts.
pub async fn position(context: &Context, position: i32, field: &str) -> Result<Cursor> {
    Ok(match known(position, field)? {
        v1::FeedPosition::Unspecified | v1::FeedPosition::Now => context.store().feed_end().await?,
        v1::FeedPosition::Beginning => context.store().feed_start().await?,
    })
}

/// Checks that a cursor from a client belongs to this store.
pub async fn cursor(context: &Context, text: &str, field: &str) -> Result<Cursor> {
    let told = |error: recoup_store::Error| match error {
        recoup_store::Error::MalformedCursor | recoup_store::Error::ForeignCursor => {
            let error = Error::from(error);
            Error::field(error.reason, field, error.message)
        }
        other => other.into(),
    };
    let cursor = Cursor::decode(text).map_err(told)?;
    context.store().read_feed(&cursor, PageLimit { events: 1, bytes: 0 }).await.map_err(told)?;
    Ok(cursor)
}

#[cfg(test)]
mod tests {
    use recoup_store::NodeId;

    use super::*;

    #[test]
    fn cursor_advances_past_an_event_and_never_goes_back() {
        let mut cursor = Cursor {
            incarnation: uuid::Uuid::nil(),
            floor: NodeId(1),
            lanes: vec![(NodeId(1), 5), (NodeId(4), 2)],
        };
        advance(&mut cursor, Position { number: 9, lane: NodeId(3) });
        advance(&mut cursor, Position { number: 7, lane: NodeId(1) });
        advance(&mut cursor, Position { number: 1, lane: NodeId(4) });
        assert_eq!(cursor.lanes, [(NodeId(1), 7), (NodeId(3), 9), (NodeId(4), 2)]);
    }

    #[test]
    fn deliveries_are_split_into_messages_by_bytes() {
        let sized = |bytes| Sized { delivery: v1::FailureDelivery::default(), bytes };
        let cut = chunks(vec![sized(1), sized(BATCH_BYTES_MAX), sized(BATCH_BYTES_MAX), sized(1)]);
        let lengths: Vec<_> = cut.iter().map(Vec::len).collect();
        assert_eq!(lengths, [1, 1, 1, 1]);
        let cut = chunks(vec![sized(1), sized(BATCH_BYTES_MAX - 1), sized(1), sized(1)]);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
        assert!(chunks(Vec::new()).is_empty());
    }
}
