//! Executions in quarantine: how they get there, and how they are released.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use recoup_core::command::Command;
use recoup_core::definition::Workflow;
use recoup_core::error::builtin;
use recoup_core::execution::State;
use recoup_core::failure_event::{FailureEvent, FailureKind};
use recoup_core::id::{ExecutionId, Namespace, TransitionId};
use recoup_core::payload::Payload;
use recoup_core::plan::Plan;
use recoup_core::quarantine::QuarantineReason;
use recoup_engine::{Engine, HandedTask, Options, Refusal};
use recoup_store::format::{FIRST, Row};
use recoup_store::memory::MemoryStore;
use recoup_store::{
    Batch, Executions, Feed, IndexRow, NewVersion, NodeId, Nodes, PageLimit, Release, Settled,
    StoredTransition, Transition, Transitions, Workflows, format,
};

use crate::fixture::definition::{order_of, step};
use crate::fixture::driven::{
    self, TestWorker, engine, next_task, plan, short_intervals, spec, start, worker,
};

fn order() -> Workflow {
    order_of(vec![step("reserve"), step("charge")])
}

async fn store() -> MemoryStore {
    driven::store_with(&order()).await
}

fn complete(task: &HandedTask) -> Command {
    driven::complete(task, Payload::null())
}

/// Completes every task until the execution has ended.
async fn run_to_the_end(engine: &Engine, worker: &mut TestWorker, id: ExecutionId) -> State {
    loop {
        let task = next_task(worker).await;
        let reported = engine.report(task.id.execution, complete(&task)).await;
        reported.expect("the result is taken");
        let outcome = engine.await_end(id, Duration::ZERO).await.expect("it is known");
        if outcome.state.is_ended() {
            return outcome.state;
        }
    }
}

fn reason(refused: &Refusal) -> QuarantineReason {
    match refused {
        Refusal::Quarantined(quarantine) => quarantine.reason,
        other => panic!("refused otherwise: {other:?}"),
    }
}

async fn refused(engine: &Engine, id: ExecutionId) -> QuarantineReason {
    let cancel = Command::CancelExecution { reason: "enough".into() };
    reason(&engine.command(id, cancel, None).await.expect_err("nothing is decided"))
}

/// The events about an execution, in order.
async fn events(store: &MemoryStore, id: ExecutionId) -> Vec<FailureEvent> {
    let start = store.feed_start().await.expect("the feed has a start");
    let page = store.read_feed(&start, PageLimit::events(1000)).await.expect("the feed is read");
    let rows = page.events.into_iter().map(|event| event.row);
    let of_it = rows.filter(|row| row.execution == Some(id));
    of_it
        .map(|row| format::decode_failure_event(row.format, &row.data).expect("readable"))
        .collect()
}

async fn sequence(store: &MemoryStore, id: ExecutionId) -> u64 {
    store.heads(&[id]).await.expect("heads")[0].sequence
}

fn release() -> Release {
    Release { reason: "fixed".into(), request: None }
}

/// An execution whose second transition was lost while no node had it in memory, and that transition.
async fn damaged(store: &MemoryStore, number: u8) -> (ExecutionId, StoredTransition) {
    let engine = engine(store, short_intervals()).await;
    let mut worker = worker(&engine).await;
    let id = start(&engine, number).await;
    let task = next_task(&mut worker).await;
    engine.report(id, complete(&task)).await.expect("the first step is done");
    engine.stop().await;
    assert!(sequence(store, id).await >= 2);
    // A further transition follows, so that the gap shows.
    let last = store.take_transition(id, 2).expect("it was there");
    store.put_transition(id, StoredTransition { sequence: 3, ..last.clone() });
    (id, last)
}

