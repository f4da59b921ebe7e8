//! Tasks that any node may claim.

use std::collections::BTreeSet;
use std::time::Duration;

use recoup_core::time::Timestamp;

use super::world::{LONG, SHORT, World, idle, queue};
use crate::contract::*;

async fn claim(world: &World, node: NodeId, limit: usize, lease: Duration) -> Vec<OverflowTask> {
    claim_at(world, node, limit, lease, world.now).await
}

async fn claim_at(
    world: &World,
    node: NodeId,
    limit: usize,
    lease: Duration,
    now: Timestamp,
) -> Vec<OverflowTask> {
    world.store.claim(node, &[idle(&["a"], 1_000)], limit, lease, now).await.expect("claims")
}

fn paths(tasks: &[OverflowTask]) -> Vec<&str> {
    tasks.iter().map(|task| task.task.path.as_str()).collect()
}

pub async fn no_task_is_claimed_twice(world: World) {
    let (one, other) = (world.node().await, world.node().await);
    let id = world.id();
    let elsewhere = OverflowTask { queue: queue("b"), ..world.task(id, "elsewhere") };
    let tomorrow = world.now + Duration::from_secs(24 * 3600);
    let not_yet = OverflowTask { available_at: tomorrow, ..world.task(id, "not yet") };
    let mut tasks: Vec<_> = (0..10).map(|i| world.task(id, &format!("s{i}"))).collect();
    tasks.extend([elsewhere.clone(), not_yet]);
    world.store.overflow(one, &tasks).await.expect("overflows");
    let mut depth = world.store.overflow_depth().await.expect("depth");
    depth.sort();
    assert_eq!(depth, [(queue("a"), 11), (queue("b"), 1)]);

    let mut claimed = claim(&world, one, 4, LONG).await;
    assert_eq!(claimed.len(), 4);
    claimed.extend(claim(&world, other, 100, LONG).await);
    assert_eq!(claim(&world, one, 100, LONG).await, []);
    claimed.sort_by_key(OverflowTask::key);
    tasks.truncate(10);
    tasks.sort_by_key(OverflowTask::key);
    assert_eq!(claimed, tasks);
    let both = [idle(&["a", "b"], 9)];
    assert_eq!(
        world.store.claim(one, &both, 9, LONG, world.now).await.expect("claims"),
        [elsewhere]
    );
    assert_eq!(world.store.claim(one, &[], 9, LONG, world.now).await.expect("claims"), []);
}

pub async fn tasks_are_claimed_by_priority_then_age(world: World) {
    let node = world.node().await;
    let id = world.id();
    let task = |path: &str, priority, available: i64| OverflowTask {
        priority,
        available_at: Timestamp::from_micros(available),
        ..world.task(id, path)
    };
    let tasks = [
        task("low", -5, 1_000),
        task("young", 0, 3_000),
        task("old", 0, 1_000),
        task("middle", 0, 2_000),
        task("high", 7, 9_000),
    ];
    world.store.overflow(node, &tasks).await.expect("overflows");
    assert_eq!(paths(&claim(&world, node, 2, LONG).await), ["high", "old"]);
    assert_eq!(paths(&claim(&world, node, 9, LONG).await), ["middle", "young", "low"]);
}

pub async fn racing_claims_never_share_a_task(world: World) {
    let nodes = [world.node().await, world.node().await, world.node().await];
    let id = world.id();
    let tasks: Vec<_> = (0..300).map(|i| world.task(id, &format!("s{i}"))).collect();
    world.store.overflow(nodes[0], &tasks).await.expect("overflows");
    let now = world.now;
    let racing = nodes.map(|node| {
        let store = world.store.clone();
        tokio::spawn(async move {
            let (mut claimed, mut empty) = (Vec::new(), 0);
            // An empty answer does not mean that no tasks are left, because other claims may have locked every
            // row.
            while empty < 3 && claimed.len() <= 300 {
                let some =
                    store.claim(node, &[idle(&["a"], 7)], 7, LONG, now).await.expect("claims");
                empty = if some.is_empty() { empty + 1 } else { 0 };
                claimed.extend(some);
            }
            claimed
        })
    });
    let mut claimed = Vec::new();
    for racer in racing {
        claimed.extend(racer.await.expect("the racer ends"));
    }
    let distinct: BTreeSet<_> = claimed.iter().map(OverflowTask::key).collect();
    assert_eq!(distinct.len(), claimed.len(), "a task was claimed twice");
    claimed.extend(claim(&world, nodes[0], 300, LONG).await);
    assert_eq!(claimed.len(), 300);
}

pub async fn task_can_be_claimed_again_once_its_claim_has_expired(world: World) {
    let (one, other) = (world.node().await, world.node().await);
    let task = world.task(world.id(), "s");
    world.store.overflow(one, std::slice::from_ref(&task)).await.expect("overflows");
    assert_eq!(paths(&claim(&world, one, 1, SHORT).await), ["s"]);
    let until = world.now + SHORT;
    let just_before = until - Duration::from_micros(1);
    assert_eq!(claim_at(&world, other, 1, LONG, just_before).await, []);
    assert_eq!(claim_at(&world, other, 1, LONG, until).await, [task]);
    assert_eq!(claim_at(&world, one, 1, LONG, until).await, []);
}

