//! Appending: what is written, what is refused, and what happens when a batch is sent again.

use bytes::Bytes;
use recoup_core::execution::{CompensationState, State};
use recoup_core::id::ExecutionId;

use super::world::{World, batch};
use crate::contract::*;

pub async fn appended_transitions_are_loaded_in_order(world: World) {
    let node = world.node().await;
    let (one, other) = (world.id(), world.id());
    let mut written = vec![world.start(one)];
    for sequence in 2..=12 {
        let format = u16::try_from(sequence).expect("small");
        written.push(Transition { format, ..world.next(one, sequence) });
    }
    for transition in &written {
        world.won(node, [transition.clone()]).await;
    }
    world.won(node, [world.start(other)]).await;

    let asked = [other, world.id(), one];
    let mut histories = world.store.load(node, &asked).await.expect("loads");
    histories.sort_by_key(|history| history.execution);
    assert_eq!(histories.iter().map(|h| h.execution).collect::<Vec<_>>(), [one, other]);
    assert_eq!(histories[0].owner, Some(node));
    let expected: Vec<_> = written
        .into_iter()
        .map(|t| StoredTransition {
            sequence: t.sequence,
            transition_id: t.transition_id,
            format: t.format,
            checksum: t.checksum(),
            data: t.data,
        })
        .collect();
    assert_eq!(histories[0].transitions, expected);
    assert_eq!(histories[1].transitions.len(), 1);
}

pub async fn load_stops_at_the_byte_limit_after_a_whole_history(world: World) {
    let node = world.node().await;
    let sized = |transition, bytes: usize| Transition { data: vec![7; bytes].into(), ..transition };
    let mut ids = Vec::new();
    for bytes in [600, 100, 300, 100] {
        let id = world.id();
        world.won(node, [sized(world.start(id), bytes)]).await;
        world.won(node, [sized(world.next(id, 2), bytes)]).await;
        ids.push(id);
    }
    let load = async |asked: &[ExecutionId], bytes| {
        let asked: Vec<_> = asked.iter().copied().map(Wanted::whole).collect();
        let histories = world.store.load_within(node, &asked, bytes).await.expect("loads");
        assert!(
            histories.iter().all(|history| history.transitions.len() == 2),
            "histories are loaded whole"
        );
        let mut found: Vec<_> = histories.into_iter().map(|history| history.execution).collect();
        found.sort();
        found
    };
    assert_eq!(load(&ids, 100).await, ids[..1], "at least one history");
    assert_eq!(load(&ids, 1_400).await, ids[..2], "the limit itself fits");
    assert_eq!(load(&ids, 1_399).await, ids[..1]);
    assert_eq!(load(&ids[1..], 1_000).await, ids[1..]);
    assert_eq!(load(&ids, usize::MAX).await, ids);
    assert_eq!(load(&[world.id(), ids[0]], 0).await, ids[..1], "at least one history that exists");
    assert_eq!(load(&[world.id()], 1_000).await, []);
}

pub async fn load_returns_only_transitions_after_the_known_ones(world: World) {
    let node = world.node().await;
    let sized = |transition, bytes: usize| Transition { data: vec![7; bytes].into(), ..transition };
    let (long, short) = (world.id(), world.id());
    world.won(node, [sized(world.start(long), 1000), sized(world.start(short), 10)]).await;
    for sequence in 2..=4 {
        world.won(node, [sized(world.next(long, sequence), 10)]).await;
    }
    let load = async |wanted: &[(ExecutionId, u64)], bytes| {
        let wanted = wanted.iter().map(|&(execution, after)| Wanted { execution, after });
        let wanted: Vec<_> = wanted.collect();
        let histories = world.store.load_within(node, &wanted, bytes).await.expect("loads");
        let read = histories.into_iter().map(|history| {
            assert_eq!(history.owner, Some(node));
            let sequences = history.transitions.iter().map(|row| row.sequence);
            (history.execution, sequences.collect::<Vec<_>>())
        });
        let mut read: Vec<_> = read.collect();
        read.sort();
        read
    };
    assert_eq!(load(&[(long, 0)], 2_000).await, [(long, vec![1, 2, 3, 4])]);
    assert_eq!(load(&[(long, 2)], 2_000).await, [(long, vec![3, 4])]);
    let both = [(long, 1), (short, 0)];
    let expected = [(long, vec![2, 3, 4]), (short, vec![1])];
    assert_eq!(load(&both, 40).await, expected, "only what is read counts towards the limit");
    assert_eq!(load(&both, 39).await, expected[..1]);
    for after in [4, 5, u64::MAX] {
        let nothing = [(long, vec![]), (short, vec![])];
        assert_eq!(
            load(&[(long, after), (short, after)], 0).await,
            nothing,
            "the executions exist"
        );
    }
    assert_eq!(load(&[(world.id(), 3)], 2_000).await, [], "the execution does not exist");
    assert_eq!(load(&[(long, 3), (long, 3)], 2_000).await.first(), Some(&(long, vec![4])));
}

