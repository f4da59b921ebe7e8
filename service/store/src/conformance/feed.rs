//! The feed: nothing twice, nothing skipped, in order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use recoup_core::failure_event::FailureKind;
use recoup_core::time::Timestamp;
use uuid::Uuid;

use super::Harness;
use super::world::{LONG, World, ids};
use crate::contract::*;

/// Starts an execution whose first transition has these events.
async fn write(world: &World, node: NodeId, events: &[&str]) {
    let id = world.id();
    let feed = events.iter().map(|event| world.event(event, id)).collect();
    world.won(node, [Transition { feed, ..world.start(id) }]).await;
}

fn in_order(events: &[Positioned]) -> bool {
    events.is_sorted_by(|one, next| one.position < next.position)
}

pub async fn feed_is_the_same_in_pages_of_any_size(world: World) {
    let nodes = [world.node().await, world.node().await, world.node().await];
    let mut written = Vec::new();
    for round in 0..20 {
        for node in nodes {
            let names = [0, 1].map(|i| format!("{round}.{}.{i}", node.0));
            write(&world, node, &[&names[0], &names[1]]).await;
            written.extend(names);
        }
    }
    let start = world.store.feed_start().await.expect("start");
    let (whole, end, gap) = world.read_on(&start, 1000).await;
    assert!(in_order(&whole));
    assert_eq!(gap, None);
    for limit in [1, 7, 120] {
        let (pages, end_too, gap) = world.read_on(&start, limit).await;
        assert_eq!(pages, whole, "in pages of {limit}");
        assert_eq!((end_too, gap), (end.clone(), None));
    }
    for event in &whole {
        assert!(nodes.contains(&event.position.lane));
        assert_eq!(event.row, world.event(&event.row.id, event.row.execution.expect("its own")));
    }
    let seen: BTreeSet<_> = ids(&whole).into_iter().collect();
    assert_eq!(seen, written.into_iter().collect());
    let past_the_end = world.store.read_feed(&end, PageLimit::events(10)).await.expect("reads");
    assert_eq!((past_the_end.events.len(), past_the_end.cursor), (0, end));
}

pub async fn pages_end_at_the_byte_limit_and_skip_nothing(world: World) {
    let nodes = [world.node().await, world.node().await];
    // Two lanes in turn, with sizes that do not divide the limit, and with one event that exceeds the limit
    // alone.
    let sizes = [40, 40, 40, 500, 1, 99, 100, 101, 30, 30, 30, 30];
    for (index, size) in sizes.into_iter().enumerate() {
        let data = Bytes::from(vec![b'x'; size]);
        let row = FeedRow { data, ..world.free_event(&format!("{index}")) };
        let batch = Batch { feed: vec![row], ..Batch::default() };
        world.store.commit(nodes[index % 2], &batch).await.expect("commits");
    }
    let start = world.store.feed_start().await.expect("start");
    let whole = world.read_on(&start, 1000).await.0;
    let sizes: Vec<_> = whole.iter().map(|event| event.row.data.len()).collect();
    for limit in [
        PageLimit { events: 1000, bytes: 100 },
        PageLimit { events: 2, bytes: 100 },
        PageLimit { events: 3, bytes: 0 },
    ] {
        let (mut read, mut cursor) = (Vec::new(), start.clone());
        loop {
            let page = world.store.read_feed(&cursor, limit).await.expect("reads");
            let rest = sizes.iter().skip(read.len()).copied();
            assert_eq!(page.events.len(), limit.takes(rest), "{limit:?} after {}", read.len());
            let has_more = page.has_more;
            read.extend(page.events);
            cursor = page.cursor;
            if !has_more {
                break;
            }
        }
        assert_eq!(read, whole, "{limit:?}");
        let end = world.store.read_feed(&cursor, limit).await.expect("reads");
        assert_eq!((end.events.len(), end.has_more), (0, false));
    }
}

