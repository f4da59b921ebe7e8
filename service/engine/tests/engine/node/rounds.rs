//! The node's repeated calls: each is made once at a time, and only about what needs it.

use std::collections::BTreeSet;
use std::time::Duration;

use recoup_engine::node::io::Input;
use recoup_store::Error;

use crate::fixture::world::{World, poll, stream};

const SECOND: Duration = Duration::from_secs(1);
const ROUNDS: &[&str] = &["renew", "adopt", "heads", "due", "publish", "claim"];

/// How often a machine makes each call to the store within some time.
fn calls(world: &mut World, time: Duration) -> Vec<(&'static str, usize)> {
    world.machines[0].calls.clear();
    world.pass(time);
    let calls = &world.machines[0].calls;
    let of = |name: &&'static str| (*name, calls.iter().filter(|call| *call == name).count());
    ROUNDS.iter().map(of).collect()
}

#[test]
fn late_answers_of_a_lost_lease_start_no_extra_rounds_and_end_no_lease() {
    let mut world = World::new(2);
    let execution = world.start(0, "default");
    // The attempt was handed to a poll without a session, so the store is asked about it. A worker waits for
    // more tasks.
    let worker = world.attach(0, poll("default", "", None));
    assert_eq!(world.handed(0, worker).len(), 1);
    world.attach(0, poll("default", "s", Some(&[])));
    world.pass(SECOND);
    let regular = calls(&mut world, 10 * SECOND);
    assert!(regular.iter().all(|(_, count)| *count > 0), "{regular:?}");

    world.machines[0].hold_back = ROUNDS;
    world.pass(20 * SECOND);
    let before = world.machines[0].node.node_id().expect("it lives");
    world.machines[0].hold_back = &[];
    let late = std::mem::take(&mut world.machines[0].late);
    assert_eq!(late.len(), ROUNDS.len(), "{late:?}");
    world.put(0, Input::Renewed(before, Err(Error::LeaseLost)));
    let after = world.machines[0].node.node_id().expect("it lives again");
    assert_ne!(before, after);
    // Out of step with the rounds of this life, because two rounds that meet would count as one.
    world.pass(Duration::from_millis(1_070));
    for input in late {
        world.put(0, input);
    }
    world.put(0, Input::Renewed(before, Err(Error::LeaseLost)));
    assert_eq!(world.machines[0].node.node_id(), Some(after));
    let again = calls(&mut world, 10 * SECOND);
    for ((name, before), (_, after)) in regular.iter().zip(&again) {
        assert!(after.abs_diff(*before) <= 2, "{name}: {before} times, then {after}");
    }
    let live = world.snapshot(0, execution).live;
    assert_eq!(live.len(), 1, "its timeout has not expired");
}

#[test]
fn batch_pending_when_the_lease_is_lost_is_committed_under_the_next_lease() {
    let mut world = World::new(1);
    world.machines[0].hold_back = &["commit"];
    let execution = world.start_later(0, "default");
    let before = world.machines[0].node.node_id().expect("it lives");
    world.machines[0].late.clear();
    world.put(0, Input::Renewed(before, Err(Error::LeaseLost)));
    let after = world.machines[0].node.node_id().expect("it lives again");
    world.machines[0].hold_back = &[];
    world.put(0, Input::Committed(before, Err(Error::LeaseLost)));
    assert_eq!(world.machines[0].node.node_id(), Some(after));
    assert_eq!(world.snapshot(0, execution).state.sequence, 1);
}

#[test]
fn state_read_under_a_lost_lease_is_read_again_under_the_next() {
    let mut world = World::new(2);
    let execution = world.start(1, "default");
    world.machines[0].hold_back = &["load"];
    let until = world.now() + 60 * SECOND;
    world.put(0, Input::Await { execution, until, reply: 1 });
    let before = world.machines[0].node.node_id().expect("it lives");
    world.put(0, Input::Renewed(before, Err(Error::LeaseLost)));
    world.machines[0].hold_back = &[];
    let late = std::mem::take(&mut world.machines[0].late);
    assert_eq!(late.len(), 1, "{late:?}");
    let loads =
        |world: &World| world.machines[0].calls.iter().filter(|call| **call == "load").count();
    let before = loads(&world);
    for input in late {
        world.put(0, input);
    }
    // This life's writes must be ordered after its own reads, so it reads for itself.
    assert_eq!(loads(&world), before + 1);
}