#[tokio::test]
async fn history_with_a_gap_quarantines_only_its_execution() {
    let store = store().await;
    let (id, lost) = damaged(&store, 1).await;

    // The next node adopts it and finds the gap on its own.
    let engine = engine(&store, short_intervals()).await;
    let mut worker = worker(&engine).await;
    let mut written = engine.feed_written();
    let sound = start(&engine, 2).await;
    while events(&store, id).await.is_empty() {
        written.changed().await.expect("the engine runs");
    }
    assert_eq!(refused(&engine, id).await, QuarantineReason::HistoryGap);
    let got = engine.snapshot(id).await.expect_err("it does not fold");
    assert_eq!(reason(&got), QuarantineReason::HistoryGap);
    let partial = engine.read_partial(id).await.expect("asks").expect("it is there");
    assert_eq!(partial.state.expect("one transition folds").sequence, 1);
    let quarantine = partial.listed.quarantine.expect("it is in quarantine");
    assert_eq!(quarantine.detail, "transition 2 is missing, 3 follows");
    assert_eq!(run_to_the_end(&engine, &mut worker, sound).await, State::Succeeded);

    let told = events(&store, id).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].kind, FailureKind::ExecutionQuarantined);
    let error = told[0].error.as_ref().expect("an event has its error");
    assert_eq!(error.error_type, builtin::QUARANTINED);
    assert!(error.message.contains("transition 2 is missing"), "{}", error.message);
    let subject = told[0].subject.as_ref().expect("an event of an execution");
    assert_eq!((subject.workflow.as_str(), subject.sequence), ("order", 1));
    engine.stop().await;

    // A later node finds the quarantine, not the gap.
    let engine = driven::engine(&store, short_intervals()).await;
    assert_eq!(refused(&engine, id).await, QuarantineReason::HistoryGap);
    assert_eq!(sequence(&store, id).await, 3);
    assert_eq!(events(&store, id).await.len(), 1);

    // The cause has not been fixed, so it is quarantined again and a new event is written.
    let released = engine.release_quarantine(id, release()).await.expect_err("the gap is there");
    assert_eq!(reason(&released), QuarantineReason::HistoryGap);
    assert_eq!(events(&store, id).await.len(), 2);

    store.take_transition(id, 3).expect("it was put there");
    store.put_transition(id, lost);
    let state = engine.release_quarantine(id, release()).await.expect("it is whole");
    assert_eq!((state.state, state.sequence), (State::Running, 2));
    let snapshot = engine.snapshot(id).await.expect("it is out of quarantine");
    let quarantine = snapshot.quarantine.expect("it is remembered");
    assert_eq!(quarantine.released.expect("it was released").reason, "fixed");
    let mut worker = driven::worker(&engine).await;
    assert_eq!(run_to_the_end(&engine, &mut worker, id).await, State::Succeeded);
    let again = engine.release_quarantine(id, release()).await.expect_err("nothing is in force");
    assert_eq!(again, Refusal::NotQuarantined);
}

#[tokio::test]
async fn unreadable_workflow_does_not_block_other_executions() {
    let store = store().await;
    let engine = engine(&store, short_intervals()).await;
    let sound = start(&engine, 1).await;
    let mut started = Vec::new();
    for (version, format) in [(2, FIRST), (3, Row::Definition.newest() + 1)] {
        let new = NewVersion {
            namespace: Namespace::from("default"),
            name: "order".into(),
            digest: [u8::try_from(version).expect("small"); 32],
            format,
            definition: Bytes::from_static(b"\xff\xff\xff"),
        };
        store.register(&new, None).await.expect("the model registers");
        // As if it had been readable when the execution was started.
        let plan = Plan::compile(&order(), version).expect("it compiles");
        let spec = spec(&engine, u8::try_from(version).expect("small"), Arc::new(plan));
        started.push(engine.start(spec).await.expect("it starts").outcome.execution);
    }
    engine.stop().await;

    // All three are adopted, and read in one call.
    let engine = driven::engine(&store, short_intervals()).await;
    let mut worker = worker(&engine).await;
    assert_eq!(run_to_the_end(&engine, &mut worker, sound).await, State::Succeeded);
    assert_eq!(refused(&engine, started[0]).await, QuarantineReason::WorkflowUnreadable);
    assert_eq!(events(&store, started[0]).await.len(), 1);
    assert!(matches!(engine.snapshot(started[1]).await, Err(Refusal::TooNew(_))));
    assert_eq!(events(&store, started[1]).await, []);
}

