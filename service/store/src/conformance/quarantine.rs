//! Executions that do not proceed until an operator releases them.

use std::time::Duration;

use recoup_core::execution::{CompensationState, State};
use recoup_core::failure_event::FailureKind;
use recoup_core::id::ExecutionId;
use recoup_core::quarantine::{Quarantine, QuarantineReason};
use recoup_core::time::Timestamp;

use super::Harness;
use super::world::World;
use crate::contract::*;

const FAR: Timestamp = Timestamp::from_micros(4_000_000_000_000_000);

/// A quarantine that was found this many seconds after the case began.
fn found(world: &World, execution: ExecutionId, seconds: u64) -> NewQuarantine {
    let at = world.now + Duration::from_secs(seconds);
    let event = FeedRow {
        kind: FailureKind::ExecutionQuarantined.into(),
        ..world.event(&format!("{execution} at {seconds}"), execution)
    };
    let detail = format!("transition {seconds} is missing");
    let quarantine = Quarantine::new(QuarantineReason::HistoryGap, &detail, at);
    NewQuarantine { execution, quarantine, event }
}

async fn put(world: &World, node: NodeId, quarantined: Vec<NewQuarantine>) {
    let batch = Batch { quarantined, ..Batch::default() };
    assert_eq!(world.store.commit(node, &batch).await.expect("commits"), []);
}

fn release_for(reason: &str, request: Option<(&str, u64)>) -> Release {
    let request = request.map(|(id, digest)| (id.to_owned(), digest));
    Release { reason: reason.into(), request }
}

async fn in_force(world: &World, node: NodeId, execution: ExecutionId) -> Option<Quarantine> {
    let row = world.load(node, execution).await.expect("there").quarantine;
    let in_force = row.filter(QuarantineRow::in_force).map(|row| row.quarantine);
    let head = world.head(execution).await.expect("there");
    assert_eq!(head.quarantined, in_force.is_some());
    let indexed = world.store.indexed(execution).await.expect("asks").expect("there");
    assert_eq!(indexed.quarantine, in_force);
    in_force
}

pub async fn quarantine_is_written_once_with_its_event(world: World) {
    let (node, other) = (world.node().await, world.node().await);
    let (id, beside, unknown) = (world.id(), world.id(), world.id());
    world.won(node, [world.start(id)]).await;
    assert_eq!(in_force(&world, node, id).await, None);

    let first = found(&world, id, 1);
    let batch = Batch {
        transitions: vec![world.start(beside)],
        feed: vec![world.free_event("free")],
        quarantined: vec![first.clone(), found(&world, unknown, 1)],
        ..Batch::default()
    };
    for _ in 0..3 {
        assert_eq!(world.store.commit(node, &batch).await.expect("commits"), [Settled::Won]);
    }
    // Another node has found the same problem a moment later.
    put(&world, other, vec![found(&world, id, 2)]).await;
    assert_eq!(in_force(&world, node, id).await, Some(first.quarantine.clone()));
    assert_eq!(in_force(&world, node, beside).await, None);
    let mut feed = world.feed_ids().await;
    feed.sort();
    let mut expected = vec![first.event.id.clone(), "free".into()];
    expected.sort();
    assert_eq!(feed, expected, "one event of the quarantine, and the free one");
    let event = world.store.failure(&first.event.id).await.expect("asks").expect("there");
    assert_eq!(event.row, first.event);
    assert_eq!(world.store.indexed(unknown).await.expect("asks"), None);
}

pub async fn closed_node_quarantines_nothing(world: World) {
    let (node, closed) = (world.node().await, world.node().await);
    let id = world.begun(node, world.index()).await;
    world.store.leave(closed).await.expect("leaves");
    let batch = Batch { quarantined: vec![found(&world, id, 1)], ..Batch::default() };
    let refused = world.store.commit(closed, &batch).await;
    assert!(matches!(refused, Err(Error::LeaseLost)), "{refused:?}");
    assert_eq!(in_force(&world, node, id).await, None);
    assert_eq!(world.feed_ids().await, Vec::<String>::new());
    put(&world, node, vec![found(&world, id, 1)]).await;
    let refused = world.store.release_quarantine(closed, id, &Release::default()).await;
    assert!(matches!(refused, Err(Error::LeaseLost)), "{refused:?}");
    assert!(in_force(&world, node, id).await.is_some());
}

