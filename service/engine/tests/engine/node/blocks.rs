//! What workers are told about steps that are stopped while the run goes on, and about steps that go on while
//! the run has stopped.

use recoup_core::command::{Command, RequestId, TaskId};
use recoup_core::definition::{Branch, Parallel, Step, StepKind, Workflow};
use recoup_core::error::TaskError;
use recoup_engine::node::io::{Answer, Input, Offer, WorkerMessage};
use recoup_engine::options::Options;

use crate::fixture::definition::{order_of, step};
use crate::fixture::world::{World, stream};

/// A workflow with branches `a`, `b` and `c`, each of one task of the same name.
fn three_branches() -> Workflow {
    let branch = |id: &str| {
        let branch = Branch { block: vec![step(id)].into(), after: Vec::new() };
        (id.into(), branch)
    };
    let branches = ["a", "b", "c"].map(branch).into_iter().collect();
    let parallel = Parallel { branches, ..Parallel::default() };
    order_of(vec![Step { kind: StepKind::Parallel(parallel), ..step("fan") }])
}

fn submit(world: &mut World, machine: usize, task: &TaskId, command: Command) {
    let (execution, request) = (task.execution, None::<RequestId>);
    let answer = world.ask(machine, |reply| Input::Submit { execution, command, request, reply });
    answer.expect("at once").expect("it is accepted");
}

fn fail(world: &mut World, machine: usize, task: &TaskId) {
    let error = TaskError { non_retryable: Some(true), ..TaskError::new("stock.out", "no") };
    let (worker, task_of) = (String::new(), task.clone());
    submit(world, machine, task, Command::FailTask { task: task_of, error, worker });
}

fn is_told_to_stop(world: &mut World, machine: usize, worker: u64) -> Vec<String> {
    let told = world.messages_to(machine, worker).into_iter();
    let told = told.filter_map(|message| match message {
        WorkerMessage::CancelRequested(task) => Some(task.path.to_string()),
        _ => None,
    });
    told.collect()
}

/// Whether the worker should stop, according to the answer to a heartbeat.
fn beat(world: &mut World, machine: usize, task: &TaskId) -> bool {
    let task = task.clone();
    let answer = world.ask(machine, |reply| Input::Heartbeat { task, details: None, reply });
    match answer.expect("at once").expect("it is open") {
        Answer::Beat { cancel_requested } | Answer::Recorded { cancel_requested, .. } => {
            cancel_requested
        }
        other => panic!("{other:?}"),
    }
}

fn of<'t>(tasks: &'t [TaskId], path: &str) -> &'t TaskId {
    tasks.iter().find(|task| task.path.as_str() == path).expect("it was handed over")
}

#[test]
fn failed_branch_stops_the_workers_of_the_other_branches_and_takes_back_what_nobody_has() {
    let mut world = World::with_order(1, &three_branches());
    let worker = world.attach(0, Offer { credit: 2, ..stream("default", "s", &[]) });
    let execution = world.start(0, "default");
    let tasks = world.handed(0, worker);
    assert_eq!(tasks.len(), 2);
    let (failing, other) = (of(&tasks, "fan[a].a").clone(), of(&tasks, "fan[b].b").clone());
    assert!(!beat(&mut world, 0, &other));
    fail(&mut world, 0, &failing);
    assert_eq!(is_told_to_stop(&mut world, 0, worker), ["fan[b].b"]);
    assert!(beat(&mut world, 0, &other));
    let state = world.snapshot(0, execution).state;
    let open: Vec<_> = state.open_attempts().map(|open| open.path.to_string()).collect();
    assert_eq!(open, ["fan[b].b"], "the task that no worker had is withdrawn");
    world.pass(Options::default().reconnect_grace * 4);
    let state = world.snapshot(0, execution).state;
    assert!(state.state.is_ended(), "the node keeps the grace period: {:?}", state.state);
}

#[test]
fn another_node_tells_the_worker_that_reports_to_it_to_stop() {
    let mut world = World::with_order(2, &three_branches());
    let worker = world.attach(0, Offer { credit: 3, ..stream("default", "s", &[]) });
    world.start(0, "default");
    let tasks = world.handed(0, worker);
    let (failing, other) = (of(&tasks, "fan[a].a").clone(), of(&tasks, "fan[b].b").clone());
    // Both report to the other node, by unary calls.
    assert!(!beat(&mut world, 1, &other));
    fail(&mut world, 1, &failing);
    assert!(beat(&mut world, 1, &other));
}

#[test]
fn steps_of_finally_and_on_failure_are_not_told_to_stop_when_the_run_has_failed() {
    let order = Workflow {
        on_failure: vec![step("tell")],
        finally: vec![step("tidy")],
        ..order_of(vec![step("charge")])
    };
    let mut world = World::with_order(1, &order);
    let worker = world.attach(0, Offer { credit: 9, ..stream("default", "s", &[]) });
    world.start(0, "default");
    let charge = world.handed(0, worker).remove(0);
    fail(&mut world, 0, &charge);
    for path in ["tell", "tidy"] {
        let task = world.handed(0, worker).remove(0);
        assert_eq!(task.path.as_str(), path);
        assert!(!beat(&mut world, 0, &task), "{path}");
        assert_eq!(is_told_to_stop(&mut world, 0, worker), Vec::<String>::new());
        fail(&mut world, 0, &task);
    }
}
