//! Leases of nodes, and the adoption of executions whose node has left.

use std::time::Duration;

use recoup_core::execution::{CompensationState, State};
use recoup_core::key::{OnEnded, OnRunning};

use super::world::{LONG, SHORT, World, batch, idle};
use crate::contract::*;

pub async fn every_node_gets_a_greater_id_than_the_one_before(world: World) {
    let mut last = NodeId(0);
    for _ in 0..5 {
        let lease = world.store.join("test:1", LONG).await.expect("joins");
        assert!(lease.node > last, "{:?} after {last:?}", lease.node);
        last = lease.node;
        if last.0 % 2 == 0 {
            world.store.leave(last).await.expect("leaves");
        }
    }
}

pub async fn lease_can_be_renewed_and_an_unknown_one_is_lost(world: World) {
    let lease = world.store.join("test:1", SHORT).await.expect("joins");
    let renewed = world.store.renew(lease.node, LONG, world.now).await.expect("renews");
    assert_eq!(renewed.node, lease.node);
    assert!(renewed.now >= lease.now);
    assert_eq!(renewed.timeline, lease.timeline);
    let never = world.store.renew(NodeId(lease.node.0 + 1000), LONG, world.now).await;
    assert!(matches!(never, Err(Error::LeaseLost)), "{never:?}");
}

/// The store keeps the time that nodes have reached separately, because the database's clock may be earlier
/// than that.
pub async fn later_nodes_learn_the_time_that_earlier_nodes_reached(world: World) {
    let (store, hour) = (&world.store, Duration::from_secs(3600));
    let one = store.join("test:1", LONG).await.expect("joins");
    assert!(one.reached <= one.now, "no node has reached a later time: {one:?}");
    let ahead = world.now + hour;
    let renewed = store.renew(one.node, LONG, ahead).await.expect("renews");
    assert_eq!(renewed.reached, ahead);
    assert!(renewed.now < ahead, "the database's clock does not follow");
    let again = store.renew(one.node, LONG, world.now).await.expect("renews");
    assert_eq!(again.reached, ahead, "it never goes back");
    let other = store.join("test:2", LONG).await.expect("joins");
    assert_eq!((other.reached, other.renewed_before), (ahead, Some(again.now)));
    store.leave(one.node).await.expect("leaves");
    let renewed = store.renew(other.node, LONG, world.now).await.expect("renews");
    assert_eq!(renewed.reached, ahead, "even though the node that reached it has left");
}

pub async fn node_that_leaves_is_closed_and_its_executions_can_be_adopted(world: World) {
    let (one, other) = (world.node().await, world.node().await);
    let id = world.begun(one, world.index()).await;
    assert_eq!(world.store.adopt(other, 10).await.expect("adopts"), [], "its owner is alive");
    world.store.leave(one).await.expect("leaves");
    world.store.leave(one).await.expect("once more changes nothing");
    assert_eq!(world.head(id).await.expect("there").owner, None);
    assert_eq!(world.load(other, id).await.expect("there").owner, None);
    let renewed = world.store.renew(one, LONG, world.now).await;
    assert!(matches!(renewed, Err(Error::LeaseLost)), "{renewed:?}");

    assert_eq!(world.store.adopt(other, 10).await.expect("adopts"), [id]);
    assert_eq!(world.head(id).await.expect("there").owner, Some(other));
    assert_eq!(world.store.adopt(other, 10).await.expect("adopts"), [], "it has an owner");
}

pub async fn lease_is_closed_if_its_renewal_count_stands_still(world: World) {
    let store = &world.store;
    let one = store.join("test:1", SHORT).await.expect("joins").node;
    let (other, third) = (world.node().await, world.node().await);
    let id = world.begun(one, world.index()).await;
    let of = |open: &[Renewals]| open.iter().find(|lease| lease.node == one).copied();
    let open = store.leases(other, &[]).await.expect("asks");
    let mut nodes: Vec<_> = open.iter().map(|lease| lease.node).collect();
    nodes.sort();
    assert_eq!(nodes, [one, third], "every lease but its own");
    let seen = of(&open).expect("it is open");
    assert_eq!(seen.ttl, SHORT);

    // However long it took, the node has renewed its lease since it was seen with that count.
    store.renew(one, LONG, world.now).await.expect("renews");
    let open = store.leases(other, &[seen]).await.expect("asks");
    let moved = of(&open).expect("it is still open");
    assert!(moved.count > seen.count, "{moved:?} after {seen:?}");
    assert_eq!(moved.ttl, LONG);
    assert_eq!(store.adopt(other, 10).await.expect("adopts"), []);

    let open = store.leases(other, &[moved]).await.expect("asks");
    assert_eq!(of(&open), None);
    assert_eq!(store.adopt(other, 10).await.expect("adopts"), [id]);
    let late = store.commit(one, &batch([world.next(id, 2)])).await;
    assert!(matches!(late, Err(Error::LeaseLost)), "{late:?}");
    let renewed = store.renew(one, LONG, world.now).await;
    assert!(matches!(renewed, Err(Error::LeaseLost)), "{renewed:?}");
    let asked = store.leases(one, &[]).await;
    assert!(matches!(asked, Err(Error::LeaseLost)), "{asked:?}");
    assert_eq!(world.head(id).await.expect("there").sequence, 1);
}

