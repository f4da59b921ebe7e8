//! Notices to workers about tasks that they hold, and the effect of a poll that lists such tasks.

use std::time::Duration;

use recoup_core::command::{Command, RequestId, TaskId};
use recoup_core::error::TaskError;
use recoup_core::payload::Payload;
use recoup_core::retry::Verdict;
use recoup_engine::node::io::{Answer, Input, Notice, WorkerMessage};

use crate::fixture::world::{World, poll, session, stream};

const SECOND: Duration = Duration::from_secs(1);

/// Starts one execution of a workflow and hands its task to a poll of session `s`.
fn handed_to_a_poll(world: &mut World, workflow: &str) -> TaskId {
    world.start_of(0, "default", workflow);
    let worker = world.attach(0, poll("default", "s", Some(&[])));
    let mut handed = world.handed(0, worker);
    assert_eq!(handed.len(), 1);
    handed.remove(0)
}

fn submit(world: &mut World, task: &TaskId, command: Command) -> Answer {
    let (execution, request) = (task.execution, None::<RequestId>);
    let answer = world.ask(0, |reply| Input::Submit { execution, command, request, reply });
    answer.expect("at once").expect("it is accepted")
}

fn cancel(world: &mut World, task: &TaskId) {
    submit(world, task, Command::CancelExecution { reason: "enough".to_owned() });
}

fn complete(world: &mut World, task: &TaskId) {
    let (output, worker) = (Payload::json("1"), String::new());
    submit(world, task, Command::CompleteTask { task: task.clone(), output, worker });
}

/// The notices that a poll or stream has received.
fn notices(world: &mut World, worker: u64) -> Vec<(TaskId, Notice)> {
    let told = world.messages_to(0, worker).into_iter().filter_map(|message| match message {
        WorkerMessage::CancelRequested(task) => Some((task, Notice::CancelRequested)),
        WorkerMessage::Closed(task) => Some((task, Notice::Closed)),
        _ => None,
    });
    told.collect()
}

#[test]
fn cancel_wakes_only_the_first_poll_that_lists_the_task() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world, "order");
    let waiting = world.attach(0, poll("default", "s", Some(&[&task])));
    assert_eq!(notices(&mut world, waiting), []);
    cancel(&mut world, &task);
    assert_eq!(notices(&mut world, waiting), [(task.clone(), Notice::CancelRequested)]);
    world.put(0, Input::Detach { worker: waiting });
    let next = world.attach(0, poll("default", "s", Some(&[&task])));
    world.pass(2 * SECOND);
    assert_eq!(notices(&mut world, next), [], "the notice is sent once");
}

#[test]
fn cancel_without_an_open_poll_is_delivered_to_the_next_poll() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world, "order");
    cancel(&mut world, &task);
    let next = world.attach(0, poll("default", "s", Some(&[&task])));
    assert_eq!(notices(&mut world, next), [(task.clone(), Notice::CancelRequested)]);
}

#[test]
fn undelivered_notice_is_sent_again_to_the_next_poll() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world, "order");
    let first = world.attach(0, poll("default", "s", Some(&[&task])));
    cancel(&mut world, &task);
    assert_eq!(notices(&mut world, first).len(), 1);
    world.put(0, Input::Detach { worker: first });
    let (session, notice) = (session("default", "s"), Notice::CancelRequested);
    world.put(0, Input::Untold { session, task: task.clone(), notice });
    let next = world.attach(0, poll("default", "s", Some(&[&task])));
    assert_eq!(notices(&mut world, next), [(task, Notice::CancelRequested)]);
}

#[test]
fn reconnecting_stream_receives_the_cancel_notice_again() {
    let mut world = World::new(1);
    world.start(0, "default");
    let first = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, first).remove(0);
    cancel(&mut world, &task);
    assert_eq!(notices(&mut world, first), [(task.clone(), Notice::CancelRequested)]);
    world.put(0, Input::Detach { worker: first });
    let second = world.attach(0, stream("default", "s", &[&task]));
    assert_eq!(notices(&mut world, second), [(task, Notice::CancelRequested)]);
}

#[test]
fn poll_that_lists_a_completed_task_waits_without_a_notice() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world, "order");
    complete(&mut world, &task);
    // This poll was sent before the answer to the result arrived.
    let worker = world.attach(0, poll("default", "s", Some(&[&task])));
    assert_eq!(notices(&mut world, worker), []);
    let calls = world.machines[0].calls.len();
    world.put(0, Input::Detach { worker });
    world.attach(0, poll("default", "s", Some(&[&task])));
    assert_eq!(world.machines[0].calls.len(), calls, "the store is not asked about it");
}

#[test]
fn stream_that_lists_a_completed_task_is_notified_that_it_is_closed() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world, "order");
    complete(&mut world, &task);
    let worker = world.attach(0, stream("default", "s", &[&task]));
    assert_eq!(notices(&mut world, worker), [(task, Notice::Closed)]);
}

#[test]
fn poll_is_notified_when_an_attempt_that_it_lists_times_out() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world, "watched");
    let worker = world.attach(0, poll("default", "s", Some(&[&task])));
    world.pass(2 * SECOND);
    assert_eq!(notices(&mut world, worker), [(task, Notice::Closed)]);
}