pub async fn events_of_a_transition_keep_their_order(world: World) {
    let node = world.node().await;
    // These names are not in an order that an index would produce.
    let names = ["m", "z", "a", "q", "b"];
    write(&world, node, &names).await;
    assert_eq!(world.feed_ids().await, names);
}

pub async fn events_of_an_execution_keep_their_order_across_lanes(world: World) {
    let nodes = [world.node().await, world.node().await];
    let id = world.id();
    let mut written = Vec::new();
    // The first commit is so large that its numbers run ahead of the clock.
    for sequence in 1..=12 {
        let node = nodes[usize::from(sequence % 2 == 0)];
        let count = if sequence == 1 { 3000 } else { 3 };
        let names: Vec<_> = (0..count).map(|i| format!("{sequence}.{i}")).collect();
        if sequence > 1 {
            let history = world.load(node, id).await.expect("there");
            assert_eq!(history.transitions.len() as u64, sequence - 1);
        }
        let feed = names.iter().map(|name| world.event(name, id)).collect();
        let index = Some(world.index());
        world.won(node, [Transition { index, feed, ..world.next(id, sequence) }]).await;
        written.extend(names);
    }
    let feed = world.feed().await;
    assert!(in_order(&feed));
    assert_eq!(ids(&feed), written);
    let start = world.store.feed_start().await.expect("start");
    assert_eq!(ids(&world.read_on(&start, 17).await.0), written);
}

/// The clock of one node is fast, or the clock of the other was set back. The second node follows because it
/// loads the execution.
pub async fn lane_that_is_ahead_is_not_overtaken(world: World, harness: &dyn Harness) {
    let nodes = [world.node().await, world.node().await];
    let ahead = world.now + Duration::from_secs(3600);
    harness.set_lane(nodes[0], ahead.as_micros()).await;
    let id = world.id();
    let names = ["1", "2", "3", "4", "5"];
    for (sequence, name) in (1..).zip(names) {
        let node = nodes[usize::from(sequence % 2 == 0)];
        if sequence > 1 {
            world.load(node, id).await.expect("there");
        }
        let feed = vec![world.event(name, id)];
        let index = Some(world.index());
        world.won(node, [Transition { index, feed, ..world.next(id, sequence) }]).await;
    }
    assert!(world.feed().await[0].position.number > ahead.as_micros(), "the lane was not set");
    assert_eq!(world.feed_ids().await, names);
}

/// A node that already knows the transition with the highest number reads only what comes after it, and must
/// still follow that number.
pub async fn lane_follows_known_transitions_as_well_as_those_it_reads(
    world: World,
    harness: &dyn Harness,
) {
    let [behind, fast] = [world.node().await, world.node().await];
    let ahead = world.now + Duration::from_secs(3600);
    harness.set_lane(fast, ahead.as_micros()).await;
    let execution = world.id();
    let with_event = |sequence, name: &str| Transition {
        index: Some(world.index()),
        feed: vec![world.event(name, execution)],
        ..world.next(execution, sequence)
    };
    world.won(fast, [with_event(1, "1")]).await;
    for after in [1, 2] {
        let wanted = Wanted { execution, after };
        let read = world.store.load_within(behind, &[wanted], usize::MAX).await.expect("loads");
        assert_eq!(read.first().map(|history| history.transitions.len()), Some(0));
    }
    world.won(behind, [with_event(2, "2")]).await;
    assert_eq!(world.feed_ids().await, ["1", "2"]);
}

/// A batch that was in flight when its node lost its lease is sent again in the next life, without loading
/// again what the last life knew.
pub async fn batch_resent_under_the_next_lease_follows_the_events_of_the_last(
    world: World,
    harness: &dyn Harness,
) {
    let before = world.node().await;
    let ahead = world.now + Duration::from_secs(3600);
    harness.set_lane(before, ahead.as_micros()).await;
    let id = world.id();
    let next = |sequence: u64, name: &str| {
        let feed = vec![world.event(name, id)];
        Transition { index: Some(world.index()), feed, ..world.next(id, sequence) }
    };
    world.won(before, [next(1, "1")]).await;
    let batch = super::world::batch([next(2, "2")]);
    world.store.leave(before).await.expect("leaves");
    let refused = world.store.commit(before, &batch).await;
    assert!(matches!(refused, Err(Error::LeaseLost)), "{refused:?}");
    let node = world.node().await;
    assert_eq!(world.store.commit(node, &batch).await.expect("commits"), [Settled::Won]);
    let first = world.store.failure("1").await.expect("asks").expect("there");
    assert!(first.position.number > ahead.as_micros(), "the lane was not set");
    assert_eq!(world.feed_ids().await, ["1", "2"]);
}

