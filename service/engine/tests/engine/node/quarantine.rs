//! What a node does when the commit of a quarantine fails or stays unknown.

use std::time::Duration;

use recoup_core::command::{Command, TaskId};
use recoup_core::definition::Workflow;
use recoup_core::execution::State;
use recoup_core::id::ExecutionId;
use recoup_core::payload::Payload;
use recoup_engine::node::io::{Answer, Input};
use recoup_engine::{Options, Refusal};
use recoup_store::Executions;

use crate::fixture::world::{QuarantineFault, Reply, World, order, ready};

const SECOND: Duration = Duration::from_secs(1);

/// One node, whose decisions about cancellations panic.
fn panicking() -> World {
    let panics: Option<fn(&Command) -> bool> =
        Some(|command| matches!(command, Command::CancelExecution { .. }));
    World::with(1, Options { panics, ..Options::default() })
}

fn cancel(world: &mut World, execution: ExecutionId, reply: Reply) {
    let command = Command::CancelExecution { reason: "enough".into() };
    world.put(0, Input::Submit { execution, command, request: None, reply });
}

/// The callers that have been refused because of a quarantine since the last look.
fn refused(world: &mut World) -> Vec<Reply> {
    let answers = std::mem::take(&mut world.machines[0].replies);
    for answer in answers.values() {
        assert!(matches!(answer, Err(Refusal::Quarantined(_))), "{answer:?}");
    }
    answers.into_keys().collect()
}

/// The number of commits with a quarantine, and of events on the feed.
fn written(world: &World) -> (usize, usize) {
    let batches = world.machines[0].batches.iter();
    (batches.filter(|batch| !batch.quarantined.is_empty()).count(), world.feed_length())
}

#[test]
fn callers_are_refused_only_after_the_quarantine_is_durable() {
    let mut world = panicking();
    let id = world.start(0, "default");
    world.machines[0].quarantine_fault = Some(QuarantineFault::Unknown);
    cancel(&mut world, id, 101);
    // It is written, but the node does not know. Callers that ask now wait as well.
    cancel(&mut world, id, 102);
    world.put(0, Input::Get { execution: id, reply: 103 });
    assert!(world.machines[0].replies.is_empty(), "{:?}", world.machines[0].replies);
    assert_eq!(written(&world), (1, 1));

    world.pass(SECOND);
    assert_eq!(refused(&mut world), [101, 102, 103]);
    assert_eq!(written(&world), (2, 1), "sent again, and written once");
    // Nothing about it is left in memory. Later callers cause it to be read from the store.
    assert_eq!(world.machines[0].node.belief(id), "nothing");
    world.put(0, Input::Get { execution: id, reply: 104 });
    assert_eq!(refused(&mut world), [104]);
    assert_eq!(written(&world), (2, 1));
}

#[test]
fn quarantine_is_committed_under_the_next_lease_if_its_own_is_lost() {
    let mut world = panicking();
    let id = world.start(0, "default");
    world.machines[0].quarantine_fault = Some(QuarantineFault::LeaseLost);
    cancel(&mut world, id, 101);
    world.pass(SECOND);
    assert_eq!(refused(&mut world), [101]);
    assert_eq!(written(&world), (2, 1), "it was sent again under the next lease");
    let head = ready(world.store.heads(&[id])).expect("heads").remove(0);
    assert_eq!((head.sequence, head.quarantined), (1, true));
    // The new life adopts it once, and leaves it alone.
    world.pass(5 * SECOND);
    assert_eq!(world.machines[0].node.belief(id), "nothing");
    assert_eq!(written(&world), (2, 1));
}

#[test]
fn refused_result_does_not_affect_commands_decided_with_it() {
    let timeout = Some(SECOND / 10);
    let mut world = World::with_order(1, &Workflow { timeout, ..order() });
    let id = world.start(0, "default");
    world.machines[0].poison = Some(b"poison");
    let result = |reply, output: &'static str| {
        let task = TaskId { execution: id, run: 1, path: "charge".into(), attempt: 1, sequence: 1 };
        let output = Payload::json(output);
        let command = Command::CompleteTask { task, output, worker: "w".into() };
        Input::Submit { execution: id, command, request: None, reply }
    };
    // The timeout expires and two results arrive before anything is decided.
    world.advance(SECOND / 5);
    let now = world.at(0);
    world.machines[0].node.tick(now);
    world.put_all(0, vec![result(101, "\"poison\""), result(102, "\"sound\"")]);
    let head = ready(world.store.heads(&[id])).expect("heads").remove(0);
    assert!(!head.quarantined, "the timeout is committed without the refused result");
    let mut replies = std::mem::take(&mut world.machines[0].replies);
    let reason = "poison".to_owned();
    assert!(matches!(replies.remove(&101), Some(Err(Refusal::Refused(of))) if of == reason));
    assert!(matches!(replies.remove(&102), Some(Ok(Answer::Recorded { .. }))));
    let listed = ready(world.store.indexed(id)).expect("the store answers").expect("it is there");
    assert_eq!(
        listed.index.state,
        State::TimedOut,
        "a result within the grace period does not undo the timeout"
    );
}
