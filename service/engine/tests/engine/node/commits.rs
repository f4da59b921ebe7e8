//! An attempt that a transition does not mention stays where it is, although its start is on record: waiting
//! again, or with another worker.

use std::time::Duration;

use recoup_core::command::{Command, TaskId};
use recoup_engine::node::io::{Answer, Input, Output};

use crate::fixture::world::{World, stream};

const SECOND: Duration = Duration::from_secs(1);

/// Starts one execution. A stream of session `s` got its task, the start was recorded, and the task was given back.
fn given_back(world: &mut World) -> TaskId {
    world.start(0, "default");
    let first = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, first).remove(0);
    world.pass(2 * SECOND);
    assert_eq!(on_record(world, &task).as_deref(), Some("s"));
    let (released, session) = (task.clone(), "s".to_owned());
    let answer = world.ask(0, |reply| Input::Release { task: released, session, reply });
    assert!(matches!(answer, Some(Ok(Answer::Released))), "{answer:?}");
    task
}

/// The session that has the task according to the history.
fn on_record(world: &mut World, task: &TaskId) -> Option<String> {
    let state = world.snapshot(0, task.execution).state;
    state.started(task).map(|started| started.session.clone())
}

/// Cancels the run, in a transition that does not mention the attempt: its worker may still finish it.
fn cancel(world: &mut World, task: &TaskId) {
    let (execution, request) = (task.execution, None);
    let command = Command::CancelExecution { reason: "enough".to_owned() };
    let answer = world.ask(0, |reply| Input::Submit { execution, command, request, reply });
    answer.expect("at once").expect("it is accepted");
}

#[test]
fn released_task_is_handed_out_at_once_after_an_unrelated_transition() {
    let mut world = World::new(1);
    let task = given_back(&mut world);
    cancel(&mut world, &task);
    let other = world.attach(0, stream("default", "t", &[]));
    assert_eq!(world.handed(0, other), [task]);
}

#[test]
fn second_hand_over_is_recorded_after_an_unrelated_transition() {
    let mut world = World::new(1);
    let task = given_back(&mut world);
    let other = world.attach(0, stream("default", "t", &[]));
    assert_eq!(world.handed(0, other), std::slice::from_ref(&task));
    cancel(&mut world, &task);
    world.pass(2 * SECOND);
    assert_eq!(on_record(&mut world, &task).as_deref(), Some("t"));
}

#[test]
fn batch_drafted_during_a_commit_is_sent_before_callers_are_answered() {
    let mut world = World::new(1);
    world.machines[0].hold_back = &["commit"];
    world.start_later(0, "default");
    world.start_later(0, "default");
    world.start_later(0, "default");
    let first = world.machines[0].late.remove(0);
    let (now, node) = (world.at(0), &mut world.machines[0].node);
    node.handle(first, now);
    let Some(Output::Commit(_, batch)) = node.output() else {
        panic!("the store waits");
    };
    assert_eq!(batch.transitions.len(), 2);
    assert!(node.output().is_none(), "the first caller is answered only after that");
    node.flush(now);
    assert!(matches!(node.output(), Some(Output::Reply { answer: Ok(_), .. })));
}
