//! The driven engine on the model store: executions from their start to their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use recoup_core::command::{Command, RequestId};
use recoup_core::definition::{Block, Catch, OnError, Step, Workflow};
use recoup_core::error::TaskError;
use recoup_core::event::Event;
use recoup_core::execution::{CompensationOutcome, CompensationState, State};
use recoup_core::failure_event::FailureKind;
use recoup_core::id::ExecutionId;
use recoup_core::key::OnRunning;
use recoup_core::payload::Payload;
use recoup_core::plan::Plan;
use recoup_core::retry::{Limits, RetryPolicy};
use recoup_core::time::Timestamp;
use recoup_engine::{Engine, Options, Refusal, StartSpec};
use recoup_store::memory::MemoryStore;
use recoup_store::{NodeId, PageLimit, Store};

use crate::fixture::definition::{order_of, retried, undone};
use crate::fixture::driven::{
    TestWorker, complete, engine, next_task, plan, spec, store_with, worker,
};

fn step(id: &str) -> Step {
    undone(retried(id, Duration::from_millis(1)))
}

fn order() -> Workflow {
    order_of(vec![step("reserve"), step("charge")])
}

/// One engine, and the starts of a test.
struct Rig {
    engine: Engine,
    plan: Arc<Plan>,
    next_id: u8,
}

impl Rig {
    async fn new() -> Self {
        let options = Options { overflow_after: Duration::from_millis(20), ..Options::default() };
        let engine = engine(&store_with(&order()).await, options).await;
        Self { plan: plan(&engine).await, engine, next_id: 0 }
    }

    fn spec(&mut self, key: Option<&str>, request: Option<(&str, u64)>) -> StartSpec {
        self.next_id += 1;
        let mut spec = spec(&self.engine, self.next_id, self.plan.clone());
        spec.start.key = key.map(str::to_owned);
        let request = request.map(|(id, digest)| RequestId { id: id.to_owned(), digest });
        StartSpec { request, ..spec }
    }

    async fn worker(&self) -> TestWorker {
        worker(&self.engine).await
    }
}

#[tokio::test]
async fn an_execution_of_two_steps_succeeds_with_the_output_of_the_last() {
    let mut rig = Rig::new().await;
    let mut worker = rig.worker().await;
    let spec = rig.spec(None, None);
    let id = spec.start.id;
    let started = rig.engine.start(spec).await.expect("it starts");
    assert!(started.is_own);
    for (path, output) in [("reserve", "1"), ("charge", "2")] {
        let task = next_task(&mut worker).await;
        assert_eq!(task.id.path.as_str(), path);
        let complete = complete(&task, Payload::json(output));
        rig.engine.report(id, complete).await.expect("the result is taken");
    }
    let history = rig.engine.store().load(NodeId(0), &[id]).await.expect("it is read");
    for row in &history[0].transitions[1..] {
        let data = row.decode(id).expect("it is readable");
        let workers = data.events.iter().filter_map(|event| match event {
            Event::StepCompleted { worker, .. } => Some(worker.as_str()),
            _ => None,
        });
        assert_eq!(
            workers.collect::<Vec<_>>(),
            ["w"],
            "a report without a worker's name counts for the holder"
        );
    }
    let ended = rig.engine.await_end(id, Duration::from_secs(10)).await.expect("it is known");
    assert_eq!(ended.state, State::Succeeded);
    assert_eq!(ended.output, Some(Payload::json("2")));
}