pub async fn cursors_from_the_start_and_the_end_read_the_events_after_them(world: World) {
    let (start, end) = (world.store.feed_start().await, world.store.feed_end().await);
    let (start, end) = (start.expect("start"), end.expect("end"));
    let node = world.node().await;
    write(&world, node, &["first"]).await;
    for cursor in [start, end] {
        assert_eq!(ids(&world.read_on(&cursor, 10).await.0), ["first"]);
    }
    let end = world.store.feed_end().await.expect("end");
    assert_eq!(world.read_on(&end, 10).await.0, []);
    write(&world, node, &["second"]).await;
    let other = world.node().await;
    write(&world, other, &["third"]).await;
    assert_eq!(ids(&world.read_on(&end, 10).await.0), ["second", "third"]);
    assert_eq!(world.feed_ids().await, ["first", "second", "third"]);
}

pub async fn reader_sees_every_event_once_while_lanes_open_and_close(world: World) {
    let mut cursor = world.store.feed_start().await.expect("start");
    let steady = world.node().await;
    let mut expected = Vec::new();
    let mut seen = Vec::new();
    for life in 0..8 {
        let node = world.node().await;
        let names = [format!("a{life}"), format!("b{life}"), format!("c{life}")];
        write(&world, node, &[&names[0]]).await;
        // The reader is in the middle of a lane when that lane is closed.
        let page = world.store.read_feed(&cursor, PageLimit::events(1)).await.expect("reads");
        seen.extend(ids(&page.events));
        cursor = page.cursor;
        write(&world, node, &[&names[1]]).await;
        world.store.leave(node).await.expect("leaves");
        write(&world, steady, &[&names[2]]).await;
        expected.extend(names);
    }
    world.store.leave(steady).await.expect("leaves");
    let (rest, end, _) = world.read_on(&cursor, 2).await;
    seen.extend(ids(&rest));
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected, "every event once");
    let last = world.node().await;
    write(&world, last, &["new"]).await;
    assert_eq!(ids(&world.read_on(&end, 2).await.0), ["new"]);
}

/// Batches differ in size, so that some commits take longer than others.
fn size(writer: usize, round: usize) -> usize {
    1 + (round * 7 + writer * 13) % 50
}

pub async fn reader_concurrent_with_writers_misses_nothing(world: World) {
    let world = Arc::new(world);
    let mut cursor = world.store.feed_start().await.expect("start");
    let mut writers = Vec::new();
    for writer in 0..4 {
        let (world, node) = (world.clone(), world.node().await);
        writers.push(tokio::spawn(async move {
            for round in 0..40 {
                let starts = (0..size(writer, round)).map(|i| {
                    let id = world.id();
                    let event = world.event(&format!("{writer}.{round}.{i}"), id);
                    Transition { feed: vec![event], ..world.start(id) }
                });
                world.won(node, starts.collect::<Vec<_>>()).await;
            }
        }));
    }
    let mut seen = Vec::new();
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        let page = world.store.read_feed(&cursor, PageLimit::events(23)).await.expect("reads");
        seen.extend(ids(&page.events));
        cursor = page.cursor;
        tokio::task::yield_now().await;
    }
    for writer in writers {
        writer.await.expect("the writer ends");
    }
    seen.extend(ids(&world.read_on(&cursor, 23).await.0));
    let mut expected = world.feed_ids().await;
    let written = (0..4).flat_map(|writer| (0..40).map(move |round| size(writer, round)));
    assert_eq!(expected.len(), written.sum::<usize>());
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected);
}

