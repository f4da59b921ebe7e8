//! Executions that wait longer than they are kept in memory.

use std::time::Duration;

use recoup_core::command::Command;
use recoup_engine::node::io::{Input, Offer};
use recoup_engine::options::Options;
use recoup_store::{Executions, Nodes};

use crate::fixture::world::{World, ready, stream};

const SECOND: Duration = Duration::from_secs(1);

/// The workflow of these tests waits for a second before an attempt is repeated.
fn sleeping_after(sleep_horizon: Duration) -> Options {
    let adopt_interval = Duration::from_millis(5);
    Options { sleep_horizon, adopt_interval, ..Options::default() }
}

/// Executions whose first attempt has failed, and that wait for the second.
fn fail_once(world: &mut World, machine: usize, count: usize) {
    let offer = Offer { credit: 10_000, ..stream("default", "s", &[]) };
    let worker = world.attach(machine, offer);
    for _ in 0..count {
        world.start(machine, "default");
    }
    let tasks = world.handed(machine, worker);
    assert_eq!(tasks.len(), count);
    for task in tasks {
        let execution = task.execution;
        let error = recoup_core::error::TaskError::new("declined", "");
        let command = Command::FailTask { task, error, worker: String::new() };
        let failed =
            world.ask(machine, |reply| Input::Submit { execution, command, request: None, reply });
        failed.expect("at once").expect("it fails");
    }
    world.put(machine, Input::Detach { worker });
}

/// The only node ends.
fn leave(world: &mut World) {
    let machine = world.machines.remove(0);
    let node = machine.node.node_id().expect("it lives");
    ready(world.store.leave(node)).expect("it leaves");
}

fn in_memory(world: &World, machine: usize) -> usize {
    world.machines[machine].node.cached().count()
}

/// Without a worker, an attempt that becomes due goes into a queue. Nothing is written then, so the reminder
/// of its execution would stay as it was.
#[test]
fn due_executions_all_wake_even_if_waking_writes_nothing() {
    let mut world = World::with(1, sleeping_after(SECOND / 2));
    fail_once(&mut world, 0, 2_100);
    assert_eq!(in_memory(&world, 0), 0, "all of them sleep");
    world.pass(10 * SECOND);
    assert_eq!(in_memory(&world, 0), 2_100, "all of them are awake");
    // They are in memory now. The store has been updated, and does not remind this node of them again.
    let node = world.machines[0].node.node_id().expect("it lives");
    let due = ready(world.store.due(node, world.now() + 60 * SECOND, None, 10));
    assert_eq!(due.expect("the model answers"), []);
}

#[test]
fn sleeping_executions_leave_memory_again_after_being_adopted_or_read() {
    let mut world = World::with(1, sleeping_after(SECOND / 50));
    fail_once(&mut world, 0, 50);
    leave(&mut world);
    let options = Options { executions_max: 20, ..sleeping_after(SECOND / 50) };
    let other = world.add(options);
    world.pass(SECOND / 10);
    assert_eq!(in_memory(&world, other), 0, "all of them sleep again");
    assert_eq!(world.machines[other].batches.len(), 0, "their reminders are unchanged");
    let node = world.machines[other].node.node_id().expect("it lives");
    let until = world.now() + 60 * SECOND;
    let due = ready(world.store.due(node, until, None, 100)).expect("the model answers");
    assert_eq!(due.len(), 50, "it owns them");

    world.snapshot(other, due[0].execution);
    assert_eq!(in_memory(&world, other), 0, "an execution that was read sleeps again");
    world.start(other, "default");

    let offer = Offer { credit: 100, ..stream("default", "s", &[]) };
    let worker = world.attach(other, offer);
    let mut attempts = 0;
    for _ in 0..400 {
        world.pass(SECOND / 100);
        for task in world.handed(other, worker) {
            attempts += usize::from(task.attempt == 2);
            let (execution, output) = (task.execution, recoup_core::payload::Payload::null());
            let command = Command::CompleteTask { task, output, worker: String::new() };
            world.ask(other, |reply| Input::Submit { execution, command, request: None, reply });
        }
    }
    assert_eq!(attempts, 50, "all of them woke, no more at a time than there is room for");
}

/// The last owner kept them in memory, so the store has no reminder for them.
#[test]
fn an_adopted_execution_without_a_reminder_gets_one() {
    let mut world = World::with(1, sleeping_after(60 * SECOND));
    fail_once(&mut world, 0, 5);
    assert_eq!(in_memory(&world, 0), 5);
    leave(&mut world);
    let other = world.add(sleeping_after(SECOND / 50));
    world.pass(SECOND / 10);
    assert_eq!(in_memory(&world, other), 0);
    let offer = Offer { credit: 100, ..stream("default", "s", &[]) };
    let worker = world.attach(other, offer);
    world.pass(2 * SECOND);
    let handed = world.handed(other, worker);
    assert!(handed.iter().all(|task| task.attempt == 2));
    assert_eq!(handed.len(), 5);
}
