//! Which tasks go to other nodes, and how soon.

use std::time::Duration;

use recoup_core::command::{Command, TaskId};
use recoup_core::payload::Payload;
use recoup_engine::node::io::{Input, Offer};
use recoup_engine::options::Options;
use recoup_store::{Overflow, QueueName};

use crate::fixture::world::{World, order, poll, ready, stream};

const SECOND: Duration = Duration::from_secs(1);

fn overflows(world: &World, machine: usize) -> usize {
    world.machines[machine].calls.iter().filter(|call| **call == "overflow").count()
}

/// The number of tasks in the overflow.
fn depth(world: &World) -> u64 {
    let depth = ready(world.store.overflow_depth()).expect("the model answers");
    depth.into_iter().map(|(_, tasks)| tasks).sum()
}

fn of_types(offer: Offer, types: &[&str]) -> Offer {
    Offer { task_types: types.iter().map(|name| (*name).to_owned()).collect(), ..offer }
}

fn with_credit(offer: Offer, credit: u32) -> Offer {
    Offer { credit, ..offer }
}

fn complete(world: &mut World, machine: usize, task: TaskId) {
    let (execution, output) = (task.execution, Payload::json("1"));
    let command = Command::CompleteTask { task, output, worker: String::new() };
    let done =
        world.ask(machine, |reply| Input::Submit { execution, command, request: None, reply });
    done.expect("at once").expect("it is accepted");
}

#[test]
fn lone_node_keeps_tasks_that_no_worker_takes() {
    let mut world = World::new(1);
    world.start(0, "default");
    world.pass(60 * SECOND);
    assert_eq!(overflows(&world, 0), 0);
    let worker = world.attach(0, stream("default", "s", &[]));
    assert_eq!(world.handed(0, worker).len(), 1);
}

#[test]
fn task_reaches_a_node_whose_worker_takes_its_type_within_300_ms() {
    let mut world = World::new(2);
    // It polls the right queue for the wrong task type.
    let wrong = world.attach(0, of_types(stream("default", "w", &[]), &["refund"]));
    let right = world.attach(1, of_types(stream("default", "r", &[]), &["charge"]));
    world.pass(2 * SECOND);
    let execution = world.start(0, "default");
    world.pass(Duration::from_millis(300));
    let handed = world.handed(1, right);
    assert_eq!(handed.len(), 1);
    assert_eq!(handed[0].execution, execution);
    assert_eq!(world.handed(0, wrong), []);
}

#[test]
fn worker_that_attaches_later_to_another_node_gets_the_queued_task() {
    let mut world = World::new(2);
    world.start(0, "default");
    world.pass(5 * SECOND);
    assert_eq!(overflows(&world, 0), 0, "no node has a worker for it");
    let worker = world.attach(1, stream("default", "s", &[]));
    world.pass(SECOND);
    assert_eq!(world.handed(1, worker).len(), 1);
}

#[test]
fn no_more_tasks_go_to_another_node_than_its_workers_take() {
    let mut world = World::new(2);
    world.attach(1, with_credit(stream("default", "s", &[]), 3));
    world.pass(2 * SECOND);
    for _ in 0..10 {
        world.start(0, "default");
    }
    assert_eq!(depth(&world), 3, "three at once, and no more");
}

#[test]
fn tasks_move_to_another_node_as_fast_as_its_workers_take_them() {
    let mut world = World::new(2);
    let worker = world.attach(1, with_credit(stream("default", "s", &[]), 4));
    world.pass(2 * SECOND);
    for _ in 0..40 {
        world.start(0, "default");
    }
    let mut taken = 0;
    for _ in 0..60 {
        world.pass(Duration::from_millis(10));
        for task in world.handed(1, worker) {
            taken += 1;
            complete(&mut world, 1, task);
            world.put(1, Input::Credit { worker, tasks: 1 });
        }
    }
    assert_eq!(taken, 40, "in 600 ms, with 4 at a time");
}

#[test]
fn task_does_not_wait_for_a_silent_session_that_holds_nothing() {
    let mut world = World::new(2);
    let gone = world.attach(0, poll("default", "gone", None));
    let other = world.attach(1, stream("default", "o", &[]));
    world.put(0, Input::Detach { worker: gone });
    world.pass(2 * SECOND);
    world.start(0, "default");
    world.pass(Duration::from_millis(300));
    assert_eq!(world.handed(1, other).len(), 1);
}

#[test]
fn task_waits_for_busy_local_workers_before_it_goes_to_another_node() {
    let mut world = World::new(2);
    let busy = world.attach(0, stream("default", "b", &[]));
    world.start(0, "default");
    assert_eq!(world.handed(0, busy).len(), 1);
    let idle = world.attach(1, stream("default", "i", &[]));
    world.pass(2 * SECOND);
    world.start(0, "default");
    world.pass(Options::default().overflow_after - Duration::from_millis(100));
    assert_eq!(overflows(&world, 0), 0);
    world.pass(Duration::from_millis(500));
    assert_eq!(world.handed(1, idle).len(), 1);
}