pub async fn a_cursor_of_another_store_is_refused(world: World) {
    let node = world.node().await;
    write(&world, node, &["e"]).await;
    let own = world.store.feed_end().await.expect("end");
    let foreign = Cursor { incarnation: Uuid::from_u128(!own.incarnation.as_u128()), ..own };
    let page = world.store.read_feed(&foreign, PageLimit::events(1)).await;
    assert!(matches!(page, Err(Error::ForeignCursor)), "{page:?}");
}

pub async fn retention_of_unread_events_is_reported_as_a_gap(world: World) {
    let node = world.node().await;
    let mut early = world.store.feed_start().await.expect("start");
    let old = |name: &str| FeedRow { at: Timestamp::from_micros(1), ..world.free_event(name) };
    let write = async |feed: Vec<FeedRow>| {
        let batch = Batch { feed, ..Batch::default() };
        world.store.commit(node, &batch).await.expect("commits");
    };
    write(vec![old("old 1"), old("old 2"), old("old 3")]).await;
    let page = world.store.read_feed(&early, PageLimit::events(1)).await.expect("reads");
    assert_eq!((ids(&page.events), page.gap), (vec!["old 1".to_owned()], None));
    early = page.cursor;
    write(vec![world.free_event("new")]).await;
    let current = world.store.feed_end().await.expect("end");

    let expired = world.store.expire(Timestamp::MAX, 100).await.expect("expires");
    assert_eq!(expired.events, 3);
    let (events, end, gap) = world.read_on(&early, 10).await;
    assert_eq!(ids(&events), ["new"]);
    assert!(gap.is_some(), "two events were deleted before they were read");
    assert_eq!(world.read_on(&end, 10).await.2, None, "the gap is reported once");
    let (events, _, gap) = world.read_on(&current, 10).await;
    assert_eq!((events.len(), gap), (0, None), "this reader had read them");
    let start = world.store.feed_start().await.expect("start");
    let (events, _, gap) = world.read_on(&start, 10).await;
    assert_eq!(
        (ids(&events), gap),
        (vec!["new".to_owned()], None),
        "a new reader begins after them"
    );
    assert_eq!(world.store.failure("old 1").await.expect("asks"), None);
}

pub async fn gap_without_later_events_is_reported_once(world: World) {
    let nodes = [world.node().await, world.node().await];
    let early = world.store.feed_start().await.expect("start");
    for node in nodes {
        let name = format!("old {}", node.0);
        let old = FeedRow { at: Timestamp::from_micros(1), ..world.free_event(&name) };
        let batch = Batch { feed: vec![old], ..Batch::default() };
        world.store.commit(node, &batch).await.expect("commits");
    }
    assert_eq!(world.store.expire(Timestamp::MAX, 100).await.expect("expires").events, 2);
    let (events, end, gap) = world.read_on(&early, 10).await;
    assert_eq!((events.len(), gap.is_some()), (0, true));
    assert_eq!(world.read_on(&end, 10).await.2, None, "the gap is reported once");
    let start = world.store.feed_start().await.expect("start");
    assert_eq!(world.read_on(&start, 10).await.2, None, "a new reader begins after them");
    write(&world, nodes[0], &["new"]).await;
    for cursor in [end, start] {
        let (events, _, gap) = world.read_on(&cursor, 10).await;
        assert_eq!((ids(&events), gap), (vec!["new".to_owned()], None));
    }
}

pub async fn failure_event_is_found_by_its_id(world: World) {
    let node = world.node().await;
    write(&world, node, &["one", "other"]).await;
    let found = world.store.failure("other").await.expect("asks").expect("there");
    assert_eq!(found, world.feed().await[1]);
    assert_eq!(world.store.failure("another").await.expect("asks"), None);
}

