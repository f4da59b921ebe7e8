//! The database's clock is set back or forward while executions run.

use std::time::Duration;

use recoup_core::command::Command;
use recoup_core::error::TaskError;
use recoup_engine::node::io::{Input, WorkerMessage};

use crate::fixture::world::{World, session, stream};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Lets time pass, with messages that keep a worker's session alive.
fn pass_alive(world: &mut World, machine: usize, seconds: u32) {
    for _ in 0..seconds {
        world.put(machine, Input::Touch { session: session("default", "s") });
        world.pass(SECOND);
    }
}

#[test]
fn tasks_are_handed_out_as_usual_after_the_clock_is_set_back() {
    for step in [60 * SECOND, HOUR] {
        let mut world = World::new(1);
        let mut offer = stream("default", "s", &[]);
        offer.credit = 10;
        let worker = world.attach(0, offer);
        world.start(0, "default");
        let first = world.handed(0, worker).remove(0);
        let before = world.at(0).time;
        world.set_clock(world.now() - step);
        // Long enough for a renewal to show what the database's clock says now.
        pass_alive(&mut world, 0, 5);
        assert!(world.at(0).time >= before + 4 * SECOND, "store time advances");
        world.start(0, "default");
        assert_eq!(world.handed(0, worker).len(), 1, "a start is handed out at once");
        // An attempt that is scheduled for later waits about as long as it would have without the step.
        let error = TaskError::new("payment.card_declined", "no");
        let command = Command::FailTask { task: first.clone(), error, worker: String::new() };
        let answer = world.ask(0, |reply| Input::Submit {
            execution: first.execution,
            command,
            request: None,
            reply,
        });
        answer.expect("at once").expect("it is open");
        pass_alive(&mut world, 0, 2);
        let again = world.handed(0, worker);
        assert_eq!(again.len(), 1);
        assert_eq!((again[0].execution, again[0].attempt), (first.execution, 2));
    }
}

#[test]
fn new_node_continues_store_time_after_the_clock_was_set_back() {
    let mut world = World::new(1);
    world.pass(10 * SECOND);
    world.start(0, "default");
    world.pass(3 * SECOND);
    let reached = world.at(0).time;
    world.machines[0].is_dead = true;
    world.set_clock(world.now() - HOUR);
    let next = world.boot();
    assert!(world.at(next).time + 3 * SECOND > reached, "the last renewal was less than 3 s ago");
    let mut offer = stream("default", "s", &[]);
    offer.credit = 10;
    let worker = world.attach(next, offer);
    // It takes the length of a lease to see that the other node is gone.
    pass_alive(&mut world, next, 15);
    let handed = world.handed(next, worker);
    assert_eq!(handed.len(), 1, "the task of the dead node");
    world.start(next, "default");
    assert_eq!(world.handed(next, worker).len(), 1, "the new task");
}

#[test]
fn setting_the_clock_forward_ends_no_attempt_session_or_lease() {
    let mut world = World::new(2);
    let worker = world.attach(0, stream("default", "s", &[]));
    let execution = world.start(0, "default");
    assert_eq!(world.handed(0, worker).len(), 1);
    let lives = [0, 1].map(|machine| world.machines[machine].node.node_id());
    pass_alive(&mut world, 0, 2);
    // Longer than any attempt may take.
    world.set_clock(world.now() + 24 * HOUR);
    pass_alive(&mut world, 0, 20);
    assert!(world.at(0).time >= world.now(), "store time has caught up");
    assert_eq!([0, 1].map(|machine| world.machines[machine].node.node_id()), lives);
    assert_eq!(world.snapshot(0, execution).live.len(), 1, "it is still with its worker");
    let told = world.messages_to(0, worker);
    let is_over = |message: &WorkerMessage| {
        matches!(message, WorkerMessage::Detached | WorkerMessage::Closed(_))
    };
    assert!(!told.iter().any(is_over), "{told:?}");
}

#[test]
fn lease_is_closed_only_if_it_is_not_renewed() {
    let mut world = World::new(2);
    let execution = world.start(0, "default");
    world.pass(60 * SECOND);
    let owner = |world: &World| {
        let node = &world.machines[1].node;
        node.cached().any(|(id, _)| id == execution)
    };
    assert!(!owner(&world), "its node is alive");
    world.machines[0].is_dead = true;
    world.pass(5 * SECOND);
    assert!(!owner(&world), "not before the lease could have ended");
    world.pass(4 * SECOND);
    assert!(owner(&world), "it was taken over");
}