#[test]
fn polls_that_list_a_closed_task_are_notified_once() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world, "order");
    let reason = "enough".to_owned();
    submit(&mut world, &task, Command::TerminateExecution { reason, unstarted: Vec::new() });
    let first = world.attach(0, poll("default", "s", Some(&[&task])));
    assert_eq!(notices(&mut world, first), [(task.clone(), Notice::Closed)]);
    world.put(0, Input::Detach { worker: first });
    let calls = world.machines[0].calls.len();
    for _ in 0..2 {
        let worker = world.attach(0, poll("default", "s", Some(&[&task])));
        assert_eq!(notices(&mut world, worker), []);
        world.put(0, Input::Detach { worker });
    }
    assert_eq!(world.machines[0].calls.len(), calls, "the store is not asked about it");
    // A poll that ends with nothing else to deliver repeats the notice.
    assert_eq!(world.machines[0].node.told_closed(&session("default", "s")), [task]);
    world.attach(0, poll("default", "s", Some(&[])));
    let told = world.machines[0].node.told_closed(&session("default", "s"));
    assert_eq!(told, [], "the worker no longer lists it");
}

#[test]
fn notice_of_a_closed_task_that_did_not_leave_is_sent_once_more() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world, "watched");
    let first = world.attach(0, poll("default", "s", Some(&[&task])));
    world.pass(2 * SECOND);
    assert_eq!(notices(&mut world, first), [(task.clone(), Notice::Closed)]);
    world.put(0, Input::Detach { worker: first });
    let (session, notice) = (session("default", "s"), Notice::Closed);
    world.put(0, Input::Untold { session, task: task.clone(), notice });
    let second = world.attach(0, poll("default", "s", Some(&[&task])));
    assert_eq!(notices(&mut world, second), [(task.clone(), Notice::Closed)]);
    world.put(0, Input::Detach { worker: second });
    let third = world.attach(0, poll("default", "s", Some(&[&task])));
    assert_eq!(notices(&mut world, third), []);
}

#[test]
fn listing_a_task_in_a_poll_is_not_a_heartbeat() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world, "watched");
    for _ in 0..3 {
        world.pass(Duration::from_millis(600));
        let worker = world.attach(0, poll("default", "s", Some(&[&task])));
        assert_eq!(notices(&mut world, worker), []);
        world.put(0, Input::Detach { worker });
    }
    assert_eq!(world.snapshot(0, task.execution).live.len(), 1);
    world.pass(Duration::from_millis(200));
    assert_eq!(world.snapshot(0, task.execution).live, [], "2 s without a heartbeat have passed");
}

#[test]
fn heartbeats_keep_a_task_that_polls_list_from_timing_out() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world, "watched");
    for _ in 0..4 {
        world.pass(Duration::from_millis(1_500));
        let (beat, details) = (task.clone(), None);
        let answer = world.ask(0, |reply| Input::Heartbeat { task: beat, details, reply });
        assert!(matches!(answer, Some(Ok(Answer::Beat { .. }))), "{answer:?}");
        world.attach(0, poll("default", "s", Some(&[&task])));
    }
    assert_eq!(world.snapshot(0, task.execution).live.len(), 1);
}

#[test]
fn reconnecting_a_stream_with_a_task_is_not_a_heartbeat() {
    let mut world = World::new(1);
    world.start_of(0, "default", "watched");
    let first = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, first).remove(0);
    world.pass(Duration::from_millis(1_500));
    world.attach(0, stream("default", "s", &[&task]));
    world.pass(Duration::from_millis(500));
    assert_eq!(world.snapshot(0, task.execution).live, []);
}

#[test]
fn queued_task_waits_on_its_node_for_a_worker_between_two_polls() {
    for id in ["s", ""] {
        let mut world = World::new(1);
        let offer = || poll("default", id, None);
        let first = world.attach(0, offer());
        world.start(0, "default");
        assert_eq!(world.handed(0, first).len(), 1);
        world.start(0, "default");
        world.pass(Duration::from_millis(900));
        assert!(!world.machines[0].calls.contains(&"overflow"), "session {id:?}");
        let second = world.attach(0, offer());
        assert_eq!(world.handed(0, second).len(), 1);
    }
}

#[test]
fn failure_report_is_answered_with_the_retry_decision() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world, "order");
    let failed = Command::FailTask {
        task: task.clone(),
        error: TaskError::new("card.declined", "no money"),
        worker: String::new(),
    };
    let Answer::Recorded { decision: Some(decision), .. } =
        submit(&mut world, &task, failed.clone())
    else {
        panic!("the decision is missing");
    };
    assert!(matches!(decision.verdict, Verdict::Retry { .. }), "{decision:?}");
    let Answer::Recorded { decision, .. } = submit(&mut world, &task, failed) else {
        panic!("the repeated report is accepted");
    };
    assert_eq!(decision, None, "the earlier call recorded the failure");
}

#[test]
fn node_with_stale_state_does_not_report_a_newer_attempt_as_closed() {
    let mut world = World::new(2);
    let first = handed_to_a_poll(&mut world, "order");
    // This node does not learn that the execution has changed.
    world.machines[0].hold_back = &["heads", "commit"];
    // The worker reports to the other node, which schedules the next attempt and hands it out.
    let failed = Command::FailTask {
        task: first.clone(),
        error: TaskError::new("card.declined", "no money"),
        worker: String::new(),
    };
    let execution = first.execution;
    let answer =
        world.ask(1, |reply| Input::Submit { execution, command: failed, request: None, reply });
    answer.expect("at once").expect("it is accepted");
    let worker = world.attach(1, poll("default", "s", Some(&[])));
    world.pass(2 * SECOND);
    let second = world.handed(1, worker).remove(0);
    assert_eq!(second.attempt, 2);
    let worker = world.attach(0, poll("default", "s", Some(&[&second])));
    assert_eq!(notices(&mut world, worker), []);
    world.machines[0].hold_back = &[];
    for input in std::mem::take(&mut world.machines[0].late) {
        world.put(0, input);
    }
    world.pass(SECOND);
    assert_eq!(notices(&mut world, worker), []);
    assert_eq!(world.snapshot(0, execution).live.len(), 1);
}
