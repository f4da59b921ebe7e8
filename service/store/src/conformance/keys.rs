//! Starts with keys.

use recoup_core::execution::{CompensationState, State};
use recoup_core::id::ExecutionId;
use recoup_core::key::{self, KeyVerdict, OnEnded, OnRunning};

use super::world::{LONG, NAMESPACE, World};
use crate::contract::*;

fn start(world: &World, id: ExecutionId, key: &str) -> KeyedStart {
    let index = IndexRow { key: Some(key.into()), ..world.index() };
    KeyedStart {
        transition: Transition { index: Some(index), ..world.start(id) },
        key: key.into(),
        on_running: OnRunning::Reject,
        on_ended: OnEnded::Reject,
    }
}

fn with_request(start: KeyedStart, request: StartRequest) -> KeyedStart {
    KeyedStart { transition: Transition { request: Some(request), ..start.transition }, ..start }
}

async fn settle(world: &World, node: NodeId, start: &KeyedStart) -> KeySettled {
    let settled = world.store.start_keyed(node, std::slice::from_ref(start)).await;
    settled.expect("the start is settled").pop().expect("one answer")
}

async fn holder(world: &World, key: &str) -> Option<ExecutionId> {
    world.store.key_holder(&NAMESPACE.into(), key).await.expect("asks")
}

async fn started(world: &World, request_id: &str) -> Option<(ExecutionId, u64)> {
    world.store.started_by(&NAMESPACE.into(), request_id).await.expect("asks")
}

pub async fn every_key_policy_decides_on_every_state_of_the_holder(world: World) {
    use CompensationState as C;
    let (node, other) = (world.node().await, world.node().await);
    let standings = State::ALL.map(|state| (state, C::None)).into_iter().chain([
        (State::Failed, C::Pending),
        (State::Failed, C::Running),
        (State::Failed, C::Done),
        (State::Terminated, C::Parked),
    ]);
    let mut verdicts = [0; 3];
    for (state, compensation) in standings {
        for on_running in [OnRunning::Reject, OnRunning::UseExisting] {
            for on_ended in
                [OnEnded::Allow, OnEnded::AllowAfterFailure, OnEnded::Reject, OnEnded::UseExisting]
            {
                let case = format!("{state:?} {compensation:?} {on_running:?} {on_ended:?}");
                let (first, second) = (world.id(), world.id());
                let won = settle(&world, node, &start(&world, first, &case)).await;
                assert_eq!(won, KeySettled::Won, "the key is free: {case}");
                let index =
                    IndexRow { key: Some(case.clone()), ..world.in_state(state, compensation) };
                world.won(node, [Transition { index: Some(index), ..world.next(first, 2) }]).await;

                let wish = KeyedStart { on_running, on_ended, ..start(&world, second, &case) };
                let answer = settle(&world, other, &wish).await;
                let (expected, holds, count) =
                    match key::decide(Some((state, compensation)), on_running, on_ended) {
                        KeyVerdict::Take => (KeySettled::Won, second, 0),
                        KeyVerdict::UseExisting => {
                            (KeySettled::UseExisting { execution: first }, first, 1)
                        }
                        KeyVerdict::Reject => {
                            (KeySettled::Rejected { execution: first, state }, first, 2)
                        }
                    };
                verdicts[count] += 1;
                assert_eq!(answer, expected, "{case}");
                assert_eq!(holder(&world, &case).await, Some(holds), "{case}");
                let there = world.load(other, second).await;
                assert_eq!(there.is_some(), holds == second, "{case}");
                let owner = there.map(|history| history.owner);
                assert_eq!(owner, (holds == second).then_some(Some(other)), "{case}");
            }
        }
    }
    assert!(verdicts.iter().all(|count| *count > 0), "every verdict occurs: {verdicts:?}");
}