#[tokio::test]
async fn unreadable_history_is_quarantined_unless_a_newer_binary_wrote_it() {
    let store = store().await;
    let engine = engine(&store, short_intervals()).await;
    let (garbled, newer) = (start(&engine, 1).await, start(&engine, 2).await);
    engine.stop().await;
    let spoil = |id, format, data: &'static [u8]| {
        let whole = store.take_transition(id, 1).expect("it was started");
        let data = Bytes::from_static(data);
        let spoilt = StoredTransition { format, data, ..whole };
        store.put_transition(id, spoilt.sealed(id));
    };
    spoil(garbled, FIRST, b"\xff\xff\xff");
    spoil(newer, Row::History.newest() + 1, b"");

    let engine = driven::engine(&store, short_intervals()).await;
    assert_eq!(refused(&engine, garbled).await, QuarantineReason::HistoryUnreadable);
    let told = events(&store, garbled).await;
    let subject = told[0].subject.as_ref().expect("an event of an execution");
    assert_eq!(
        subject.workflow.as_str(),
        "order",
        "from the index, because no transition can be decoded"
    );

    // A newer binary wrote it. It is not damaged, and it is left to nodes that can read it.
    let cancel = Command::CancelExecution { reason: "enough".into() };
    let refused = engine.command(newer, cancel, None).await.expect_err("it can not be read");
    assert!(matches!(refused, Refusal::TooNew(_)), "{refused:?}");
    assert!(matches!(engine.snapshot(newer).await, Err(Refusal::TooNew(_))));
    assert_eq!(events(&store, newer).await, []);
    assert_eq!(store.indexed(newer).await.expect("asks").expect("there").quarantine, None);
    let head = store.heads(&[newer]).await.expect("heads").remove(0);
    assert_eq!(head.owner, None, "no node has adopted it");
}

#[tokio::test]
async fn row_that_decodes_with_a_wrong_checksum_quarantines_its_execution() {
    let store = store().await;
    let engine = engine(&store, short_intervals()).await;
    let (id, sound) = (start(&engine, 1).await, start(&engine, 2).await);
    engine.stop().await;
    let whole = store.take_transition(id, 1).expect("it was started");
    let mut data = whole.data.to_vec();
    let input = data.windows(9).position(|bytes| bytes == b"\"order\":1").expect("its input");
    data[input + 8] = b'2';
    let changed = StoredTransition { data: data.into(), ..whole.clone() };
    let folds = format::decode_transition(changed.format, &changed.data);
    folds.expect("only the checksum shows the damage");
    store.put_transition(id, changed);

    let engine = driven::engine(&store, short_intervals()).await;
    assert_eq!(refused(&engine, id).await, QuarantineReason::HistoryUnreadable);
    let told = events(&store, id).await;
    let error = told[0].error.as_ref().expect("it says why");
    assert!(error.message.contains("the checksum does not match"), "{error:?}");

    // With its own bytes back, it is released and runs to its end; so does the other execution.
    store.take_transition(id, 1).expect("it was put there");
    store.put_transition(id, whole);
    engine.release_quarantine(id, release()).await.expect("it is sound");
    let mut worker = worker(&engine).await;
    assert_eq!(run_to_the_end(&engine, &mut worker, id).await, State::Succeeded);
    assert!(engine.snapshot(sound).await.is_ok());
}

