//! Rows with names that only a newer binary knows: of states, phases, kinds and reasons. A store writes the
//! names that it is given, so these cases can write what a newer binary would.

use recoup_core::execution::{CompensationState, State};
use recoup_core::failure_event::FailureKind;
use recoup_core::id::ExecutionId;
use recoup_core::key::{OnEnded, OnRunning};
use recoup_core::quarantine::{Quarantine, QuarantineReason};
use recoup_core::time::Timestamp;

use super::world::{LONG, NAMESPACE, World, idle, ids};
use crate::contract::*;
use crate::format::Formats;

const LONG_AGO: Timestamp = Timestamp::from_micros(1_000_000);

fn unknown<T>() -> Named<T> {
    Named::Unknown("HIBERNATING".into())
}

/// An index row in which no name is known. Its format is newer than what this binary reads, because a new name
/// needs a new format.
fn row_of_a_newer_binary(world: &World) -> IndexRow {
    IndexRow {
        format: Formats::NEWEST.history + 1,
        state: unknown(),
        phase: unknown(),
        compensation: unknown(),
        wake_at: Some(world.now),
        ..world.index()
    }
}

pub async fn execution_in_an_unknown_state_is_listed_with_the_others(world: World) {
    let node = world.node().await;
    let mut rows = Vec::new();
    for index in [world.index(), row_of_a_newer_binary(&world), world.index()] {
        let execution = world.begun(node, index.clone()).await;
        rows.push(Listed { execution, index, quarantine: None });
    }
    let all: Vec<ExecutionId> = rows.iter().map(|row| row.execution).collect();
    let heads = world.store.heads(&all).await.expect("asks");
    let states = heads.iter().map(|head| head.state.clone()).collect::<Vec<_>>();
    assert_eq!(states, [State::Running.into(), unknown(), State::Running.into()]);
    assert_eq!(world.store.load(node, &all).await.expect("loads").len(), 3);
    for row in &rows {
        let indexed = world.store.indexed(row.execution).await.expect("asks");
        assert_eq!(indexed.as_ref(), Some(row));
    }
    rows.reverse();
    assert_eq!(world.store.list(&ListFilter::default(), None, 10).await.expect("lists"), rows);
    let known = ListFilter { states: State::ALL.to_vec(), ..ListFilter::default() };
    rows.remove(1);
    assert_eq!(
        world.store.list(&known, None, 10).await.expect("lists"),
        rows,
        "an unknown state matches no filter"
    );
}

pub async fn an_execution_in_an_unknown_state_is_left_to_newer_binaries(world: World) {
    let gone = world.node().await;
    let plain = IndexRow { wake_at: Some(world.now), ..world.index() };
    let (plain, strange) =
        (world.begun(gone, plain).await, world.begun(gone, row_of_a_newer_binary(&world)).await);
    let tasks = [plain, strange].map(|id| world.task(id, "a"));
    world.store.overflow(gone, &tasks).await.expect("overflows");
    world.store.leave(gone).await.expect("leaves");
    let node = world.node().await;
    assert_eq!(world.store.adopt(node, 10).await.expect("adopts"), [plain]);
    assert_eq!(world.head(strange).await.expect("there").owner, None);
    let claimed = world.store.claim(node, &[idle(&["a"], 10)], 10, LONG, world.now).await;
    let claimed =
        claimed.expect("claims").iter().map(|task| task.key().execution).collect::<Vec<_>>();
    assert_eq!(claimed, [plain]);
    let due = world.store.due(node, world.now, None, 10).await.expect("asks");
    assert_eq!(due.iter().map(|due| due.execution).collect::<Vec<_>>(), [plain]);
}

