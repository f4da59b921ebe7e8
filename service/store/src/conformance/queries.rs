//! Finding executions.

use std::time::Duration;

use recoup_core::execution::{CompensationState, Phase, State};
use recoup_core::id::ExecutionId;

use super::world::{LONG, World, execution_id};
use crate::contract::*;

const SECOND: Duration = Duration::from_secs(1);

async fn list(world: &World, filter: ListFilter) -> Vec<ExecutionId> {
    let listed = world.store.list(&filter, None, 100).await.expect("lists");
    listed.into_iter().map(|listed| listed.execution).collect()
}

pub async fn index_row_round_trips(world: World) {
    let node = world.node().await;
    let full = IndexRow {
        format: 1,
        namespace: "default".into(),
        workflow: "größe".into(),
        version: u32::MAX >> 1,
        key: Some("'; drop table \u{1f4a3}".into()),
        state: State::TimedOut.into(),
        phase: Phase::OnFailure.into(),
        compensation: CompensationState::Parked.into(),
        run: 3,
        error_type: Some("recoup.timeout.execution".into()),
        started_at: world.now,
        ended_at: Some(world.now + SECOND),
        wake_at: Some(world.now + LONG),
    };
    let mut written = vec![full.clone(), world.index()];
    for state in State::ALL {
        let ended_at = full.ended_at.filter(|_| state.is_ended());
        written.push(IndexRow { state: state.into(), ended_at, ..full.clone() });
    }
    for phase in [Phase::Steps, Phase::Compensation, Phase::OnFailure, Phase::Finally] {
        written.push(IndexRow { phase: phase.into(), ..full.clone() });
    }
    use CompensationState::{Done, None, Parked, Pending, Running};
    for compensation in [None, Pending, Running, Done, Parked] {
        written.push(IndexRow { compensation: compensation.into(), ..full.clone() });
    }
    let mut expected = Vec::new();
    for index in written {
        let execution = world.begun(node, index.clone()).await;
        expected.push(Listed { execution, index, quarantine: Option::None });
    }
    expected.reverse();
    let listed = world.store.list(&ListFilter::default(), Option::None, 100).await.expect("lists");
    assert_eq!(listed, expected);
}

pub async fn index_row_changes_only_with_transitions_that_carry_one(world: World) {
    let (one, other) = (world.node().await, world.node().await);
    let id = world.begun(one, world.index()).await;
    world.won(other, [world.next(id, 2)]).await;
    let head = world.head(id).await.expect("there");
    assert_eq!((head.sequence, head.state, head.owner), (2, State::Running.into(), Some(one)));

    let failed = world.in_state(State::Failed, CompensationState::None);
    world.won(other, [Transition { index: Some(failed.clone()), ..world.next(id, 3) }]).await;
    let head = world.head(id).await.expect("there");
    assert_eq!((head.sequence, head.state, head.owner), (3, State::Failed.into(), Some(other)));
    assert_eq!(world.load(one, id).await.expect("there").owner, Some(other));
    let listed = world.store.list(&ListFilter::default(), None, 10).await.expect("lists");
    assert_eq!(listed, [Listed { execution: id, index: failed, quarantine: None }]);
}

pub async fn history_is_read_in_pages_from_any_sequence(world: World) {
    let node = world.node().await;
    let other = world.begun(node, world.index()).await;
    let id = world.begun(node, world.index()).await;
    for sequence in 2..=5 {
        world.won(node, [world.next(id, sequence)]).await;
    }
    let whole = world.load(node, id).await.expect("there").transitions;
    let read = async |after, limit| world.store.history(id, after, limit).await.expect("it reads");
    assert_eq!(read(0, 100).await, whole);
    assert_eq!(read(0, 2).await, whole[..2]);
    assert_eq!(read(2, 2).await, whole[2..4]);
    assert_eq!(read(4, usize::MAX).await, whole[4..]);
    for after in [5, 6, u64::MAX] {
        assert_eq!(read(after, 100).await, []);
    }
    assert_eq!(read(0, 0).await, []);
    let unknown = execution_id(world.now, 4711);
    assert_eq!(world.store.history(unknown, 0, 100).await.expect("it reads"), []);
    assert_eq!(world.store.history(other, 0, 100).await.expect("it reads").len(), 1);
}