pub async fn nothing_is_committed_for_a_quarantined_execution(world: World) {
    let (node, other) = (world.node().await, world.node().await);
    let (id, free) = (world.id(), world.id());
    let start = world.start(id);
    world.won(node, [start.clone(), world.start(free)]).await;
    put(&world, other, vec![found(&world, id, 1)]).await;

    let next = Transition { feed: vec![world.event("next", id)], ..world.next(id, 2) };
    let settled = world.commit(node, [next.clone(), world.next(free, 2)]).await;
    assert_eq!(settled, [Settled::Quarantined, Settled::Won]);
    assert_eq!(world.head(id).await.expect("there").sequence, 1);
    assert_eq!(world.store.failure("next").await.expect("asks"), None);
    // Transitions that are in the history already get the usual verdict, because the batch may be a repetition.
    let settled = world.commit(node, [start, world.next(free, 3)]).await;
    assert_eq!(settled, [Settled::Won, Settled::Won]);
    assert_eq!(world.commit(node, [world.start(id)]).await, [Settled::Lost]);

    world.store.release_quarantine(node, id, &release_for("fixed", None)).await.expect("releases");
    world.won(node, [next]).await;
}

pub async fn node_that_releases_an_execution_owns_it(world: World) {
    let (node, other) = (world.node().await, world.node().await);
    let id = world.begun(node, world.index()).await;
    let not_found = |released: Result<()>| assert!(matches!(released, Err(Error::NotFound)));
    let release =
        async |node, release: Release| world.store.release_quarantine(node, id, &release).await;
    not_found(release(other, release_for("why not", Some(("r", 1)))).await);
    put(&world, node, vec![found(&world, id, 1)]).await;
    not_found(world.store.release_quarantine(other, world.id(), &Release::default()).await);

    release(other, release_for("fixed", Some(("r", u64::MAX)))).await.expect("releases");
    assert_eq!(in_force(&world, node, id).await, None);
    assert_eq!(world.head(id).await.expect("there").owner, Some(other));
    let row = world.load(node, id).await.expect("there").quarantine.expect("it stays");
    assert_eq!(row.released.expect("it was").reason, "fixed");

    // Three requests: the same one again, another with the same id, and another with a new id.
    release(node, release_for("fixed", Some(("r", u64::MAX)))).await.expect("it was");
    assert_eq!(
        world.head(id).await.expect("there").owner,
        Some(other),
        "the repeated request has no effect"
    );
    let conflict = release(node, release_for("fixed", Some(("r", 2)))).await;
    assert!(matches!(conflict, Err(Error::RequestIdReused)), "{conflict:?}");
    not_found(release(node, release_for("once more", Some(("s", 1)))).await);
}

pub async fn released_execution_can_be_quarantined_again(world: World) {
    let node = world.node().await;
    let id = world.begun(node, world.index()).await;
    let (first, second) = (found(&world, id, 1), found(&world, id, 2));
    put(&world, node, vec![first.clone()]).await;
    let release = release_for("fixed", Some(("r", 1)));
    world.store.release_quarantine(node, id, &release).await.expect("releases");
    // The first quarantine is sent again after an unknown outcome. It is over already.
    put(&world, node, vec![first.clone()]).await;
    assert_eq!(in_force(&world, node, id).await, None);

    put(&world, node, vec![second.clone()]).await;
    assert_eq!(in_force(&world, node, id).await, Some(second.quarantine));
    assert_eq!(world.feed_ids().await, [first.event.id, second.event.id]);
    // The request that released the first quarantine is sent again.
    world.store.release_quarantine(node, id, &release).await.expect("it did");
    assert!(
        in_force(&world, node, id).await.is_some(),
        "the repeated request does not release the second quarantine"
    );
}

pub async fn quarantined_execution_is_not_due(world: World) {
    let node = world.node().await;
    let index = IndexRow { wake_at: Some(world.now), ..world.index() };
    let (id, free) = (world.begun(node, index.clone()).await, world.begun(node, index).await);
    put(&world, node, vec![found(&world, id, 1)]).await;
    let due = async || {
        let due = world.store.due(node, FAR, None, 10).await.expect("asks");
        due.into_iter().map(|due| due.execution).collect::<Vec<_>>()
    };
    assert_eq!(due().await, [free]);
    world.store.release_quarantine(node, id, &release_for("fixed", None)).await.expect("releases");
    let mut due = due().await;
    due.sort();
    assert_eq!(due, [id, free]);
}