pub async fn withdrawn_and_ended_tasks_are_removed(world: World) {
    let node = world.node().await;
    let id = world.id();
    let tasks = ["kept", "withdrawn", "ended", "claimed"].map(|path| world.task(id, path));
    let [kept, withdrawn, ended, claimed] = &tasks;
    let urgent = OverflowTask { priority: 9, ..claimed.clone() };
    let all = [kept.clone(), withdrawn.clone(), ended.clone(), urgent.clone()];
    world.store.overflow(node, &all).await.expect("overflows");
    assert_eq!(claim(&world, node, 1, LONG).await, [urgent]);

    let unknown = world.task(id, "never there").key();
    let void = [withdrawn.key(), claimed.key(), unknown];
    world.store.withdraw(&void).await.expect("withdraws");
    world.won(node, [Transition { overflow_done: vec![ended.key()], ..world.start(id) }]).await;
    assert_eq!(world.store.overflow_depth().await.expect("depth"), [(queue("a"), 1)]);
    assert_eq!(paths(&claim(&world, node, 9, LONG).await), ["kept"]);
}

pub async fn overflowing_a_task_again_does_not_change_its_row(world: World) {
    let (one, other) = (world.node().await, world.node().await);
    let task = world.task(world.id(), "s");
    world.store.overflow(one, std::slice::from_ref(&task)).await.expect("overflows");
    assert_eq!(paths(&claim(&world, one, 1, LONG).await), ["s"]);
    // If this replaced the row, it would undo the claim.
    let changed = OverflowTask { priority: 9, ..task.clone() };
    world.store.overflow(other, &[changed]).await.expect("overflows");
    assert_eq!(claim(&world, other, 9, LONG).await, []);
    assert_eq!(world.store.overflow_depth().await.expect("depth"), [(queue("a"), 1)]);
}

pub async fn tasks_of_an_execution_that_another_node_owns_are_left_out(world: World) {
    let (one, other) = (world.node().await, world.node().await);
    let own = world.begun(one, world.index()).await;
    let taken = world.begun(one, world.index()).await;
    let next = Transition { index: Some(world.index()), ..world.next(taken, 2) };
    world.won(other, [next]).await;
    let tasks = [world.task(own, "s"), world.task(taken, "s"), world.task(own, "t")];
    let left_out = world.store.overflow(one, &tasks).await.expect("overflows");
    assert_eq!(left_out, [tasks[1].key()]);
    let claimed = claim(&world, other, 9, LONG).await;
    assert_eq!(claimed, [tasks[0].clone(), tasks[2].clone()]);
    let left_out = world.store.overflow(other, &tasks[1..2]).await.expect("overflows");
    assert_eq!(left_out, []);
}

pub async fn task_handed_out_by_the_next_owner_does_not_stay_in_the_overflow(world: World) {
    let (one, other) = (world.node().await, world.node().await);
    for round in 0..200 {
        let id = world.begun(one, world.index()).await;
        let task = world.task(id, "s");
        let handed_out = Transition {
            index: Some(world.index()),
            overflow_done: vec![task.key()],
            ..world.next(id, 2)
        };
        let store = world.store.clone();
        let late = async { store.overflow(one, &[task]).await.expect("overflows") };
        let (_, settled) = tokio::join!(late, world.commit(other, [handed_out]));
        assert_eq!(settled, [Settled::Won]);
        let depth = world.store.overflow_depth().await.expect("depth");
        assert_eq!(depth, [], "round {round}");
    }
}

pub async fn claims_respect_the_task_types_and_the_credit_of_workers(world: World) {
    let node = world.node().await;
    let id = world.id();
    let task = |path: &str, task_type: &str, priority| OverflowTask {
        task_type: task_type.into(),
        priority,
        ..world.task(id, path)
    };
    let mut tasks: Vec<_> = (0..20).map(|i| task(&format!("other{i}"), "other", 9)).collect();
    tasks.extend([
        task("ship", "ship", 5),
        task("charge", "charge", 4),
        task("refund", "refund", 3),
    ]);
    world.store.overflow(node, &tasks).await.expect("overflows");
    let of_types = |types: &[&str], credit| IdleCredit {
        task_types: types.iter().map(|name| (*name).to_owned()).collect(),
        ..idle(&["a"], credit)
    };
    let some = [of_types(&["charge", "refund"], 1), of_types(&["ship"], 5)];
    let claimed = world.store.claim(node, &some, 9, LONG, world.now).await.expect("claims");
    assert_eq!(paths(&claimed), ["ship", "charge"], "the first workers have credit for one task");
    let none = [of_types(&["ship"], 5), of_types(&["refund"], 0)];
    assert_eq!(world.store.claim(node, &none, 9, LONG, world.now).await.expect("claims"), []);
    // A task that two groups of workers take is still one task.
    let twice = [of_types(&["refund"], 1), of_types(&["refund", "ship"], 1)];
    let claimed = world.store.claim(node, &twice, 9, LONG, world.now).await.expect("claims");
    assert_eq!(paths(&claimed), ["refund"]);
    assert_eq!(claim(&world, node, 3, LONG).await.len(), 3);
}

pub async fn nodes_see_the_idle_credit_that_others_have_published(world: World) {
    let store = &world.store;
    let (one, other) = (world.node().await, world.node().await);
    let idle =
        [idle(&["a", "b"], 3), IdleCredit { task_types: vec!["ship".into()], ..idle(&["a"], 1) }];
    let alone = store.publish_idle(one, &idle).await.expect("publishes");
    assert_eq!(alone, Peers { nodes: 1, idle: Vec::new() });
    let seen = store.publish_idle(other, &[]).await.expect("publishes");
    assert_eq!(seen, Peers { nodes: 1, idle: idle.to_vec() });
    // A new publication replaces the one before.
    store.publish_idle(one, &idle[1..]).await.expect("publishes");
    let seen = store.publish_idle(other, &[]).await.expect("publishes");
    assert_eq!(seen.idle, idle[1..]);
    store.leave(one).await.expect("leaves");
    let seen = store.publish_idle(other, &[]).await.expect("publishes");
    assert_eq!(seen, Peers::default(), "published credit ends with the lease");
}
