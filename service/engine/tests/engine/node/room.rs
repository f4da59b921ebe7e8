//! Memory is limited by bytes as well as by the number of executions.

use std::time::Duration;

use recoup_core::command::Command;
use recoup_core::payload::Payload;
use recoup_engine::load::{LOAD_BYTES_MAX, Plans, load};
use recoup_engine::node::io::{Input, Offer, Refusal};
use recoup_engine::options::Options;
use recoup_store::{NodeId, Nodes, Wanted};

use crate::fixture::world::{World, ready, stream};

const MEBIBYTE: usize = 1 << 20;

#[test]
fn starts_are_refused_when_the_executions_in_memory_take_too_many_bytes() {
    let options = Options { resident_bytes_max: 4 * MEBIBYTE, ..Options::default() };
    let mut world = World::with(1, options);
    let worker = world.attach(0, Offer { credit: 100, ..stream("default", "s", &[]) });
    let mut started = 0;
    let refused = loop {
        match world.start_sized(0, MEBIBYTE) {
            Ok(_) => started += 1,
            Err(refusal) => break refusal,
        }
    };
    assert!(matches!(refused, Refusal::Overloaded { .. }), "{refused:?}");
    assert!((1..=4).contains(&started), "{started} executions of a mebibyte each were started");
    // Executions that have ended leave memory, and their bytes are free again.
    for task in world.handed(0, worker) {
        let (execution, output) = (task.execution, Payload::null());
        let command = Command::CompleteTask { task, output, worker: String::new() };
        world.ask(0, |reply| Input::Submit { execution, command, request: None, reply });
    }
    assert_eq!(world.machines[0].node.cached().count(), 0);
    world.start_sized(0, MEBIBYTE).expect("there is room again");
}

#[test]
fn executions_that_do_not_fit_into_one_answer_are_read_in_several() {
    let mut world = World::new(1);
    let ids: Vec<_> =
        (0..20).map(|_| world.start_sized(0, MEBIBYTE).expect("there is room")).collect();
    let wanted: Vec<_> = ids.iter().copied().map(Wanted::whole).collect();
    let reading = ready(load(&world.store, &Plans::default(), NodeId(0), &wanted));
    let reading = reading.expect("the model answers");
    assert!(!reading.found.is_empty() && !reading.rest.is_empty());
    assert_eq!(reading.found.len() + reading.rest.len(), ids.len());
    assert!(reading.found.len() * MEBIBYTE <= LOAD_BYTES_MAX);

    let dead = world.machines.remove(0).node.node_id().expect("it lived");
    ready(world.store.leave(dead)).expect("it leaves");
    let other = world.add(Options::default());
    world.pass(Duration::from_millis(10));
    assert_eq!(world.machines[other].node.cached().count(), ids.len(), "all of them are read");
    let loads = world.machines[other].calls.iter().filter(|call| **call == "load").count();
    assert!(loads > 1, "{loads} calls");
}