pub async fn keyed_start_is_too_new_if_the_holder_is_in_an_unknown_state(world: World) {
    let node = world.node().await;
    let start = |id: ExecutionId, index: IndexRow| KeyedStart {
        transition: Transition {
            index: Some(IndexRow { key: Some("k".into()), ..index }),
            request: Some(world.request(&id.to_string(), 1)),
            ..world.start(id)
        },
        key: "k".into(),
        on_running: OnRunning::UseExisting,
        on_ended: OnEnded::UseExisting,
    };
    let (holder, late) = (world.id(), world.id());
    let first = start(holder, row_of_a_newer_binary(&world));
    let settled = world.store.start_keyed(node, &[first]).await.expect("settles");
    assert_eq!(settled, [KeySettled::Won]);
    for _ in 0..2 {
        let second = start(late, world.index());
        let settled = world.store.start_keyed(node, &[second]).await.expect("settles");
        assert_eq!(settled, [KeySettled::TooNew { execution: holder }]);
    }
    let namespace = NAMESPACE.into();
    let request = world.store.started_by(&namespace, &late.to_string()).await.expect("asks");
    assert_eq!(request, None, "the request id is not used up");
    assert_eq!(world.store.key_holder(&namespace, "k").await.expect("asks"), Some(holder));
    assert_eq!(world.load(node, late).await, None);
}

pub async fn retention_keeps_executions_in_unknown_states(world: World) {
    let node = world.node().await;
    let ended = |state: Named<State>, compensation: Named<CompensationState>| IndexRow {
        state,
        compensation,
        started_at: LONG_AGO,
        ended_at: Some(LONG_AGO),
        ..world.index()
    };
    let done = CompensationState::Done;
    let known = world.begun(node, ended(State::Failed.into(), done.into())).await;
    let kept = [
        world.begun(node, ended(unknown(), done.into())).await,
        world.begun(node, ended(State::Failed.into(), unknown())).await,
    ];
    let expired = world.store.expire(Timestamp::MAX, 100).await.expect("expires");
    assert_eq!(expired.executions, 1);
    assert_eq!(world.load(node, known).await, None);
    for id in kept {
        assert!(world.load(node, id).await.is_some(), "it may have something left to do");
    }
}

pub async fn event_of_an_unknown_kind_is_read_with_the_others(world: World) {
    let node = world.node().await;
    let strange = FeedRow { kind: unknown(), ..world.free_event("strange") };
    let feed = vec![world.free_event("before"), strange.clone(), world.free_event("after")];
    let batch = Batch { feed, ..Batch::default() };
    world.store.commit(node, &batch).await.expect("commits");
    let read = world.feed().await;
    assert_eq!(ids(&read), ["before", "strange", "after"]);
    assert_eq!(read[1].row, strange);
    let found = world.store.failure("strange").await.expect("asks").expect("there");
    assert_eq!(found, read[1]);
    let list = async |kinds: &[FailureKind]| {
        let filter = FailureFilter {
            namespace: "*".into(),
            kinds: kinds.to_vec(),
            ..FailureFilter::default()
        };
        ids(&world.store.list_failures(&filter, None, 10).await.expect("lists"))
    };
    assert_eq!(list(&[]).await, ["after", "strange", "before"]);
    assert_eq!(
        list(FailureKind::VALUES).await,
        ["after", "before"],
        "an unknown kind matches no filter"
    );
}

pub async fn a_quarantine_for_an_unknown_reason_is_in_force(world: World) {
    let node = world.node().await;
    let (plain, marked) =
        (world.begun(node, world.index()).await, world.begun(node, world.index()).await);
    let quarantine = Quarantine::new(QuarantineReason::Unknown, "of a newer server", world.now);
    let new = NewQuarantine {
        execution: marked,
        quarantine: quarantine.clone(),
        event: world.event("q", marked),
    };
    let batch = Batch { quarantined: vec![new], ..Batch::default() };
    world.store.commit(node, &batch).await.expect("commits");
    let histories = world.store.load(node, &[plain, marked]).await.expect("loads");
    assert_eq!(histories.len(), 2, "an unknown reason does not fail the load");
    let listed = world.store.list(&ListFilter::default(), None, 10).await.expect("lists");
    let marks = listed.into_iter().map(|listed| listed.quarantine).collect::<Vec<_>>();
    assert_eq!(marks, [Some(quarantine), None]);
    let settled = world.commit(node, [world.next(marked, 2)]).await;
    assert_eq!(settled, [Settled::Quarantined]);
}
