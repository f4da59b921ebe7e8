//! Tasks that a node claims while another node believes that it still owns their execution.

use std::time::Duration;

use recoup_core::command::TaskId;
use recoup_core::error::builtin;
use recoup_core::id::ExecutionId;
use recoup_engine::node::io::Input;
use recoup_engine::options::Options;
use recoup_store::{IdleCredit, Overflow, OverflowTask, Peers, QueueName};

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
fn task_handed_out_by_another_node_is_not_put_into_the_overflow() {
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
fn pending_claim_does_not_hand_out_a_task_that_a_sessionless_worker_has() {
    let mut world = World::new(3);
    let execution = start_overflowed(&mut world, 2);
    world.leave(2);
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

/// A worker gives a task that is delivered at most once back at a node that has claimed it and does not know
/// yet that the worker has it. At the same moment it asks that node for tasks.
fn give_back_at_the_moment_of_a_hand_over(released_first: bool) {
    let mut world = World::delivered_at_most_once(2);
    // Node 0 does not learn that the other one has a worker.
    world.machines[0].hold_back = &["publish"];
    let execution = start_overflowed(&mut world, 0);
    // Node 1 claims the task for a worker that has left when the answer arrives.
    world.machines[1].hold_back = &["claim"];
    let left = world.attach(1, poll("default", "left", None));
    world.pass(Duration::from_millis(200));
    world.put(1, Input::Detach { worker: left });
    world.deliver_the_late_answer(1);
    let holder = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, holder).remove(0);
    world.advance(Duration::from_millis(1));
    // The worker gives the task back at node 1, and takes tasks there from then on.
    let (session, reply, worker) = ("s".to_owned(), 1_001, 2_001);
    let release = Input::Release { task: task.clone(), session, reply };
    let attach = Input::Attach { worker, offer: poll("default", "s", None) };
    world.put_all(1, if released_first { vec![release, attach] } else { vec![attach, release] });
    assert!(!world.handed(1, worker).contains(&task), "it is delivered at most once");
    let state = world.snapshot(1, execution).state;
    let error = state.task(&task.path).and_then(|task| task.last_error.clone());
    assert_eq!(error.map(|error| error.error_type), Some(builtin::CANCELLED.to_owned()));
}

#[test]
fn at_most_once_task_released_just_before_a_hand_over_is_not_handed_out() {
    give_back_at_the_moment_of_a_hand_over(true);
}

#[test]
fn at_most_once_task_released_just_after_a_hand_over_is_not_handed_out() {
    give_back_at_the_moment_of_a_hand_over(false);
}