#[tokio::test]
async fn output_of_a_handler_is_not_the_output_of_the_step_that_a_compensation_undoes() {
    let mut rig = Rig::new().await;
    let once = |id| Step {
        retry: Some(RetryPolicy {
            limits: Limits { max_attempts: Some(1), max_duration: None },
            ..RetryPolicy::default()
        }),
        ..step(id)
    };
    let block = Block { output: Some("9".into()), ..Block::default() };
    let caught = Step { catch: vec![Catch { block, ..Catch::default() }], ..once("reserve") };
    let workflow = order_of(vec![caught, once("charge")]);
    rig.plan = Arc::new(Plan::compile(&workflow, 1).expect("it compiles"));
    let mut worker = rig.worker().await;
    let spec = rig.spec(None, None);
    let id = spec.start.id;
    rig.engine.start(spec).await.expect("it starts");
    let reserve = next_task(&mut worker).await.id;
    let lost = Command::LoseWorker { task: reserve, worker: "w".into() };
    rig.engine.command(id, lost, None).await.expect("the attempt is open");
    let charge = next_task(&mut worker).await.id;
    let error = TaskError::new("card.declined", "no");
    let failed = Command::FailTask { task: charge, error, worker: "w".into() };
    rig.engine.report(id, failed).await.expect("the report is taken");
    let undo = next_task(&mut worker).await;
    assert_eq!(undo.id.path.as_str(), "reserve/compensate");
    let undone = undo.content.undone.as_ref().expect("it undoes a step");
    assert_eq!((undone.outcome, &undone.output), (CompensationOutcome::Unknown, &None));
}

#[tokio::test]
async fn decision_that_exceeds_a_transition_continues_in_the_next() {
    let mut rig = Rig::new().await;
    let ignored = |n| Step {
        when: Some("input.missing == 1".into()),
        on_error: OnError::Ignore,
        ..step(&format!("s{n}"))
    };
    let workflow =
        Workflow { steps: (0..1_000).map(ignored).collect::<Vec<_>>().into(), ..order() };
    rig.plan = Arc::new(Plan::compile(&workflow, 1).expect("it compiles"));
    let spec = rig.spec(None, None);
    let id = spec.start.id;
    rig.engine.start(spec).await.expect("it starts");
    let ended = rig.engine.await_end(id, Duration::from_secs(60)).await.expect("it is known");
    assert_eq!(ended.state, State::Warning);
    let history = rig.engine.store().load(NodeId(0), &[id]).await.expect("it is read");
    let rows = history[0].transitions.iter().map(|row| row.decode(id).expect("it is readable"));
    let events: Vec<_> = rows.map(|data| data.events.len()).collect();
    assert!(events.len() > 1 && events.iter().all(|count| *count < 1_010), "{events:?}");
}

