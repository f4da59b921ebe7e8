//! Callers of a node whose store takes nothing.

use std::time::Duration;

use recoup_core::command::Command;
use recoup_core::payload::Payload;
use recoup_engine::node::io::{Answer, Input, Offer, Refusal};
use recoup_engine::options::Options;
use recoup_store::{Executions, NodeId};

use crate::fixture::world::{Reply, World, ready, stream};

/// Longer than callers wait.
fn patience() -> Duration {
    Options::default().commit_wait * 2
}

fn refusal(world: &mut World, reply: Reply) -> Refusal {
    let answer = world.machines[0].replies.remove(&reply).expect("it is answered");
    answer.expect_err("nothing was written")
}

#[test]
fn callers_are_told_in_time_that_the_store_takes_nothing_and_what_became_of_their_calls() {
    let mut world = World::new(1);
    let offer = Offer { credit: 10, ..stream("default", "s", &[]) };
    let worker = world.attach(0, offer);
    let (idle, running) = (world.start(0, "default"), world.start(0, "default"));
    let tasks = world.handed(0, worker);
    let of = |id| tasks.iter().find(|task| task.execution == id).expect("it was handed").clone();
    assert!(world.machines[0].node.is_writing());

    world.machines[0].hold_back = &["commit"];
    let under_way = world.start_later(0, "default");
    let undecided = world.start_later(0, "default");
    let submit =
        |execution, command, reply| Input::Submit { execution, command, request: None, reply };
    let cancel = Command::CancelExecution { reason: "enough".into() };
    world.put(0, submit(idle, cancel, 1_001));
    let complete =
        Command::CompleteTask { task: of(running), output: Payload::null(), worker: String::new() };
    world.put(0, submit(running, complete.clone(), 1_002));
    let before = world.machines[0].replies.len();
    world.pass(Options::default().commit_wait / 2);
    assert_eq!(world.machines[0].replies.len(), before, "all of them wait");
    assert!(world.machines[0].node.is_writing());
    world.pass(patience());
    assert!(!world.machines[0].node.is_writing());
    let mut starts: Vec<_> =
        world.machines[0].replies.keys().copied().filter(|reply| *reply < 1_000).collect();
    let (second, first) = (starts.pop().expect("two"), starts.pop().expect("two"));
    assert_eq!(refusal(&mut world, first), Refusal::OutcomeUnknown, "it is under way");
    for reply in [second, 1_001, 1_002] {
        let refused = refusal(&mut world, reply);
        assert!(matches!(refused, Refusal::Unavailable(_)), "{refused:?}");
    }

    // The store is back: what was under way is done, what was refused is not.
    world.machines[0].hold_back = &[];
    for answer in std::mem::take(&mut world.machines[0].late) {
        world.put(0, answer);
    }
    assert!(world.machines[0].node.is_writing());
    let histories = ready(world.store.load(NodeId(0), &[under_way, undecided, idle]));
    let histories = histories.expect("the model loads");
    let ids: Vec<_> = histories.iter().map(|history| history.execution).collect();
    assert_eq!(ids, [under_way, idle]);
    assert!(!world.snapshot(0, idle).state.is_stopping());
    // The result is sent again, and taken.
    world.put(0, submit(running, complete, 1_003));
    let taken = world.machines[0].replies.remove(&1_003).expect("at once");
    taken.expect("the attempt is still open");
    assert!(world.snapshot(0, running).state.state.is_ended());
}

#[test]
fn readers_are_told_in_time_that_the_store_does_not_answer() {
    let mut world = World::new(2);
    let execution = world.start(1, "default");
    world.machines[0].hold_back = &["load"];
    world.put(0, Input::Get { execution, reply: 1_001 });
    world.pass(patience());
    let refused = refusal(&mut world, 1_001);
    assert!(matches!(refused, Refusal::Unavailable(_)), "{refused:?}");
    world.machines[0].hold_back = &[];
    for answer in std::mem::take(&mut world.machines[0].late) {
        world.put(0, answer);
    }
    world.snapshot(0, execution);
}

#[test]
fn readers_wait_for_the_transition_under_way_but_not_for_ever() {
    let mut world = World::new(1);
    let worker = world.attach(0, stream("default", "s", &[]));
    let execution = world.start(0, "default");
    let task = world.handed(0, worker).remove(0);
    let beat = |reply| Input::Heartbeat { task: task.clone(), details: None, reply };
    world.machines[0].hold_back = &["commit"];
    let command = Command::CancelExecution { reason: "enough".into() };
    world.put(0, Input::Submit { execution, command, request: None, reply: 1_000 });
    world.put(0, Input::Get { execution, reply: 1_001 });
    // What is committed is enough for this one.
    let answer = world.ask(0, beat);
    assert!(
        matches!(answer, Some(Ok(Answer::Beat { cancel_requested: false }))),
        "nothing is told before it is committed: {answer:?}"
    );
    assert!(!world.machines[0].replies.contains_key(&1_001), "it waits for the commit");
    let answers = std::mem::take(&mut world.machines[0].late);
    world.put_all(0, answers);
    let answer = world.machines[0].replies.remove(&1_001);
    let Some(Ok(Answer::Snapshot(snapshot))) = answer else {
        panic!("the commit has come: {answer:?}");
    };
    assert!(snapshot.state.is_stopping());

    let command = Command::TerminateExecution { reason: "now".into(), unstarted: Vec::new() };
    world.put(0, Input::Submit { execution, command, request: None, reply: 1_002 });
    world.put(0, Input::Get { execution, reply: 1_003 });
    world.pass(patience());
    let refused = refusal(&mut world, 1_003);
    assert!(matches!(refused, Refusal::Unavailable(_)), "{refused:?}");
}