pub async fn repeated_keyed_start_takes_effect_once(world: World) {
    let node = world.node().await;
    let id = world.id();
    let mut keyed = with_request(start(&world, id, "k"), world.request("r", 3));
    keyed.transition.feed = vec![world.event("e", id)];
    for _ in 0..3 {
        assert_eq!(settle(&world, node, &keyed).await, KeySettled::Won);
    }
    assert_eq!(world.feed_ids().await, ["e"]);
    assert_eq!(holder(&world, "k").await, Some(id));
    assert_eq!(started(&world, "r").await, Some((id, 3)));
    assert_eq!(world.load(node, id).await.expect("there").transitions.len(), 1);
}

pub async fn rejected_start_does_not_use_up_its_request_id(world: World) {
    let node = world.node().await;
    let (first, second, third) = (world.id(), world.id(), world.id());
    assert_eq!(settle(&world, node, &start(&world, first, "k")).await, KeySettled::Won);
    let mut second_start = with_request(start(&world, second, "k"), world.request("r", 1));
    second_start.transition.feed = vec![world.event("rejected", second)];
    let rejected = KeySettled::Rejected { execution: first, state: State::Running };
    assert_eq!(settle(&world, node, &second_start).await, rejected);
    assert_eq!(started(&world, "r").await, None);
    assert_eq!(world.load(node, second).await, None);
    assert_eq!(world.head(second).await, None);
    assert!(world.feed_ids().await.is_empty());
    // The same call may succeed later.
    let again = with_request(start(&world, third, "free"), world.request("r", 1));
    assert_eq!(settle(&world, node, &again).await, KeySettled::Won);
    assert_eq!(started(&world, "r").await, Some((third, 1)));
}

pub async fn use_existing_binds_the_request_id_to_the_holder(world: World) {
    let node = world.node().await;
    let (first, second) = (world.id(), world.id());
    assert_eq!(settle(&world, node, &start(&world, first, "k")).await, KeySettled::Won);
    let wish = with_request(start(&world, second, "k"), world.request("r", 5));
    let wish = KeyedStart { on_running: OnRunning::UseExisting, ..wish };
    let existing = KeySettled::UseExisting { execution: first };
    assert_eq!(settle(&world, node, &wish).await, existing);
    assert_eq!(started(&world, "r").await, Some((first, 5)));
    // Both answers mean the same: this request id stands for that execution.
    let taken = KeySettled::RequestTaken { execution: first, digest: 5, started: false };
    let again = settle(&world, node, &wish).await;
    assert!([existing, taken.clone()].contains(&again), "{again:?}");
    // The same answer is given to other starts with this id, with or without a key.
    let request = Some(world.request("r", 5));
    let settled = world.commit(node, [Transition { request, ..world.start(second) }]).await;
    assert_eq!(settled, [Settled::RequestTaken { execution: first, digest: 5, started: false }]);
    // The id keeps its meaning in a start with another key, and that key stays free.
    let elsewhere = with_request(start(&world, world.id(), "free"), world.request("r", 6));
    assert_eq!(settle(&world, node, &elsewhere).await, taken);
    assert_eq!(holder(&world, "free").await, None);
    assert_eq!(world.load(node, second).await, None);
}

pub async fn keyed_and_other_starts_share_request_ids(world: World) {
    let node = world.node().await;
    let (plain, keyed, late) = (world.id(), world.id(), world.id());
    let request = Some(world.request("plain", 1));
    world.won(node, [Transition { request, ..world.start(plain) }]).await;
    let wish = with_request(start(&world, keyed, "k"), world.request("plain", 2));
    let taken = KeySettled::RequestTaken { execution: plain, digest: 1, started: true };
    assert_eq!(settle(&world, node, &wish).await, taken);
    assert_eq!(holder(&world, "k").await, None);

    let first = with_request(start(&world, keyed, "k"), world.request("keyed", 3));
    assert_eq!(settle(&world, node, &first).await, KeySettled::Won);
    let second = with_request(start(&world, late, "l"), world.request("keyed", 4));
    let taken = KeySettled::RequestTaken { execution: keyed, digest: 3, started: true };
    assert_eq!(settle(&world, node, &second).await, taken);
    assert_eq!(holder(&world, "l").await, None);
    let request = Some(world.request("keyed", 4));
    let settled = world.commit(node, [Transition { request, ..world.start(late) }]).await;
    let taken = Settled::RequestTaken { execution: keyed, digest: 3, started: true };
    assert_eq!(settled, [taken]);
    assert_eq!(world.load(node, late).await, None);
}

