//! Places in a history: each has one winner, and nothing of the losers is written.

use std::collections::BTreeMap;
use std::sync::Arc;

use recoup_core::execution::{CompensationState, State};
use recoup_core::id::ExecutionId;

use super::world::{World, batch};
use crate::contract::*;

pub async fn lost_transition_writes_nothing(world: World) {
    let (owner, late) = (world.node().await, world.node().await);
    let id = world.id();
    let task = world.task(id, "charge");
    world.store.overflow(owner, std::slice::from_ref(&task)).await.expect("overflows");
    let winner = Transition { feed: vec![world.event("won", id)], ..world.start(id) };
    world.won(owner, [winner.clone()]).await;
    world.won(owner, [world.next(id, 2)]).await;

    let companions = |transition| Transition {
        index: Some(world.in_state(State::Failed, CompensationState::Parked)),
        feed: vec![world.event("lost", id)],
        overflow_done: vec![task.key()],
        ..transition
    };
    let start = companions(world.start(id));
    let start = Transition { request: Some(world.request("lost", 1)), ..start };
    assert_eq!(world.commit(late, [start]).await, [Settled::Lost]);
    assert_eq!(world.commit(late, [companions(world.next(id, 2))]).await, [Settled::Lost]);

    let history = world.load(late, id).await.expect("there");
    assert_eq!(history.transitions.len(), 2);
    assert_eq!(history.transitions[0].transition_id, winner.transition_id);
    assert_eq!(history.owner, Some(owner));
    let head = world.head(id).await.expect("there");
    assert_eq!((head.sequence, head.state, head.owner), (2, State::Running.into(), Some(owner)));
    assert_eq!(world.feed_ids().await, ["won"]);
    assert_eq!(world.store.failure("lost").await.expect("asks"), None);
    assert_eq!(world.store.started_by(&"default".into(), "lost").await.expect("asks"), None);
    let depth = world.store.overflow_depth().await.expect("depth");
    assert_eq!(depth, [(task.queue.clone(), 1)]);
}

pub async fn verdicts_of_a_mixed_batch_are_in_its_order(world: World) {
    let (node, other) = (world.node().await, world.node().await);
    let ids: Vec<_> = (0..5).map(|_| world.id()).collect();
    let settled = world.start(ids[1]);
    world.won(node, [settled.clone()]).await;
    world.won(other, [world.start(ids[3])]).await;
    let mixed = [
        world.start(ids[4]),
        world.start(ids[3]),
        world.start(ids[2]),
        settled,
        world.start(ids[0]),
    ];
    let answers = world.commit(node, mixed).await;
    use Settled::{Lost, Won};
    assert_eq!(answers, [Won, Lost, Won, Won, Won]);
    assert_eq!(world.store.heads(&ids).await.expect("heads").len(), 5);
}

/// Two nodes commit to the same executions in different orders at the same time.
pub async fn racing_writers_never_both_win_a_sequence(world: World) {
    let nodes = [world.node().await, world.node().await];
    let ids: Vec<_> = (0..40).map(|_| world.id()).collect();
    let world = Arc::new(world);
    let writers = nodes.map(|node| {
        let (world, mut ids) = (world.clone(), ids.clone());
        if node == nodes[1] {
            ids.reverse();
        }
        tokio::spawn(async move {
            let mut won: Vec<(ExecutionId, u64, Transition)> = Vec::new();
            for sequence in 1..=10 {
                let transitions: Vec<_> = ids
                    .iter()
                    .map(|id| Transition {
                        index: Some(world.index()),
                        feed: vec![world.event(&format!("{sequence} of {id} by {}", node.0), *id)],
                        ..world.next(*id, sequence)
                    })
                    .collect();
                let settled = world.store.commit(node, &batch(transitions.clone())).await;
                for (transition, settled) in transitions.into_iter().zip(settled.expect("commits"))
                {
                    match settled {
                        Settled::Won => won.push((transition.execution, sequence, transition)),
                        Settled::Lost => {}
                        other => panic!("no reason for {other:?}"),
                    }
                }
            }
            won
        })
    });
    let mut winners = BTreeMap::new();
    for writer in writers {
        for (execution, sequence, transition) in writer.await.expect("the writer ends") {
            let before = winners.insert((execution, sequence), transition);
            assert!(before.is_none(), "two winners at {sequence} of {execution}");
        }
    }
    assert_eq!(winners.len(), 400, "every sequence has a winner");
    for history in world.store.load(nodes[0], &ids).await.expect("loads") {
        for stored in &history.transitions {
            let winner = &winners[&(history.execution, stored.sequence)];
            assert_eq!(stored.transition_id, winner.transition_id);
        }
    }
    let mut feed = world.feed_ids().await;
    let mut expected: Vec<_> =
        winners.values().map(|transition| transition.feed[0].id.clone()).collect();
    feed.sort();
    expected.sort();
    assert_eq!(feed, expected, "the events of the winners and no others");
}