/// As if a binary with different rules had accepted it.
#[tokio::test]
async fn execution_completes_on_a_version_that_would_be_rejected_today() {
    let store = store().await;
    let mut workflow = order();
    workflow.steps.steps[0].allow_warning = true;
    Plan::compile(&workflow, 2).expect_err("it may not warn without being ignored");
    let version = NewVersion::new(Namespace::from("default"), [2; 32], &workflow);
    let (version, _) = store.register(&version, None).await.expect("the model registers");
    let engine = engine(&store, short_intervals()).await;
    let id = start(&engine, 1).await;
    let followed = engine.snapshot(id).await.expect("it is sound");
    assert_eq!(followed.plan.version, version.version);
    engine.stop().await;

    let engine = driven::engine(&store, short_intervals()).await;
    let mut worker = worker(&engine).await;
    assert_eq!(run_to_the_end(&engine, &mut worker, id).await, State::Succeeded);
}

/// A defect that is there until it is fixed.
static DEFECT: AtomicBool = AtomicBool::new(true);

#[tokio::test]
async fn panicking_decision_quarantines_its_execution_and_no_node_dies() {
    let store = store().await;
    let defective = || Options {
        panics: Some(|command| {
            let mine = matches!(command, Command::CompleteTask { task, .. }
                if task.path.as_str() == "charge" && task.execution.0.as_bytes()[15] == 7);
            mine && DEFECT.load(Ordering::SeqCst)
        }),
        ..short_intervals()
    };
    let engine = engine(&store, defective()).await;
    let mut worker = worker(&engine).await;
    let id = start(&engine, 7).await;
    let task = next_task(&mut worker).await;
    engine.report(id, complete(&task)).await.expect("the first step is done");
    let charge = next_task(&mut worker).await;
    let panicked = engine.report(id, complete(&charge)).await.expect_err("it panics");
    let Refusal::Quarantined(quarantine) = &panicked else {
        panic!("refused otherwise: {panicked:?}");
    };
    assert_eq!(quarantine.reason, QuarantineReason::DecisionPanicked);
    assert_eq!(quarantine.detail, "a defect of a test");
    // The node survives, and its other executions proceed.
    let sound = start(&engine, 8).await;
    assert_eq!(run_to_the_end(&engine, &mut worker, sound).await, State::Succeeded);
    assert_eq!(events(&store, id).await.len(), 1);
    let before = sequence(&store, id).await;
    engine.stop().await;

    // Another node does not try it.
    let engine = driven::engine(&store, defective()).await;
    let mut worker = driven::worker(&engine).await;
    let again = engine.report(id, complete(&charge)).await.expect_err("nothing is decided");
    assert_eq!(reason(&again), QuarantineReason::DecisionPanicked);
    assert_eq!((sequence(&store, id).await, events(&store, id).await.len()), (before, 1));

    // Released while the defect is still there, it is handed out again and panics again.
    engine.release_quarantine(id, release()).await.expect("its history is sound");
    let charge = next_task(&mut worker).await;
    assert_eq!((charge.id.execution, charge.id.attempt), (id, 1), "the same attempt");
    engine.report(id, complete(&charge)).await.expect_err("it panics again");
    assert_eq!(events(&store, id).await.len(), 2);

    // A worker without a session has it until its timeouts expire, so its report counts now.
    DEFECT.store(false, Ordering::SeqCst);
    engine.release_quarantine(id, release()).await.expect("its history is sound");
    engine.report(id, complete(&charge)).await.expect("it is decided now");
    let ended = engine.await_end(id, Duration::ZERO).await.expect("it is known");
    assert_eq!(ended.state, State::Succeeded);
}

#[tokio::test]
async fn panicking_start_is_refused_and_writes_nothing() {
    let store = store().await;
    let panics: Option<fn(&Command) -> bool> =
        Some(|command| matches!(command, Command::StartExecution(_)));
    let engine = engine(&store, Options { panics, ..short_intervals() }).await;
    let spec = spec(&engine, 1, plan(&engine).await);
    let id = spec.start.id;
    assert_eq!(engine.start(spec).await.err(), Some(Refusal::Failed));
    assert_eq!(store.load(NodeId(0), &[id]).await.expect("loads"), []);
    assert_eq!(events(&store, id).await, []);
}