pub async fn closed_node_writes_nothing(world: World) {
    let (node, other) = (world.node().await, world.node().await);
    let id = world.begun(node, world.index()).await;
    let task = world.task(id, "s");
    world.store.overflow(node, std::slice::from_ref(&task)).await.expect("overflows");
    world.store.leave(node).await.expect("leaves");

    let late = world.task(id, "late");
    let event = Batch { feed: vec![world.free_event("late")], ..Batch::default() };
    let fresh = world.id();
    let index = IndexRow { key: Some("k".into()), ..world.index() };
    let keyed = KeyedStart {
        transition: Transition { index: Some(index), ..world.start(fresh) },
        key: "k".into(),
        on_running: OnRunning::Reject,
        on_ended: OnEnded::Allow,
    };
    let store = &world.store;
    let refused = [
        ("commit", store.commit(node, &batch([world.next(id, 2)])).await.map(drop)),
        ("start", store.commit(node, &batch([world.start(fresh)])).await.map(drop)),
        ("event", store.commit(node, &event).await.map(drop)),
        ("start_keyed", store.start_keyed(node, &[keyed]).await.map(drop)),
        ("overflow", store.overflow(node, &[late]).await.map(drop)),
        ("publish_idle", store.publish_idle(node, &[idle(&["a"], 1)]).await.map(drop)),
        ("claim", store.claim(node, &[idle(&["a"], 1)], 1, LONG, world.now).await.map(drop)),
        ("leases", store.leases(node, &[]).await.map(drop)),
        ("adopt", store.adopt(node, 1).await.map(drop)),
    ];
    for (call, answer) in refused {
        assert!(matches!(answer, Err(Error::LeaseLost)), "{call}: {answer:?}");
    }
    assert_eq!(world.head(id).await.expect("there").sequence, 1);
    assert_eq!(world.load(other, fresh).await, None);
    assert_eq!(world.store.key_holder(&"default".into(), "k").await.expect("asks"), None);
    assert!(world.feed_ids().await.is_empty());
    let claimed = store.claim(other, &[idle(&["a"], 9)], 9, LONG, world.now).await.expect("claims");
    assert_eq!(claimed, [task]);
}

pub async fn only_active_executions_are_adopted(world: World) {
    use CompensationState as C;
    let (node, other) = (world.node().await, world.node().await);
    let mut expected = Vec::new();
    for state in State::ALL {
        for compensation in [C::None, C::Pending, C::Running, C::Done, C::Parked] {
            let index = world.in_state(state, compensation);
            let active = index.is_active();
            let id = world.begun(node, index).await;
            if active {
                expected.push(id);
            }
        }
    }
    world.begun(other, world.index()).await;
    world.store.leave(node).await.expect("leaves");
    let mut adopted = world.store.adopt(other, 100).await.expect("adopts");
    adopted.sort();
    assert_eq!(adopted, expected);
}

pub async fn adopt_returns_at_most_the_requested_number(world: World) {
    let (node, one, other) = (world.node().await, world.node().await, world.node().await);
    let mut ids = Vec::new();
    for _ in 0..7 {
        ids.push(world.begun(node, world.index()).await);
    }
    world.store.leave(node).await.expect("leaves");
    let first = world.store.adopt(one, 4).await.expect("adopts");
    assert_eq!(first.len(), 4);
    let mut second = world.store.adopt(other, 4).await.expect("adopts");
    assert_eq!(second.len(), 3);
    for id in &first {
        assert_eq!(world.head(*id).await.expect("there").owner, Some(one));
    }
    second.extend(first);
    second.sort();
    assert_eq!(second, ids);
}