pub async fn repeated_batch_takes_effect_once(world: World) {
    let node = world.node().await;
    let id = world.id();
    let task = world.task(id, "charge");
    world.store.overflow(node, std::slice::from_ref(&task)).await.expect("overflows");
    let start = Transition {
        request: Some(world.request("r", 7)),
        feed: vec![world.event("e1", id), world.event("e2", id)],
        overflow_done: vec![task.key()],
        ..world.start(id)
    };
    let same = Batch {
        transitions: vec![start],
        feed: vec![world.free_event("free")],
        ..Batch::default()
    };
    for _ in 0..3 {
        assert_eq!(world.store.commit(node, &same).await.expect("commits"), [Settled::Won]);
    }
    let mut feed = world.feed_ids().await;
    feed.sort();
    assert_eq!(feed, ["e1", "e2", "free"]);
    let started = world.store.started_by(&"default".into(), "r").await.expect("asks");
    assert_eq!(started, Some((id, 7)));
    assert_eq!(world.store.overflow_depth().await.expect("depth"), []);
    let history = world.load(node, id).await.expect("there");
    assert_eq!(history.transitions.len(), 1);
}

pub async fn repeated_old_batch_does_not_undo_later_transitions(world: World) {
    let (one, other) = (world.node().await, world.node().await);
    let id = world.id();
    let first = batch([world.start(id)]);
    world.store.commit(one, &first).await.expect("commits");
    let failed = world.in_state(State::Failed, CompensationState::Done);
    world.won(other, [Transition { index: Some(failed), ..world.next(id, 2) }]).await;

    assert_eq!(world.store.commit(one, &first).await.expect("commits"), [Settled::Won]);
    let head = world.head(id).await.expect("there");
    assert_eq!((head.sequence, head.state, head.owner), (2, State::Failed.into(), Some(other)));
}

pub async fn empty_batch_is_answered_with_nothing(world: World) {
    let node = world.node().await;
    assert_eq!(world.store.commit(node, &Batch::default()).await.expect("commits"), []);
    assert_eq!(world.store.start_keyed(node, &[]).await.expect("commits"), []);
    assert_eq!(world.store.load(node, &[]).await.expect("loads"), []);
    assert_eq!(world.store.heads(&[]).await.expect("heads"), []);
}

pub async fn request_id_starts_one_execution_per_namespace(world: World) {
    let node = world.node().await;
    let (first, second, elsewhere) = (world.id(), world.id(), world.id());
    let start = |id, digest| Transition {
        request: Some(world.request("r", digest)),
        feed: vec![world.event(&format!("of {id}"), id)],
        ..world.start(id)
    };
    // The largest possible digest.
    world.won(node, [start(first, u64::MAX)]).await;
    let taken = Settled::RequestTaken { execution: first, digest: u64::MAX, started: true };
    assert_eq!(world.commit(node, [start(second, 9)]).await, [taken]);
    assert_eq!(world.load(node, second).await, None);
    assert_eq!(world.head(second).await, None);
    assert_eq!(world.feed_ids().await, [format!("of {first}")]);

    let other = StartRequest { namespace: "other".into(), ..world.request("r", 9) };
    world
        .store
        .create_namespace(&"other".into(), "", super::world::LONG, None)
        .await
        .expect("creates");
    let index = IndexRow { namespace: "other".into(), ..world.index() };
    let start = Transition { request: Some(other), index: Some(index), ..world.start(elsewhere) };
    world.won(node, [start]).await;
    let started = world.store.started_by(&"other".into(), "r").await.expect("asks");
    assert_eq!(started, Some((elsewhere, 9)));
    assert_eq!(world.store.started_by(&"other".into(), "q").await.expect("asks"), None);
}