pub async fn heads_give_the_last_sequence_of_every_existing_execution(world: World) {
    let node = world.node().await;
    let mut asked = Vec::new();
    for length in 1..=5 {
        let id = world.begun(node, world.index()).await;
        for sequence in 2..=length {
            world.won(node, [world.next(id, sequence)]).await;
        }
        asked.push(id);
        asked.push(world.id());
    }
    let mut heads = world.store.heads(&asked).await.expect("heads");
    heads.sort_by_key(|head| head.execution);
    let expected: Vec<_> = (1..).zip(asked.into_iter().step_by(2)).collect();
    let heads: Vec<_> = heads.into_iter().map(|head| (head.sequence, head.execution)).collect();
    assert_eq!(heads, expected);
}

pub async fn due_executions_of_a_node_are_read_in_the_order_of_their_times(world: World) {
    let (node, other) = (world.node().await, world.node().await);
    let waiting =
        |seconds: u32| IndexRow { wake_at: Some(world.now + SECOND * seconds), ..world.index() };
    let late = world.begun(node, waiting(30)).await;
    let early = world.begun(node, waiting(10)).await;
    let middle = world.begun(node, waiting(20)).await;
    world.begun(other, waiting(5)).await;
    world.begun(node, world.index()).await;
    let due = async |seconds: u32, limit| {
        let until = world.now + SECOND * seconds;
        let due = world.store.due(node, until, None, limit).await.expect("asks");
        due.into_iter().map(|due| due.execution).collect::<Vec<_>>()
    };
    assert_eq!(due(9, 10).await, []);
    assert_eq!(due(10, 10).await, [early], "an execution is due at its exact time");
    assert_eq!(due(60, 10).await, [early, middle, late]);
    assert_eq!(due(60, 2).await, [early, middle]);
    world.won(node, [Transition { index: Some(world.index()), ..world.next(early, 2) }]).await;
    assert_eq!(due(60, 10).await, [middle, late]);
    world.won(other, [Transition { index: Some(waiting(20)), ..world.next(middle, 2) }]).await;
    assert_eq!(due(60, 10).await, [late], "another node owns it now");
}

pub async fn due_executions_are_read_in_pages(world: World) {
    let node = world.node().await;
    let waiting =
        |seconds: u32| IndexRow { wake_at: Some(world.now + SECOND * seconds), ..world.index() };
    let mut expected = Vec::new();
    for seconds in [3, 1, 2, 2, 2, 9] {
        let execution = world.begun(node, waiting(seconds)).await;
        expected.push(Due { wake_at: world.now + SECOND * seconds, execution });
    }
    expected.pop();
    expected.sort();
    let mut found = Vec::new();
    loop {
        let until = world.now + SECOND * 5;
        let page = world.store.due(node, until, found.last().copied(), 2).await.expect("asks");
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 2);
        found.extend(page);
    }
    assert_eq!(found, expected);
}

pub async fn reminder_is_set_by_the_owner_alone_and_without_a_transition(world: World) {
    let (node, other) = (world.node().await, world.node().await);
    let at = world.now + SECOND * 10;
    let index = IndexRow { wake_at: Some(at), ..world.index() };
    let (kept, set) =
        (world.begun(node, index.clone()).await, world.begun(node, world.index()).await);
    let (cleared, foreign) =
        (world.begun(node, index.clone()).await, world.begun(other, index).await);
    let remind = |execution, wake_at| Reminder { execution, wake_at };
    let later = at + SECOND;
    let reminders = vec![
        remind(set, Some(later)),
        remind(cleared, None),
        remind(foreign, None),
        remind(world.id(), Some(at)),
    ];
    let beside = world.id();
    let batch = Batch { transitions: vec![world.start(beside)], reminders, ..Batch::default() };
    // A batch that is sent again has the same effect.
    for _ in 0..2 {
        assert_eq!(world.store.commit(node, &batch).await.expect("commits"), [Settled::Won]);
        let asked = [kept, set, cleared, foreign, beside];
        let mut histories = world.store.load(node, &asked).await.expect("loads");
        histories.sort_by_key(|history| history.execution);
        let wake_at: Vec<_> = histories.iter().map(|history| history.wake_at).collect();
        assert_eq!(wake_at, [Some(at), Some(later), None, Some(at), None]);
        assert!(histories.iter().all(|history| history.transitions.len() == 1));
    }
    let due = world.store.due(node, later, None, 10).await.expect("asks");
    assert_eq!(due.iter().map(|due| due.execution).collect::<Vec<_>>(), [kept, set]);
}

