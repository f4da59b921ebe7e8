//! What a node reads of executions that it knows.

use std::time::Duration;

use recoup_core::command::Command;
use recoup_core::id::ExecutionId;
use recoup_core::payload::Payload;
use recoup_engine::node::io::{Input, WorkerKey};

use crate::fixture::definition::{order_of, retried};
use crate::fixture::world::{World, stream};

/// Two nodes, and an execution with many steps that the first node owns and has a worker for.
fn two_nodes() -> (World, WorkerKey) {
    let steps = (0..150).map(|n| retried(&format!("s{n}"), Duration::from_secs(1)));
    let mut world = World::with_order(2, &order_of(steps.collect()));
    let worker = world.attach(0, stream("default", "s", &[]));
    (world, worker)
}

/// Makes the second node keep an execution in memory, because a caller waits there for its end.
fn watch(world: &mut World, execution: ExecutionId) {
    let until = world.now() + Duration::from_secs(3600);
    world.put(1, Input::Await { execution, until, reply: 1_000 });
}

/// Completes this many steps, with one transition each.
fn complete(world: &mut World, worker: WorkerKey, steps: usize) {
    for _ in 0..steps {
        let task = world.handed(0, worker).pop().expect("a step is under way");
        world.put(0, Input::Credit { worker, tasks: 1 });
        let (execution, output) = (task.execution, Payload::json("1"));
        let command = Command::CompleteTask { task, output, worker: String::new() };
        let done = world.ask(0, |reply| Input::Submit { execution, command, request: None, reply });
        done.expect("at once").expect("it is open");
    }
}

#[test]
fn node_that_knows_an_execution_reads_only_later_transitions() {
    let (mut world, worker) = two_nodes();
    let id = world.start(0, "default");
    complete(&mut world, worker, 20);
    watch(&mut world, id);
    assert_eq!(world.machines[1].rows_read, [21], "the whole history");
    complete(&mut world, worker, 5);
    let read = world.snapshot(1, id).state;
    assert_eq!(world.machines[1].rows_read, [21, 5]);
    assert_eq!(read, world.snapshot(0, id).state, "the state that its owner has");
    let again = world.snapshot(1, id).state;
    assert_eq!(world.machines[1].rows_read, [21, 5, 0], "no transition has been added since");
    assert_eq!(again, read);
    assert_eq!(world.machines[0].rows_read, [0; 0], "its owner reads nothing");
}

#[test]
fn node_that_missed_many_transitions_reads_the_same_state_as_the_owner() {
    let (mut world, worker) = two_nodes();
    let id = world.start(0, "default");
    watch(&mut world, id);
    complete(&mut world, worker, 120);
    assert_eq!(world.snapshot(1, id).state, world.snapshot(0, id).state);
}

/// To find out what is wrong with a history, the node reads all of it.
#[test]
fn gap_after_the_known_state_is_reported_with_the_missing_transition() {
    let (mut world, worker) = two_nodes();
    let id = world.start(0, "default");
    complete(&mut world, worker, 3);
    watch(&mut world, id);
    complete(&mut world, worker, 3);
    let lost = world.store.take_transition(id, 6).expect("it was committed");
    let refused = world.ask(1, |reply| Input::Get { execution: id, reply });
    let refused = refused.expect("at once").expect_err("there is a gap");
    assert!(refused.to_string().contains("transition 6 is missing, 7 follows"), "{refused}");
    world.store.put_transition(id, lost);
}