/// Records the names of the spans that begin.
struct SpanNames(std::sync::Mutex<std::collections::BTreeSet<&'static str>>);

impl tracing::Subscriber for SpanNames {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        self.0.lock().expect("no test panics with it").insert(span.metadata().name());
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn store_calls_have_spans_of_their_names() {
    let names = Arc::new(SpanNames(Default::default()));
    // The runtime of the test has one thread, so the engine's tasks run on it.
    let _guard = tracing::subscriber::set_default(names.clone());
    let mut rig = Rig::new().await;
    let spec = rig.spec(None, None);
    let (id, keyed) = (spec.start.id, rig.spec(Some("k"), None));
    rig.engine.start(spec).await.expect("it starts");
    rig.engine.start(keyed).await.expect("it starts");
    let unknown = ExecutionId::new(rig.engine.now(), [9; 10]);
    assert!(rig.engine.snapshot(unknown).await.is_err());
    assert!(rig.engine.snapshot(id).await.is_ok());
    let seen = names.0.lock().expect("no test panics with it").clone();
    for name in ["join", "commit", "start_keyed", "load"] {
        assert!(seen.contains(name), "{name} in {seen:?}");
    }
}

#[tokio::test]
async fn failed_step_is_retried_then_completed_steps_are_compensated() {
    let mut rig = Rig::new().await;
    let mut worker = rig.worker().await;
    let spec = rig.spec(None, None);
    let id = spec.start.id;
    let engine = rig.engine.clone();
    let run = tokio::spawn(async move { engine.run(spec, Duration::from_secs(20)).await });
    let mut seen = Vec::new();
    for _ in 0..5 {
        let task = next_task(&mut worker).await;
        seen.push(format!("{}#{}", task.id.path, task.id.attempt));
        let worker = "w".to_owned();
        let command = if task.id.path.as_str() == "charge" {
            Command::FailTask { task: task.id, error: TaskError::new("card", "declined"), worker }
        } else {
            Command::CompleteTask { task: task.id, output: Payload::null(), worker }
        };
        rig.engine.report(id, command).await.expect("the result is taken");
    }
    let ended = run.await.expect("no panic").expect("it ran").outcome;
    assert_eq!(seen, ["reserve#1", "charge#1", "charge#2", "charge#3", "reserve/compensate#1"]);
    assert_eq!((ended.state, ended.compensation), (State::Failed, CompensationState::Done));
    let feed = rig.engine.store().feed_start().await.expect("the feed is read");
    let page = rig
        .engine
        .store()
        .read_feed(&feed, PageLimit::events(100))
        .await
        .expect("the feed is read");
    let kinds: Vec<_> = page.events.iter().filter_map(|event| event.row.kind.known()).collect();
    assert_eq!(
        kinds,
        [
            FailureKind::AttemptFailed,
            FailureKind::AttemptFailed,
            FailureKind::StepFailed,
            FailureKind::CompensationStarted,
            FailureKind::CompensationDone,
            FailureKind::ExecutionFailed,
        ]
    );
}

#[tokio::test]
async fn repeated_result_is_accepted_and_a_different_one_is_rejected() {
    let mut rig = Rig::new().await;
    let mut worker = rig.worker().await;
    let spec = rig.spec(None, None);
    let id = spec.start.id;
    rig.engine.start(spec).await.expect("it starts");
    let task = next_task(&mut worker).await.id;
    let complete = |output: &'static str| Command::CompleteTask {
        task: task.clone(),
        output: Payload::json(output),
        worker: "w".into(),
    };
    rig.engine.report(id, complete("1")).await.expect("the first is taken");
    rig.engine.report(id, complete("1")).await.expect("the same again changes nothing");
    let other = rig.engine.report(id, complete("2")).await;
    assert!(matches!(other, Err(Refusal::Rejected(_))), "{other:?}");
}

#[tokio::test]
async fn request_ids_and_keys_identify_one_execution() {
    let mut rig = Rig::new().await;
    let (one, two, three) = (
        rig.spec(None, Some(("r", 1))),
        rig.spec(None, Some(("r", 1))),
        rig.spec(None, Some(("r", 2))),
    );
    let first = rig.engine.start(one).await.expect("it starts").outcome.execution;
    let again = rig.engine.start(two).await.expect("the same request");
    assert_eq!(
        (again.outcome.execution, again.is_own),
        (first, true),
        "the repeated request gets the first answer"
    );
    assert_eq!(rig.engine.start(three).await.err(), Some(Refusal::RequestIdReused));

    let (one, two) = (rig.spec(Some("k"), None), rig.spec(Some("k"), None));
    let holder = rig.engine.start(one).await.expect("the key is free").outcome.execution;
    let held = rig.engine.start(two).await.err();
    assert_eq!(held, Some(Refusal::KeyHeld { execution: holder, state: State::Running }));

    // A repeated call gets the same answer, whether it started the execution or was given the one that holds the key.
    for _ in 0..3 {
        let keyed = rig.spec(Some("l"), Some(("s", 1)));
        assert!(rig.engine.start(keyed).await.expect("the same request").is_own);
        let spec = rig.spec(Some("k"), Some(("t", 1)));
        let using = StartSpec { on_running: OnRunning::UseExisting, ..spec };
        let used = rig.engine.start(using).await.expect("the key's policy");
        assert_eq!((used.outcome.execution, used.is_own), (holder, false));
    }
}

/// Otherwise an operator would have to act for a step that no worker ever began.
#[tokio::test]
async fn termination_parks_compensations_only_of_steps_that_a_worker_received() {
    let mut rig = Rig::new().await;
    let terminate = || Command::TerminateExecution { reason: "x".into(), unstarted: Vec::new() };
    let spec = rig.spec(None, None);
    let never_handed_out = spec.start.id;
    rig.engine.start(spec).await.expect("it starts");
    let ended = rig.engine.command(never_handed_out, terminate(), None).await.expect("it runs");
    assert_eq!((ended.state, ended.compensation), (State::Terminated, CompensationState::None));

    let mut worker = rig.worker().await;
    let spec = rig.spec(None, None);
    let handed_out = spec.start.id;
    rig.engine.start(spec).await.expect("it starts");
    // A task that was taken back is not handed out, however early it is in the queue.
    assert_eq!(next_task(&mut worker).await.id.execution, handed_out);
    let ended = rig.engine.command(handed_out, terminate(), None).await.expect("it runs");
    assert_eq!((ended.state, ended.compensation), (State::Terminated, CompensationState::Parked));
}

#[tokio::test]
async fn task_without_a_local_worker_is_handed_out_by_a_node_that_has_one() {
    let mut rig = Rig::new().await;
    let store = rig.engine.store().clone();
    let other = recoup_engine::driver::start(store.clone(), Options::default());
    let other = other.await.expect("a second node");
    let mut worker = worker(&other).await;
    let spec = rig.spec(None, None);
    let id = spec.start.id;
    rig.engine.start(spec).await.expect("it starts");
    let task = next_task(&mut worker).await;
    assert_eq!((task.id.execution, task.id.attempt), (id, 1));
    let state = other.snapshot(id).await.expect("it is there").state;
    assert!(state.started(&task.id).is_some(), "the start is on record before the hand-over");
    assert!(store.overflow_depth().await.expect("it is read").is_empty());
}

/// The poll has ended, and the engine does not know yet. Nothing else would bring the task back before
/// its start-to-close timeout.
#[tokio::test]
async fn task_for_a_closed_link_goes_to_another_worker() {
    let mut rig = Rig::new().await;
    let mut gone = rig.worker().await;
    gone.link.messages.close();
    let spec = rig.spec(None, None);
    rig.engine.start(spec).await.expect("it starts");
    let mut worker = rig.worker().await;
    let task = next_task(&mut worker).await;
    assert_eq!(task.id.attempt, 1);
    drop(gone);
}

#[tokio::test]
async fn heartbeat_at_another_node_is_kept_there_with_its_details() {
    let mut rig = Rig::new().await;
    let mut worker = rig.worker().await;
    let spec = rig.spec(None, None);
    let id = spec.start.id;
    rig.engine.start(spec).await.expect("it starts");
    let task = next_task(&mut worker).await.id;
    let store = rig.engine.store().clone();
    let other = recoup_engine::driver::start(store, Options::default()).await.expect("a store");
    let details = Payload::json("7");
    let beat = other.heartbeat(task, Some(details.clone())).await;
    assert_eq!(beat, Ok(false));
    let live = other.snapshot(id).await.expect("it is there").live;
    assert_eq!(live[0].details, Some(details));
}

/// Retention pauses until an operator confirms the time, whichever way the clock was set.
#[tokio::test]
async fn a_step_of_the_databases_clock_pauses_retention() {
    const DAY_US: i64 = 24 * 3600 * 1_000_000;
    for step in [-DAY_US, DAY_US] {
        let clock = Arc::new(AtomicI64::new(1_700_000_000_000_000));
        let reads = clock.clone();
        let now = move || Timestamp::from_micros(reads.load(Ordering::Relaxed));
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::new(now)));
        let options = Options { lease_ttl: Duration::from_millis(30), ..Options::default() };
        let engine = recoup_engine::driver::start(store.clone(), options).await;
        let engine = engine.expect("the engine starts");
        let before = engine.retention_time().expect("nothing has happened");
        assert!(!store.expire(before, 1).await.expect("asks").paused);
        clock.fetch_add(step, Ordering::Relaxed);
        let paused = async {
            while !store.expire(before, 1).await.expect("asks").paused {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), paused).await.expect("a renewal shows it");
        assert!(store.resume_retention().await.expect("resumes").is_some());
        engine.stop().await;
    }
}