pub async fn list_applies_every_filter(world: World) {
    let node = world.node().await;
    world.store.create_namespace(&"team".into(), "", LONG, None).await.expect("creates");
    let plain = world.begun(node, world.index()).await;
    let team = IndexRow { namespace: "team".into(), ..world.index() };
    let team = world.begun(node, team).await;
    let refund = IndexRow { workflow: "refund".into(), ..world.index() };
    let refund = world.begun(node, refund).await;
    let failed = |error: &str| IndexRow {
        error_type: Some(error.into()),
        ..world.in_state(State::Failed, CompensationState::None)
    };
    let payment = world.begun(node, failed("payment")).await;
    let declined = world.begun(node, failed("payment.card_declined")).await;
    let payments = world.begun(node, failed("payments")).await;
    let cancelled = world.in_state(State::Cancelled, CompensationState::None);
    let cancelled = world.begun(node, cancelled).await;
    let keyed = IndexRow { key: Some("order-1".into()), ..world.index() };
    let keyed = world.begun(node, keyed).await;
    let later = IndexRow { started_at: world.now + SECOND, ..world.index() };
    let later = world.begun(node, later).await;

    let all = ListFilter::default;
    let everything = [later, keyed, cancelled, payments, declined, payment, refund, team, plain];
    assert_eq!(list(&world, all()).await, everything);
    let filter = ListFilter { namespace: Some("team".into()), ..all() };
    assert_eq!(list(&world, filter).await, [team]);
    let filter = ListFilter { workflow: Some("refund".into()), ..all() };
    assert_eq!(list(&world, filter).await, [refund]);
    let filter = ListFilter { states: vec![State::Failed, State::Cancelled], ..all() };
    assert_eq!(list(&world, filter).await, [cancelled, payments, declined, payment]);
    let filter = ListFilter { error_type: Some("payment".into()), ..all() };
    assert_eq!(list(&world, filter).await, [declined, payment]);
    let filter = ListFilter { key_prefix: Some("order".into()), ..all() };
    assert_eq!(list(&world, filter).await, [keyed]);
    let filter = ListFilter { started_after: Some(world.now + SECOND), ..all() };
    assert_eq!(list(&world, filter).await, [later], "inclusive");
    let filter = ListFilter { started_before: Some(world.now + SECOND), ..all() };
    assert_eq!(list(&world, filter).await, everything[1..], "exclusive");
    let filter = ListFilter {
        namespace: Some("default".into()),
        states: vec![State::Failed],
        workflow: Some("order".into()),
        error_type: Some("payment.card_declined".into()),
        started_after: Some(world.now),
        ..all()
    };
    assert_eq!(list(&world, filter).await, [declined]);
}

pub async fn list_matches_prefixes_literally(world: World) {
    let node = world.node().await;
    let mut ids = Vec::new();
    for key in ["a%b", "axb", "a_b", "a\\b", "A%b"] {
        let error_type = Some(format!("{key}.c"));
        let index = IndexRow { key: Some(key.into()), error_type, ..world.index() };
        ids.push(world.begun(node, index).await);
    }
    for (prefix, expected) in [("a%", ids[0]), ("a_", ids[2]), ("a\\", ids[3]), ("A", ids[4])] {
        let filter = ListFilter { key_prefix: Some(prefix.into()), ..ListFilter::default() };
        assert_eq!(list(&world, filter).await, [expected], "{prefix}");
    }
    for (error_type, expected) in [("a%b", ids[0]), ("a_b", ids[2]), ("a\\b", ids[3])] {
        let error_type = Some(error_type.to_owned());
        let filter = ListFilter { error_type: error_type.clone(), ..ListFilter::default() };
        assert_eq!(list(&world, filter).await, [expected], "{error_type:?}");
    }
}

pub async fn executions_are_listed_in_pages_newest_id_first(world: World) {
    let node = world.node().await;
    // Written in an order that is not the order of their ids.
    let mut ids: Vec<_> = (0..23).map(|i| execution_id(world.now, (i * 7) % 23)).collect();
    world.won(node, ids.iter().map(|id| world.start(*id))).await;
    ids.sort();
    ids.reverse();
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = world.store.list(&ListFilter::default(), before, 5).await.expect("lists");
        seen.extend(page.iter().map(|listed| listed.execution));
        before = page.last().map(|listed| listed.execution);
        if page.len() < 5 {
            break;
        }
    }
    assert_eq!(seen, ids);
}