#[test]
fn head_queries_cover_the_executions_in_doubt() {
    let mut world = World::new(2);
    // The other node has a worker with credit for all of them, which is gone before that node claims any.
    let mut offer = stream("default", "gone", &[]);
    offer.credit = 1_000;
    let gone = world.attach(1, offer);
    world.pass(2 * SECOND);
    world.machines[1].hold_back = &["claim"];
    for _ in 0..300 {
        world.start(0, "default");
    }
    world.put(1, Input::Detach { worker: gone });
    world.pass(SECOND);
    let node = &world.machines[0].node;
    assert_eq!((node.cached().count(), node.in_doubt()), (300, 300), "all are in the overflow");
    // A worker of this node takes them back, and one is handed out. It uses a stream, which stays attached.
    let mut offer = stream("default", "s", &[]);
    offer.credit = 1_000;
    world.attach(0, offer);
    world.pass(SECOND);
    world.machines[0].heads.clear();
    world.pass(SECOND);
    let node = &world.machines[0].node;
    assert_eq!((node.cached().count(), node.in_doubt()), (300, 0));
    // The store is asked about attempts of its worker a few times within the grace period, not in each round.
    let asked = world.machines[0].heads.iter().map(Vec::len).sum::<usize>();
    assert!((150..=400).contains(&asked), "{asked}");
    // A caller asks the other node about one of them.
    let (execution, _) = world.machines[0].node.cached().next().expect("there are 300");
    let until = world.now() + 60 * SECOND;
    world.put(1, Input::Await { execution, until, reply: 1 });
    world.machines[1].heads.clear();
    world.pass(SECOND);
    assert_eq!(world.machines[1].node.in_doubt(), 1);
    let heads = &world.machines[1].heads;
    assert!(heads.len() >= 4 && heads.iter().all(|ids| *ids == [execution]), "{heads:?}");
}

#[test]
fn head_is_queried_in_every_round_once_a_worker_is_silent_for_a_second() {
    let mut world = World::new(1);
    world.start(0, "default");
    let worker = world.attach(0, poll("default", "s", None));
    let task = world.handed(0, worker).remove(0);
    let holder = world.attach(0, poll("default", "s", Some(&[&task])));
    world.pass(5 * SECOND);
    let asked = world.machines[0].heads.len();
    assert!(
        (1..=4).contains(&asked),
        "its worker waits in a poll here, so few queries are due, not {asked}"
    );
    world.put(0, Input::Detach { worker: holder });
    world.pass(Duration::from_millis(900));
    world.machines[0].heads.clear();
    world.pass(SECOND);
    let heads = &world.machines[0].heads;
    assert!(heads.iter().all(|ids| *ids == [task.execution]) && heads.len() >= 4, "{heads:?}");
}

#[test]
fn executions_beyond_the_limit_of_a_head_query_are_queried_in_turn() {
    let mut world = World::new(2);
    let ids: BTreeSet<_> = (0..2_500).map(|_| world.start(0, "default")).collect();
    let until = world.now() + 60 * SECOND;
    for (reply, execution) in ids.iter().enumerate() {
        let (execution, reply) = (*execution, reply as u64);
        world.put(1, Input::Await { execution, until, reply });
    }
    world.machines[1].heads.clear();
    world.pass(SECOND / 2);
    let heads = &world.machines[1].heads;
    assert!(heads.len() >= 2 && heads.iter().all(|ids| ids.len() <= 2_000));
    let asked: BTreeSet<_> = heads[..2].iter().flatten().copied().collect();
    assert_eq!(asked, ids);
}

/// The answer to a claim that an earlier life asked for is still used.
#[test]
fn task_claimed_under_a_lost_lease_is_handed_out() {
    let mut world = World::new(2);
    // Node 1 gives the task away for a worker of node 0, which is gone before node 0 has claimed it.
    let first = world.attach(0, stream("default", "first", &[]));
    world.pass(2 * SECOND);
    world.machines[0].hold_back = &["claim"];
    world.start(1, "default");
    world.put(0, Input::Detach { worker: first });
    world.pass(SECOND);
    world.machines[0].late.clear();
    let worker = world.attach(0, stream("default", "s", &[]));
    world.pass(SECOND / 2);
    let before = world.machines[0].node.node_id().expect("it lives");
    world.put(0, Input::Renewed(before, Err(Error::LeaseLost)));
    world.machines[0].hold_back = &[];
    let late = std::mem::take(&mut world.machines[0].late);
    let claims = late
        .iter()
        .filter(|input| matches!(input, Input::Claimed(_, Ok(tasks)) if tasks.len() == 1));
    assert_eq!(claims.count(), 1, "{late:?}");
    for input in late {
        world.put(0, input);
    }
    assert_eq!(world.handed(0, worker).len(), 1);
}