pub async fn refused_start_uses_up_neither_key_nor_request_id(world: World) {
    let node = world.node().await;
    let (first, culprit, innocent) = (world.id(), world.id(), world.id());
    let event = vec![world.event("taken", first)];
    world.won(node, [Transition { feed: event, ..world.start(first) }]).await;
    let mut refused = with_request(start(&world, culprit, "k"), world.request("r", 1));
    refused.transition.feed = vec![world.event("taken", culprit)];
    let starts = [refused, start(&world, innocent, "l")];
    let settled = world.store.start_keyed(node, &starts).await.expect("settles");
    assert!(matches!(settled[0], KeySettled::Refused(_)), "{settled:?}");
    assert_eq!(settled[1], KeySettled::Won);
    assert_eq!(holder(&world, "k").await, None);
    assert_eq!(started(&world, "r").await, None);
    assert_eq!(world.load(node, culprit).await, None);
}

pub async fn keys_of_different_namespaces_are_independent(world: World) {
    let node = world.node().await;
    world.store.create_namespace(&"other".into(), "", LONG, None).await.expect("creates");
    let (here, there) = (world.id(), world.id());
    assert_eq!(settle(&world, node, &start(&world, here, "k")).await, KeySettled::Won);
    let mut wish = start(&world, there, "k");
    let index = IndexRow { namespace: "other".into(), key: Some("k".into()), ..world.index() };
    wish.transition.index = Some(index);
    assert_eq!(settle(&world, node, &wish).await, KeySettled::Won);
    assert_eq!(holder(&world, "k").await, Some(here));
    let other = world.store.key_holder(&"other".into(), "k").await.expect("asks");
    assert_eq!(other, Some(there));
}

pub async fn one_of_two_starts_that_race_for_a_key_wins(world: World) {
    let nodes = [world.node().await, world.node().await];
    for round in 0..20 {
        let keys: Vec<_> = (0..10).map(|key| format!("{round}.{key}")).collect();
        let ids = [(); 2].map(|()| keys.iter().map(|_| world.id()).collect::<Vec<_>>());
        let mut starts = [0, 1].map(|node: usize| {
            let starts = keys.iter().zip(&ids[node]);
            starts.map(|(key, id)| start(&world, *id, key)).collect::<Vec<_>>()
        });
        starts[1].reverse();
        let racing = [0, 1].map(|i| {
            let (store, node, starts) = (world.store.clone(), nodes[i], starts[i].clone());
            tokio::spawn(async move { store.start_keyed(node, &starts).await.expect("settles") })
        });
        let [one, other] = racing;
        let (one, mut other) = (one.await.expect("ends"), other.await.expect("ends"));
        other.reverse();
        for (i, key) in keys.iter().enumerate() {
            let holds = holder(&world, key).await.expect("one of the starts holds it");
            let rejected = KeySettled::Rejected { execution: holds, state: State::Running };
            let expected = if holds == ids[0][i] {
                [KeySettled::Won, rejected]
            } else {
                [rejected, KeySettled::Won]
            };
            assert_eq!([one[i].clone(), other[i].clone()], expected, "key {key}");
        }
        let all: Vec<_> = ids.concat();
        assert_eq!(world.store.heads(&all).await.expect("heads").len(), keys.len());
    }
}