pub async fn one_of_two_starts_that_share_a_request_id_in_a_batch_wins(world: World) {
    let node = world.node().await;
    let (one, other) = (world.id(), world.id());
    let start = |id| Transition { request: Some(world.request("r", 1)), ..world.start(id) };
    let settled = world.commit(node, [start(one), start(other), world.start(world.id())]).await;
    assert_eq!(settled[2], Settled::Won);
    let (winner, loser, answer) = match settled[0] {
        Settled::Won => (one, other, &settled[1]),
        _ => (other, one, &settled[0]),
    };
    assert_eq!(*answer, Settled::RequestTaken { execution: winner, digest: 1, started: true });
    assert!(settled[..2].contains(&Settled::Won), "{settled:?}");
    assert_eq!(world.load(node, loser).await, None);
}

pub async fn a_duplicate_event_refuses_only_its_transition(world: World) {
    let node = world.node().await;
    let (first, culprit, innocent) = (world.id(), world.id(), world.id());
    let with = |id, events: &[&str]| Transition {
        feed: events.iter().map(|event| world.event(event, id)).collect(),
        ..world.start(id)
    };
    world.won(node, [with(first, &["taken"])]).await;
    let settled =
        world.commit(node, [with(culprit, &["fresh", "taken"]), with(innocent, &["mine"])]).await;
    assert!(matches!(settled[0], Settled::Refused(_)), "{settled:?}");
    assert_eq!(settled[1], Settled::Won);
    assert_eq!(world.load(node, culprit).await, None);
    assert_eq!(world.head(culprit).await, None);
    assert_eq!(world.feed_ids().await, ["taken", "mine"]);
}

pub async fn only_the_start_without_an_index_row_is_refused(world: World) {
    let node = world.node().await;
    let (culprit, innocent) = (world.id(), world.id());
    let settled = world.commit(node, [world.next(culprit, 1), world.start(innocent)]).await;
    assert!(matches!(settled[0], Settled::Refused(_)), "{settled:?}");
    assert_eq!(settled[1], Settled::Won);
    assert_eq!(world.load(node, culprit).await, None);
}

pub async fn only_the_transition_with_an_inconsistent_end_time_is_refused(world: World) {
    let node = world.node().await;
    let running = world.index();
    let ended = world.in_state(State::Failed, CompensationState::None);
    let culprits =
        [IndexRow { ended_at: Some(world.now), ..running }, IndexRow { ended_at: None, ..ended }];
    for index in culprits {
        let (culprit, innocent) = (world.id(), world.id());
        let wrong = Transition { index: Some(index.clone()), ..world.start(culprit) };
        let settled = world.commit(node, [wrong, world.start(innocent)]).await;
        assert!(matches!(settled[0], Settled::Refused(_)), "{index:?}: {settled:?}");
        assert_eq!(settled[1], Settled::Won);
        assert_eq!(world.load(node, culprit).await, None);
        // A later transition must not make the index row inconsistent either.
        let index = IndexRow { started_at: world.now, ..index };
        let wrong = Transition { index: Some(index.clone()), ..world.next(innocent, 2) };
        let settled = world.commit(node, [wrong]).await;
        assert!(matches!(settled[0], Settled::Refused(_)), "{index:?}: {settled:?}");
    }
}

