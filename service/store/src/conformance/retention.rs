//! What expires and what stays.

use std::time::Duration;

use recoup_core::execution::{CompensationState, State};
use recoup_core::id::ExecutionId;
use recoup_core::key::{OnEnded, OnRunning};
use recoup_core::time::Timestamp;

use super::world::{NAMESPACE, World};
use crate::contract::*;

const HOUR: Duration = Duration::from_secs(3600);

fn ended(world: &World, ended_at: Timestamp) -> IndexRow {
    let row = world.in_state(State::Succeeded, CompensationState::None);
    IndexRow { started_at: ended_at, ended_at: Some(ended_at), ..row }
}

fn long_ago() -> Timestamp {
    Timestamp::from_micros(1_000_000)
}

async fn is_there(world: &World, node: NodeId, execution: ExecutionId) -> bool {
    let loaded = world.load(node, execution).await.is_some();
    assert_eq!(world.head(execution).await.is_some(), loaded, "{execution}: only partly deleted");
    let listed = world.store.list(&ListFilter::default(), None, 100).await.expect("lists");
    let listed = listed.iter().any(|listed| listed.execution == execution);
    assert_eq!(listed, loaded, "{execution}: only partly deleted");
    loaded
}

pub async fn execution_that_ended_long_ago_expires(world: World) {
    let node = world.node().await;
    let mut gone = Vec::new();
    for state in State::ALL.into_iter().filter(|state| state.is_ended()) {
        for compensation in [CompensationState::None, CompensationState::Done] {
            let (state, compensation) = (state.into(), compensation.into());
            let index = IndexRow { state, compensation, ..ended(&world, long_ago()) };
            let id = world.begun(node, index).await;
            world.won(node, [world.next(id, 2)]).await;
            gone.push(id);
        }
    }
    let old = FeedRow { at: long_ago(), ..world.event("old", gone[0]) };
    let feed = vec![old, world.event("new", gone[0])];
    world.store.commit(node, &Batch { feed, ..Batch::default() }).await.expect("commits");

    let expired = world.store.expire(Timestamp::MAX, 1000).await.expect("expires");
    assert_eq!((expired.executions, expired.events), (gone.len() as u64, 1));
    assert_eq!((expired.start_requests, expired.more), (0, false));
    for id in gone {
        assert!(!is_there(&world, node, id).await, "{id} was not deleted");
    }
    assert_eq!(world.feed_ids().await, ["new"]);
    assert_eq!(
        world.store.expire(Timestamp::MAX, 1000).await.expect("expires"),
        Expired::default()
    );
}

pub async fn expired_execution_cannot_be_continued(world: World) {
    let node = world.node().await;
    let gone = world.begun(node, ended(&world, long_ago())).await;
    world.won(node, [world.next(gone, 2)]).await;
    // A row that its owner no longer knows about.
    let task = world.task(gone, "charge");
    world.store.overflow(node, std::slice::from_ref(&task)).await.expect("overflows");
    let kept = world.begun(node, world.index()).await;
    assert_eq!(world.store.expire(Timestamp::MAX, 1000).await.expect("expires").executions, 1);
    assert_eq!(world.store.overflow_depth().await.expect("depth"), []);

    // A node that has not noticed the deletion continues the execution, once with everything that can belong to
    // a transition and once without.
    let event = world.event("late", gone);
    let whole = Transition { index: Some(world.index()), feed: vec![event], ..world.next(gone, 3) };
    for late in [world.next(gone, 3), whole] {
        let beside = world.head(kept).await.expect("there").sequence + 1;
        let answers = world.commit(node, [late, world.next(kept, beside)]).await;
        assert_eq!(answers, [Settled::Lost, Settled::Won]);
        assert!(!is_there(&world, node, gone).await, "part of it is back");
        assert_eq!(world.store.history(gone, 0, 10).await.expect("reads"), []);
    }
    assert_eq!(world.feed_ids().await, [""; 0]);
}

pub async fn open_parked_and_recent_executions_do_not_expire(world: World) {
    use CompensationState as C;
    let node = world.node().await;
    let old = ended(&world, long_ago());
    let rows = [
        IndexRow { started_at: long_ago(), ..world.index() },
        IndexRow { state: State::Compensating.into(), ended_at: None, ..old.clone() },
        IndexRow { state: State::Terminated.into(), compensation: C::Parked.into(), ..old.clone() },
        IndexRow { state: State::Failed.into(), compensation: C::Running.into(), ..old.clone() },
        IndexRow { started_at: long_ago(), ended_at: Some(world.now), ..old },
    ];
    let mut kept = Vec::new();
    for row in rows {
        let start = Transition {
            request: Some(world.request(&format!("{}", kept.len()), 1)),
            index: Some(row.clone()),
            ..world.start(world.id())
        };
        kept.push((start.execution, row));
        world.won(node, [start]).await;
    }
    assert_eq!(
        world.store.expire(Timestamp::MAX, 1000).await.expect("expires"),
        Expired::default()
    );
    for (id, row) in kept {
        assert!(is_there(&world, node, id).await, "{row:?}");
    }
    assert!(world.store.started_by(&NAMESPACE.into(), "0").await.expect("asks").is_some());
}