#[test]
fn task_waits_for_a_worker_between_two_polls() {
    for id in ["s", ""] {
        let mut world = World::new(2);
        world.attach(1, stream("default", "other", &[]));
        let worker = world.attach(0, poll("default", id, None));
        world.pass(2 * SECOND);
        world.start(0, "default");
        let first = world.handed(0, worker);
        assert_eq!(first.len(), 1, "session {id:?}");
        world.start(0, "default");
        world.pass(Duration::from_millis(400));
        assert_eq!(overflows(&world, 0), 0, "session {id:?}");
        complete(&mut world, 0, first[0].clone());
        let again = world.attach(0, poll("default", id, None));
        assert_eq!(world.handed(0, again).len(), 1, "session {id:?}");
    }
}

#[test]
fn task_does_not_wait_for_a_draining_session() {
    let mut world = World::new(2);
    let draining = world.attach(0, stream("default", "d", &[]));
    let other = world.attach(1, stream("default", "o", &[]));
    world.pass(2 * SECOND);
    world.put(0, Input::Drain { worker: draining });
    world.start(0, "default");
    world.pass(Duration::from_millis(300));
    assert_eq!(world.handed(1, other).len(), 1);
}

#[test]
fn a_node_claims_only_tasks_that_its_idle_workers_take() {
    let mut world = World::new(3);
    // The task is given away for the worker of node 1, which is gone before node 1 claims it.
    let gone = world.attach(1, stream("default", "g", &[]));
    world.pass(2 * SECOND);
    world.machines[1].hold_back = &["claim"];
    world.start(0, "default");
    world.put(1, Input::Detach { worker: gone });
    let wrong = world.attach(2, of_types(stream("default", "w", &[]), &["refund"]));
    let elsewhere = Offer {
        queues: vec![QueueName { namespace: "default".into(), queue: "slow".into() }],
        ..stream("default", "e", &[])
    };
    let elsewhere = world.attach(2, elsewhere);
    world.pass(20 * SECOND);
    assert_eq!(depth(&world), 1);
    assert_eq!(world.handed(2, wrong), []);
    assert_eq!(world.handed(2, elsewhere), []);
    let right = world.attach(2, of_types(stream("default", "r", &[]), &["charge"]));
    world.pass(SECOND);
    assert_eq!(world.handed(2, right).len(), 1);
}

#[test]
fn task_that_timed_out_in_the_queue_is_not_handed_out_by_a_pending_claim() {
    let mut order = order();
    let task = order.steps.steps[0].kind.task_mut().expect("it is a task");
    task.timeouts.schedule_to_start = Some(3 * SECOND);
    let mut world = World::with_order(2, &order);
    // The worker's credit is published, and its node dies before it can claim anything.
    world.attach(1, stream("default", "u", &[]));
    world.pass(2 * SECOND);
    world.machines[1].is_dead = true;
    let execution = world.start(0, "default");
    world.pass(SECOND);
    assert_eq!(depth(&world), 1);

    // A worker of this node is chosen for the task, and is gone before the start is on record.
    world.machines[0].hold_back = &["commit"];
    let gone = world.attach(0, stream("default", "s", &[]));
    world.put(0, Input::Detach { worker: gone });
    world.machines[0].hold_back = &[];
    for commit in std::mem::take(&mut world.machines[0].late) {
        world.put(0, commit);
    }
    assert_eq!(world.snapshot(0, execution).state.sequence, 2);
    world.pass(SECOND / 2);
    assert_eq!(depth(&world), 1, "it is in the overflow again");

    // The task's schedule-to-start timeout expires while a commit and a claim are under way.
    world.machines[0].hold_back = &["commit", "claim"];
    let worker = world.attach(0, stream("default", "t", &[]));
    world.start_later(0, "default");
    world.pass(2 * SECOND);
    world.machines[0].hold_back = &[];
    let late = std::mem::take(&mut world.machines[0].late);
    let (claims, commits): (Vec<_>, Vec<_>) =
        late.into_iter().partition(|input| matches!(input, Input::Claimed(..)));
    assert!(
        matches!(&claims[..], [Input::Claimed(_, Ok(tasks))] if tasks.len() == 1),
        "{claims:?}"
    );
    world.put_all(0, claims.into_iter().chain(commits).collect());
    let handed = world.handed(0, worker);
    assert!(handed.iter().all(|task| task.execution != execution), "{handed:?}");
    let state = world.snapshot(0, execution).state;
    let error = state.error.as_ref().map(|error| error.error_type.as_str());
    assert_eq!(error, Some("recoup.timeout.schedule_to_start"));
    assert_eq!(depth(&world), 0);
}

#[test]
fn claimed_task_waits_for_the_next_credit_if_its_worker_took_another_task() {
    let mut world = World::new(2);
    let worker = world.attach(1, stream("default", "s", &[]));
    world.pass(SECOND);
    world.machines[1].hold_back = &["load"];
    let claimed = world.start(0, "default");
    world.pass(SECOND);
    let own = world.start(1, "default");
    let first = world.handed(1, worker);
    assert_eq!(first.iter().map(|task| task.execution).collect::<Vec<_>>(), [own]);
    // The claimed execution is read only now, when no worker can take the task.
    world.machines[1].hold_back = &[];
    let late = std::mem::take(&mut world.machines[1].late);
    assert_eq!(late.len(), 1, "only the read for the claim was held back: {late:?}");
    world.put_all(1, late);
    assert_eq!(world.handed(1, worker), []);
    world.put(1, Input::Credit { worker, tasks: 1 });
    let second = world.handed(1, worker);
    assert_eq!(second.iter().map(|task| task.execution).collect::<Vec<_>>(), [claimed]);
}