pub async fn failure_events_are_listed_by_every_filter(world: World) {
    let node = world.node().await;
    let (one, other) = (world.id(), world.id());
    for namespace in ["shop", "shop.eu", "shopping"] {
        world.store.create_namespace(&namespace.into(), "", LONG, None).await.expect("creates");
    }
    let row = |namespace: &str, id: &str| FeedRow {
        namespace: namespace.into(),
        ..world.event(id, other)
    };
    let free = |id: &str| FeedRow {
        workflow: String::new(),
        error_type: String::new(),
        kind: FailureKind::WorkerLost.into(),
        ..world.free_event(id)
    };
    let events = vec![
        row("shop", "shop"),
        row("shop.eu", "below"),
        row("shopping", "beside"),
        FeedRow { workflow: "refund".into(), ..row("default", "refund") },
        FeedRow { kind: FailureKind::StepFailed.into(), ..row("default", "step") },
        FeedRow { error_type: "payment".into(), ..row("default", "payment") },
        FeedRow { error_type: "payments.late".into(), ..row("default", "payments") },
        FeedRow { error_type: "recoup.worker_lost".into(), ..row("default", "builtin") },
        FeedRow { execution: Some(one), ..row("default", "of one") },
        free("free"),
    ];
    let batch = Batch { feed: events.clone(), ..Batch::default() };
    world.store.commit(node, &batch).await.expect("commits");

    let every = FailureFilter { namespace: "*".into(), ..FailureFilter::default() };
    let here = FailureFilter { namespace: "default".into(), ..FailureFilter::default() };
    let types = |types: &[&str]| FailureFilter {
        error_types: types.iter().map(|pattern| (*pattern).into()).collect(),
        ..here.clone()
    };
    let all: Vec<_> = events.iter().map(|event| event.id.as_str()).collect();
    let cases: Vec<(FailureFilter, Vec<&str>)> = vec![
        (every.clone(), all.clone()),
        (here.clone(), all[3..].to_vec()),
        (FailureFilter { namespace: "shop".into(), ..every.clone() }, vec!["shop"]),
        (FailureFilter { namespace: "shop.*".into(), ..every.clone() }, vec!["below"]),
        (
            FailureFilter { workflows: vec!["refund".into(), "x".into()], ..every.clone() },
            vec!["refund"],
        ),
        (
            FailureFilter {
                kinds: vec![FailureKind::StepFailed, FailureKind::WorkerLost],
                ..every.clone()
            },
            vec!["step", "free"],
        ),
        (types(&["payments"]), vec!["payments"]),
        (types(&["payment"]), vec!["refund", "step", "payment", "of one"]),
        (
            types(&["payment.card_declined", "payments.*"]),
            vec!["refund", "step", "payments", "of one"],
        ),
        (types(&["recoup"]), vec!["builtin"]),
        (FailureFilter { execution: Some(one), ..every.clone() }, vec!["of one"]),
    ];
    for (filter, mut expected) in cases {
        let found = world.store.list_failures(&filter, None, 100).await.expect("lists");
        expected.reverse();
        assert_eq!(ids(&found), expected, "{filter:?}");
    }
    // `*` matches every error of users, and none of the errors of the service itself.
    let found = world.store.list_failures(&types(&["*"]), None, 100).await.expect("lists");
    assert!(!ids(&found).contains(&"builtin".to_owned()));
    assert!(ids(&found).contains(&"payments".to_owned()));
}

pub async fn failure_events_are_listed_in_pages(world: World) {
    let nodes = [world.node().await, world.node().await];
    for round in 0..15 {
        for node in nodes {
            write(&world, node, &[&format!("{round}.{}", node.0)]).await;
        }
    }
    let filter = FailureFilter { namespace: "*".into(), ..FailureFilter::default() };
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = world.store.list_failures(&filter, before, 4).await.expect("lists");
        before = page.last().map(|event| event.position);
        let count = page.len();
        seen.extend(page);
        if count < 4 {
            break;
        }
    }
    seen.reverse();
    assert_eq!(seen, world.feed().await);
}