pub async fn every_namespace_has_its_own_retention(world: World) {
    let node = world.node().await;
    for (name, retention) in [("brief", HOUR), ("long", HOUR * 24 * 365 * 100)] {
        world.store.create_namespace(&name.into(), "", retention, None).await.expect("creates");
    }
    let mut written = Vec::new();
    for (namespace, ago, stays) in [
        ("brief", HOUR * 2, false),
        ("brief", HOUR / 2, true),
        ("default", HOUR * 2, true),
        ("long", HOUR * 24 * 365 * 10, true),
    ] {
        let at = world.now - ago;
        let index = IndexRow { namespace: namespace.into(), ..ended(&world, at) };
        let event = FeedRow {
            namespace: namespace.into(),
            at,
            ..world.free_event(&format!("{namespace} {ago:?}"))
        };
        let id = world.begun(node, index).await;
        let feed = vec![event.clone()];
        world.store.commit(node, &Batch { feed, ..Batch::default() }).await.expect("commits");
        written.push((id, event.id, stays));
    }
    let expired = world.store.expire(Timestamp::MAX, 1000).await.expect("expires");
    assert_eq!((expired.executions, expired.events), (1, 1));
    for (id, event, stays) in written {
        assert_eq!(is_there(&world, node, id).await, stays, "{event}");
        let event_stays = world.store.failure(&event).await.expect("asks").is_some();
        assert_eq!(event_stays, stays, "{event}");
    }
}

pub async fn keys_that_name_expired_executions_are_removed(world: World) {
    let node = world.node().await;
    let start = |id, key: &str, index: IndexRow| KeyedStart {
        transition: Transition {
            index: Some(IndexRow { key: Some(key.into()), ..index }),
            ..world.start(id)
        },
        key: key.into(),
        on_running: OnRunning::Reject,
        on_ended: OnEnded::Allow,
    };
    let holder =
        async |key: &str| world.store.key_holder(&NAMESPACE.into(), key).await.expect("asks");
    let take = async |id, key: &str, index| {
        let start = start(id, key, index);
        let settled = world.store.start_keyed(node, &[start]).await.expect("settles");
        assert_eq!(settled, [KeySettled::Won]);
    };
    let (alone, replaced, successor) = (world.id(), world.id(), world.id());
    take(alone, "alone", ended(&world, long_ago())).await;
    take(replaced, "passed on", ended(&world, long_ago())).await;
    take(successor, "passed on", world.index()).await;

    assert_eq!(world.store.expire(Timestamp::MAX, 1000).await.expect("expires").executions, 2);
    assert_eq!(holder("alone").await, None);
    assert_eq!(holder("passed on").await, Some(successor), "the key names another execution now");
    let next = world.id();
    let rejecting = KeyedStart { on_ended: OnEnded::Reject, ..start(next, "alone", world.index()) };
    let settled = world.store.start_keyed(node, &[rejecting]).await.expect("settles");
    assert_eq!(settled, [KeySettled::Won], "the key is free, as if it had never been used");
}

pub async fn expire_deletes_at_most_the_requested_number(world: World) {
    let node = world.node().await;
    let mut gone = Vec::new();
    for i in 0..7 {
        gone.push(world.begun(node, ended(&world, long_ago())).await);
        let old = FeedRow { at: long_ago(), ..world.free_event(&format!("old {i}")) };
        let batch = Batch { feed: vec![old], ..Batch::default() };
        world.store.commit(node, &batch).await.expect("commits");
    }
    let first = world.store.expire(Timestamp::MAX, 3).await.expect("expires");
    assert_eq!((first.executions, first.events, first.more), (3, 3, true));
    let (mut executions, mut events, mut calls) = (3, 3, 1);
    loop {
        let expired = world.store.expire(Timestamp::MAX, 3).await.expect("expires");
        assert!(expired.executions <= 3 && expired.events <= 3, "{expired:?}");
        executions += expired.executions;
        events += expired.events;
        calls += 1;
        assert!(calls < 10, "more portions than there can be");
        if !expired.more {
            break;
        }
    }
    assert_eq!((executions, events), (7, 7));
    assert!(world.store.heads(&gone).await.expect("heads").is_empty());
}

pub async fn nothing_expires_while_retention_is_paused(world: World) {
    let (store, node) = (&world.store, world.node().await);
    let id = world.begun(node, ended(&world, long_ago())).await;
    assert_eq!(store.resume_retention().await.expect("resumes"), None, "it was not paused");
    store.pause_retention().await.expect("pauses");
    store.pause_retention().await.expect("once more changes nothing");
    let expired = store.expire(Timestamp::MAX, 10).await.expect("asks");
    assert_eq!(expired, Expired { paused: true, ..Expired::default() });
    assert!(is_there(&world, node, id).await);
    let paused_at = store.resume_retention().await.expect("resumes").expect("it was paused");
    assert!(paused_at >= world.now, "{paused_at:?}");
    assert_eq!(store.resume_retention().await.expect("resumes"), None);
    assert_eq!(store.expire(Timestamp::MAX, 10).await.expect("expires").executions, 1);
}

/// The caller may know the time better than the database's clock does. Nothing is deleted before both agree
/// that it is due.
pub async fn execution_does_not_expire_before_it_is_due_by_the_callers_time(world: World) {
    let (store, node) = (&world.store, world.node().await);
    let id = world.begun(node, ended(&world, long_ago())).await;
    let just_ended = long_ago() + HOUR;
    assert_eq!(store.expire(just_ended, 10).await.expect("expires"), Expired::default());
    assert!(is_there(&world, node, id).await);
    let a_month_later = long_ago() + HOUR * 24 * 31;
    assert_eq!(store.expire(a_month_later, 10).await.expect("expires").executions, 1);
}
