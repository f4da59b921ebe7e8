//! Tasks that a node claims while another node believes that it still owns their execution.

use std::time::Duration;

use recoup_core::command::TaskId;
use recoup_core::id::ExecutionId;
use recoup_engine::node::io::Input;
use recoup_engine::options::Options;
use recoup_store::{IdleCredit, Nodes, Overflow, OverflowTask, Peers, QueueName};

use crate::fixture::world::{World, poll, ready, stream};

const SECOND: Duration = Duration::from_secs(1);

/// The first attempt at the only step, as a node puts it into the overflow.
fn first_attempt(world: &World, execution: ExecutionId) -> OverflowTask {
    let queue = QueueName { namespace: "default".into(), queue: "default".into() };
    OverflowTask {
        task: TaskId { execution, run: 1, path: "charge".into(), attempt: 1, sequence: 1 },
        queue,
        task_type: "charge".into(),
        priority: 0,
        available_at: world.now(),
    }
}

/// Starts an execution on this machine and puts its only task into the overflow.
fn start_overflowed(world: &mut World, machine: usize) -> ExecutionId {
    let execution = world.start(machine, "default");
    let node = world.machines[machine].node.node_id().expect("it lives");
    let task = first_attempt(world, execution);
    ready(world.store.overflow(node, &[task])).expect("the model writes");
    execution
}

#[test]
fn what_another_node_has_handed_out_is_not_put_where_any_node_finds_it() {
    let mut world = World::new(2);
    world.machines[0].hold_back = &["publish"];
    world.machines[1].hold_back = &["claim"];
    let execution = start_overflowed(&mut world, 0);
    let bare = world.attach(1, poll("default", "", None));
    world.pass(SECOND);
    let claimed = std::mem::take(&mut world.machines[1].late);
    assert_eq!(claimed.len(), 1, "{claimed:?}");
    world.put_all(1, claimed);
    assert_eq!(world.handed(1, bare).len(), 1);
    // As far as this node knows, the task waits here, and the other node has a worker for it.
    world.machines[0].hold_back = &["load", "heads"];
    let node = world.machines[0].node.node_id().expect("it lives");
    let queues = vec![first_attempt(&world, execution).queue];
    let idle = vec![IdleCredit { queues, task_types: Vec::new(), credit: 1 }];
    world.put(0, Input::Published(node, Ok(Peers { nodes: 1, idle })));
    assert!(world.machines[0].calls.contains(&"overflow"));
    let depth = ready(world.store.overflow_depth()).expect("the model answers");
    assert_eq!(depth, []);
    world.machines[0].hold_back = &[];
    let late = std::mem::take(&mut world.machines[0].late);
    world.put_all(0, late);
    let others =
        [0, 1].map(|machine| (machine, world.attach(machine, stream("default", "t", &[]))));
    world.pass(Options::default().reconnect_grace + 3 * SECOND);
    for (machine, other) in others {
        assert_eq!(world.handed(machine, other), [], "{execution} is with the first worker");
    }
}

#[test]
fn what_its_owner_hands_to_a_worker_without_a_session_is_not_handed_out_by_a_claim_under_way() {
    let mut world = World::new(3);
    let execution = start_overflowed(&mut world, 2);
    let gone = world.machines[2].node.node_id().expect("it lives");
    ready(world.store.leave(gone)).expect("the model does not fail");
    world.machines.pop();
    world.machines[1].hold_back = &["adopt", "claim", "publish"];
    world.pass(Options::default().reconnect_grace + 3 * SECOND);
    world.machines[1].late.clear();
    let claims = world.attach(1, poll("default", "s", None));
    world.pass(SECOND);
    let claimed = std::mem::take(&mut world.machines[1].late);
    let holder = world.attach(0, poll("default", "", None));
    assert_eq!(world.handed(0, holder).len(), 1);
    world.machines[1].hold_back = &[];
    world.put_all(1, claimed);
    world.pass(SECOND);
    assert_eq!(world.handed(1, claims), [], "{execution} is with the owner's worker");
}
