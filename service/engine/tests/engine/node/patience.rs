//! Callers of a node whose store does not respond.

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
fn calls_during_a_hanging_commit_end_as_unknown_or_unavailable() {
    let mut world = World::new(1);
    let offer = Offer { credit: 10, ..stream("default", "s", &[]) };
    let worker = world.attach(0, offer);
    let ending = world.start(0, "default");
    let tasks = world.handed(0, worker);
    let of = |id| tasks.iter().find(|task| task.execution == id).expect("it was handed").clone();
    assert!(world.machines[0].node.is_writing());

    world.machines[0].hold_back = &["commit"];
    let under_way = world.start_later(0, "default");
    let next = world.start_later(0, "default");
    let submit =
        |execution, command, reply| Input::Submit { execution, command, request: None, reply };
    let complete =
        |id| Command::CompleteTask { task: of(id), output: Payload::null(), worker: String::new() };
    let cancel = Command::CancelExecution { reason: "enough".into() };
    world.put(0, submit(ending, cancel, 1_001));
    // The node decides nothing about these two before the outcome of the other changes is known.
    world.put(0, submit(ending, complete(ending), 1_002));
    world.put(0, submit(under_way, Command::CancelExecution { reason: "no".into() }, 1_003));
    let before = world.machines[0].replies.len();
    world.pass(Options::default().commit_wait / 2);
    assert_eq!(world.machines[0].replies.len(), before, "all of them wait");
    assert!(world.machines[0].node.is_writing());
    world.pass(patience());
    assert!(!world.machines[0].node.is_writing());
    let starts = world.machines[0].replies.keys().copied().filter(|reply| *reply < 1_000);
    let starts: Vec<_> = starts.collect();
    assert_eq!(starts.len(), 2);
    for reply in starts.into_iter().chain([1_001]) {
        let refused = refusal(&mut world, reply);
        assert_eq!(refused, Refusal::OutcomeUnknown, "its batch is being committed, or is next");
    }
    for reply in [1_002, 1_003] {
        let refused = refusal(&mut world, reply);
        assert!(matches!(refused, Refusal::Unavailable(_)), "{refused:?}");
    }

    // The store responds again: the changes that were under way have taken effect, the refused ones have not.
    world.machines[0].hold_back = &[];
    for answer in std::mem::take(&mut world.machines[0].late) {
        world.put(0, answer);
    }
    assert!(world.machines[0].node.is_writing());
    let histories = ready(world.store.load(NodeId(0), &[under_way, next]));
    let histories = histories.expect("the model loads");
    let lengths: Vec<_> = histories.iter().map(|history| history.transitions.len()).collect();
    assert_eq!(lengths, [1, 1]);
    assert!(world.snapshot(0, ending).state.is_stopping());
    assert!(!world.snapshot(0, under_way).state.is_stopping());
    // The worker sends the result again, and it is accepted.
    world.put(0, submit(ending, complete(ending), 1_004));
    let taken = world.machines[0].replies.remove(&1_004).expect("at once");
    taken.expect("the attempt is still open");
    assert!(world.snapshot(0, ending).state.state.is_ended());
}

#[test]
fn no_change_is_decided_after_a_batch_with_an_unknown_outcome() {
    let mut world = World::new(1);
    world.machines[0].hold_back = &["commit"];
    world.start_later(0, "default");
    let node = world.machines[0].node.node_id().expect("it lives");
    let unknown = Err(recoup_store::Error::OutcomeUnknown("no answer in time".to_owned()));
    world.put(0, Input::Committed(node, unknown));
    let undecided = world.start_later(0, "default");
    world.pass(patience());
    let last = *world.machines[0].replies.keys().next_back().expect("both are answered");
    let refused = refusal(&mut world, last);
    assert!(matches!(refused, Refusal::Unavailable(_)), "{refused:?}");
    world.machines[0].hold_back = &[];
    for answer in std::mem::take(&mut world.machines[0].late) {
        world.put(0, answer);
    }
    let histories = ready(world.store.load(NodeId(0), &[undecided]));
    assert!(histories.expect("the model loads").is_empty());
}

#[test]
fn reads_end_as_unavailable_if_the_store_does_not_answer_in_time() {
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
fn reads_wait_for_a_pending_commit_but_only_for_a_limited_time() {
    let mut world = World::new(1);
    let worker = world.attach(0, stream("default", "s", &[]));
    let execution = world.start(0, "default");
    let task = world.handed(0, worker).remove(0);
    let beat = |reply| Input::Heartbeat { task: task.clone(), details: None, reply };
    world.machines[0].hold_back = &["commit"];
    let command = Command::CancelExecution { reason: "enough".into() };
    world.put(0, Input::Submit { execution, command, request: None, reply: 1_000 });
    world.put(0, Input::Get { execution, reply: 1_001 });
    // The committed state is enough to answer this one.
    let answer = world.ask(0, beat);
    assert!(
        matches!(answer, Some(Ok(Answer::Beat { cancel_requested: false }))),
        "a cancel is reported only once it is committed: {answer:?}"
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