#[tokio::test]
async fn owner_gives_up_an_execution_that_another_node_has_quarantined() {
    let store = store().await;
    let owner = engine(&store, short_intervals()).await;
    let mut holder = worker(&owner).await;
    let id = start(&owner, 1).await;
    let task = next_task(&mut holder).await;

    let panics: Option<fn(&Command) -> bool> =
        Some(|command| matches!(command, Command::CancelExecution { .. }));
    let other = engine(&store, Options { panics, ..short_intervals() }).await;
    assert_eq!(refused(&other, id).await, QuarantineReason::DecisionPanicked);

    // The old owner believes in a sound state, and still decides nothing.
    let late = owner.report(id, complete(&task)).await.expect_err("nothing is committed");
    assert_eq!(reason(&late), QuarantineReason::DecisionPanicked);
    assert_eq!(sequence(&store, id).await, 1);
    assert_eq!(events(&store, id).await.len(), 1);

    // The other node has released it and owns it now. A result that the worker reports to the old owner still counts.
    other.release_quarantine(id, release()).await.expect("its history is sound");
    owner.report(id, complete(&task)).await.expect("the result is taken");
    let charge = next_task(&mut holder).await;
    assert_eq!(charge.id.path.as_str(), "charge");
    owner.report(id, complete(&charge)).await.expect("the result is taken");
    let ended = owner.await_end(id, Duration::ZERO).await.expect("it is known");
    assert_eq!(ended.state, State::Succeeded);
    let seen = other.await_end(id, Duration::from_secs(20)).await.expect("it is known");
    assert_eq!(seen.state, State::Succeeded);
}

/// The index row says that this binary cannot read the execution, so its history is not read.
#[tokio::test]
async fn execution_in_a_newer_format_is_refused_without_reading_its_history() {
    let store = store().await;
    let engine = engine(&store, short_intervals()).await;
    let newer = start(&engine, 1).await;
    engine.stop().await;
    // To this binary, the history that the newer binary wrote would look damaged.
    let beyond = Row::History.newest() + 1;
    let index = store.indexed(newer).await.expect("asks").expect("it was started").index;
    let node = store.join("newer:1", Duration::from_secs(60)).await.expect("joins").node;
    let transition = Transition {
        execution: newer,
        sequence: 2,
        transition_id: TransitionId(uuid::Uuid::from_u128(2)),
        format: beyond,
        data: Bytes::from_static(b"\xff\xff\xff"),
        index: Some(IndexRow { format: beyond, ..index }),
        request: None,
        feed: Vec::new(),
        overflow_done: Vec::new(),
        may_be_gone: false,
    };
    let batch = Batch { transitions: vec![transition], ..Batch::default() };
    assert_eq!(store.commit(node, &batch).await.expect("commits"), [Settled::Won]);
    store.leave(node).await.expect("leaves");
    let first = store.take_transition(newer, 1).expect("it was started");
    let garbled = StoredTransition { data: Bytes::from_static(b"\xff"), ..first };
    store.put_transition(newer, garbled.sealed(newer));

    let engine = driven::engine(&store, short_intervals()).await;
    let cancel = Command::CancelExecution { reason: "enough".into() };
    let refused = engine.command(newer, cancel, None).await.expect_err("it can not be read");
    assert!(matches!(refused, Refusal::TooNew(_)), "{refused:?}");
    assert!(matches!(engine.snapshot(newer).await, Err(Refusal::TooNew(_))));
    let sound = start(&engine, 2).await;
    assert!(engine.snapshot(sound).await.is_ok(), "nothing else is affected");
    engine.stop().await;
    assert!(events(&store, newer).await.is_empty(), "it was not quarantined");
}