pub async fn list_marks_and_filters_quarantined_executions(world: World) {
    let node = world.node().await;
    let (id, free) = (world.begun(node, world.index()).await, world.id());
    world.won(node, [world.start(free)]).await;
    let new = found(&world, id, 1);
    put(&world, node, vec![new.clone()]).await;
    let list = async |filter: ListFilter| world.store.list(&filter, None, 10).await.expect("lists");
    let all = list(ListFilter::default()).await;
    let marks: Vec<_> = all.iter().map(|one| (one.execution, one.quarantine.clone())).collect();
    assert_eq!(marks, [(free, None), (id, Some(new.quarantine))]);
    let filter = ListFilter { quarantined: true, ..ListFilter::default() };
    assert_eq!(list(filter.clone()).await, all[1..]);
    world.store.release_quarantine(node, id, &release_for("fixed", None)).await.expect("releases");
    assert_eq!(list(filter).await, []);
}

pub async fn retention_keeps_quarantined_executions(world: World) {
    let node = world.node().await;
    let long_ago = Timestamp::from_micros(1_000_000);
    let ended = IndexRow {
        started_at: long_ago,
        ended_at: Some(long_ago),
        ..world.in_state(State::Failed, CompensationState::None)
    };
    let id = world.begun(node, ended.clone()).await;
    let gone = world.begun(node, ended).await;
    put(&world, node, vec![found(&world, id, 1)]).await;
    assert_eq!(world.store.expire(Timestamp::MAX, 10).await.expect("expires").executions, 1);
    assert_eq!(world.load(node, gone).await, None);
    assert!(in_force(&world, node, id).await.is_some());

    world
        .store
        .release_quarantine(node, id, &release_for("let it go", None))
        .await
        .expect("releases");
    assert_eq!(world.store.expire(Timestamp::MAX, 10).await.expect("expires").executions, 1);
    assert_eq!(world.load(node, id).await, None);
    let released = world.store.release_quarantine(node, id, &Release::default()).await;
    assert!(matches!(released, Err(Error::NotFound)), "its row is gone as well");
}

pub async fn later_event_follows_that_of_the_quarantine(world: World) {
    let (ahead, behind) = (world.node().await, world.node().await);
    let id = world.begun(behind, world.index()).await;
    // As many numbers as a lane assigns in a while.
    let many = (0..1500).map(|i| world.free_event(&format!("{i}"))).collect();
    let batch = Batch { feed: many, quarantined: vec![found(&world, id, 1)], ..Batch::default() };
    world.store.commit(ahead, &batch).await.expect("commits");
    world
        .store
        .release_quarantine(behind, id, &release_for("fixed", None))
        .await
        .expect("releases");
    world.load(behind, id).await.expect("there");
    world
        .won(behind, [Transition { feed: vec![world.event("next", id)], ..world.next(id, 2) }])
        .await;
    let of_it = async |event: &str| {
        world.store.failure(event).await.expect("asks").expect("there").position.number
    };
    assert!(of_it(&found(&world, id, 1).event.id).await < of_it("next").await);
}

/// A quarantine takes no place in the history, so a node that has not seen it loses no race that would make it
/// load the execution. The events must be in order all the same.
pub async fn events_around_a_quarantine_keep_their_order_without_a_load(
    world: World,
    harness: &dyn Harness,
) {
    let (ahead, behind) = (world.node().await, world.node().await);
    let hour = Duration::from_secs(3600);
    let go_ahead = async |hours: u32| {
        harness.set_lane(ahead, (world.now + hour * hours).as_micros()).await;
    };
    let id = world.id();
    let written = |name: &str| vec![world.event(name, id)];

    go_ahead(1).await;
    world.won(ahead, [Transition { feed: written("start"), ..world.start(id) }]).await;
    put(&world, behind, vec![found(&world, id, 1)]).await;
    world.store.release_quarantine(ahead, id, &release_for("fixed", None)).await.expect("releases");
    go_ahead(2).await;
    put(&world, ahead, vec![found(&world, id, 2)]).await;
    world
        .store
        .release_quarantine(behind, id, &release_for("fixed", None))
        .await
        .expect("releases");
    world.won(behind, [Transition { feed: written("next"), ..world.next(id, 2) }]).await;

    let [first, second] = [1, 2].map(|seconds| found(&world, id, seconds).event.id);
    assert_eq!(world.feed_ids().await, ["start", &first, &second, "next"]);
    let start = world.store.failure("start").await.expect("asks").expect("there");
    assert!(start.position.number > (world.now + hour).as_micros(), "the lane was not set");
}