pub async fn events_without_an_execution_are_written_once_even_if_transitions_lose(world: World) {
    let (node, other) = (world.node().await, world.node().await);
    let id = world.id();
    world.won(node, [world.start(id)]).await;
    // These events do not depend on the outcome of the transitions in the same batch.
    let lost = Transition { feed: vec![world.event("lost", id)], ..world.start(id) };
    let beside = Batch {
        transitions: vec![lost],
        feed: vec![world.free_event("session")],
        ..Batch::default()
    };
    assert_eq!(world.store.commit(other, &beside).await.expect("commits"), [Settled::Lost]);

    let changed = FeedRow { error_type: "another".into(), ..world.free_event("session") };
    let again = Batch { feed: vec![changed, world.free_event("next")], ..Batch::default() };
    assert_eq!(world.store.commit(other, &again).await.expect("commits"), []);
    let feed = world.feed().await;
    assert_eq!(super::world::ids(&feed), ["session", "next"]);
    assert_eq!(feed[0].row, world.free_event("session"));
}

pub async fn batch_of_two_thousand_transitions_is_settled_one_by_one(world: World) {
    let node = world.node().await;
    let ids: Vec<_> = (0..2000).map(|_| world.id()).collect();
    let starts = ids.iter().map(|id| Transition {
        feed: vec![world.event(&format!("of {id}"), *id)],
        request: Some(world.request(&format!("of {id}"), 1)),
        ..world.start(*id)
    });
    let settled = world.commit(node, starts).await;
    assert_eq!(settled, vec![Settled::Won; 2000]);
    // Again in another order, and with every second transition losing.
    let turned = ids.iter().rev().enumerate();
    let seconds =
        turned.map(|(i, id)| if i % 2 == 0 { world.next(*id, 2) } else { world.start(*id) });
    let settled = world.commit(node, seconds).await;
    assert_eq!(settled.len(), 2000);
    for (i, settled) in settled.iter().enumerate() {
        let expected = if i % 2 == 0 { Settled::Won } else { Settled::Lost };
        assert_eq!(*settled, expected, "transition {i}");
    }
    let heads = world.store.heads(&ids).await.expect("heads");
    assert_eq!(heads.len(), 2000);
    assert_eq!(heads.iter().filter(|head| head.sequence == 2).count(), 1000);
    assert_eq!(world.store.load(node, &ids).await.expect("loads").len(), 2000);
    assert_eq!(world.feed_ids().await.len(), 2000);
}

pub async fn payload_of_two_mebibytes_round_trips(world: World) {
    let node = world.node().await;
    let id = world.id();
    // Contains every byte value, and cannot be compressed to almost nothing.
    let bytes = |seed: u32| -> Bytes {
        let next = |x: &mut u32| {
            *x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some(x.to_be_bytes()[0])
        };
        std::iter::repeat_n((), 2 << 20).scan(seed, |x, ()| next(x)).collect()
    };
    let event = FeedRow { data: bytes(2), ..world.event("large", id) };
    world.won(node, [Transition { data: bytes(1), feed: vec![event], ..world.start(id) }]).await;
    let history = world.load(node, id).await.expect("there");
    assert!(history.transitions[0].data == bytes(1), "the transition has changed");
    assert!(world.feed().await[0].row.data == bytes(2), "the event has changed");
}

pub async fn a_nul_is_kept_or_refused(world: World) {
    let node = world.node().await;
    let (odd, plain) = (world.id(), world.id());
    let index = IndexRow { error_type: Some("a\0b".into()), ..world.index() };
    let odd_start = Transition { index: Some(index), ..world.start(odd) };
    let settled = world.commit(node, [odd_start, world.start(plain)]).await;
    assert_eq!(settled[1], Settled::Won);
    let listed = world.store.list(&ListFilter::default(), None, 10).await.expect("lists");
    let listed = listed.into_iter().find(|listed| listed.execution == odd);
    match &settled[0] {
        Settled::Won => {
            let listed = listed.expect("it won");
            assert_eq!(listed.index.error_type.as_deref(), Some("a\0b"));
        }
        Settled::Refused(_) => {
            assert_eq!(listed, None);
            assert_eq!(world.load(node, odd).await, None);
        }
        other => panic!("neither kept nor refused: {other:?}"),
    }
}
