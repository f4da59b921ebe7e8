//! Which session holds which task: what polls and streams list and give back, and when sessions end.

use std::time::Duration;

use recoup_core::command::{Command, Rejection, TaskId};
use recoup_core::failure_event::FailureKind;
use recoup_core::payload::Payload;
use recoup_engine::node::io::{Answer, Input, Refusal, WorkerMessage};
use recoup_engine::options::Options;
use recoup_store::{Nodes, Overflow};

use crate::fixture::world::{World, poll, ready, session, stream};

const SECOND: Duration = Duration::from_secs(1);

/// Starts one execution and hands its task to a poll of session `s`.
fn handed_to_a_poll(world: &mut World) -> TaskId {
    world.start(0, "default");
    let worker = world.attach(0, poll("default", "s", None));
    let mut handed = world.handed(0, worker);
    assert_eq!(handed.len(), 1);
    handed.remove(0)
}

fn release(world: &mut World, machine: usize, task: &TaskId, session: &str) {
    let (task, session) = (task.clone(), session.to_owned());
    let answer = world.ask(machine, |reply| Input::Release { task, session, reply });
    assert!(matches!(answer, Some(Ok(Answer::Released | Answer::Recorded { .. }))), "{answer:?}");
}

#[test]
fn task_missing_from_a_poll_is_redelivered_at_once_as_the_same_attempt() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world);
    // No time has passed: the empty list alone is enough.
    let worker = world.attach(0, poll("default", "s", Some(&[])));
    assert_eq!(world.handed(0, worker), [task]);
}

#[test]
fn attempt_missing_from_eleven_polls_fails_as_worker_lost() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world);
    for _ in 0..10 {
        let worker = world.attach(0, poll("default", "s", Some(&[])));
        assert_eq!(world.handed(0, worker), std::slice::from_ref(&task));
    }
    let worker = world.attach(0, poll("default", "s", Some(&[])));
    assert_eq!(world.handed(0, worker), [], "the next attempt is not due yet");
    let state = world.snapshot(0, task.execution).state;
    let lost = state.task(&task.path).and_then(|task| task.last_error.as_ref());
    assert_eq!(lost.map(|error| error.error_type.as_str()), Some("recoup.worker_lost"));
}

#[test]
fn task_that_a_poll_lists_is_not_handed_out_again() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world);
    let worker = world.attach(0, poll("default", "s", Some(&[&task])));
    world.pass(2 * SECOND);
    assert_eq!(world.handed(0, worker), []);
    assert_eq!(world.snapshot(0, task.execution).live.len(), 1);
}

#[test]
fn polls_without_a_list_of_held_tasks_can_run_side_by_side() {
    let mut world = World::new(1);
    let (one, two) = (poll("default", "s", None), poll("default", "s", None));
    let (one, two) = (world.attach(0, one), world.attach(0, two));
    world.start(0, "default");
    world.start(0, "default");
    let (first, second) = (world.handed(0, one), world.handed(0, two));
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_ne!(first, second);
    let third = world.attach(0, poll("default", "s", None));
    world.pass(2 * SECOND);
    assert_eq!(world.handed(0, third), [], "tasks of the other polls are not handed out again");
}

#[test]
fn poll_that_lists_held_tasks_supersedes_other_polls_of_its_session() {
    let mut world = World::new(1);
    let first = world.attach(0, poll("default", "s", Some(&[])));
    let second = world.attach(0, poll("default", "s", Some(&[])));
    let told = world.messages_to(0, first);
    assert!(matches!(told[..], [WorkerMessage::Superseded]), "{told:?}");
    world.start(0, "default");
    assert_eq!(world.handed(0, first), [], "a superseded poll gets no task");
    assert_eq!(world.handed(0, second).len(), 1);
    // A second stream of the session supersedes the first.
    let third = world.attach(0, stream("default", "s", &[]));
    let fourth = world.attach(0, stream("default", "s", &[]));
    let told = world.messages_to(0, third);
    assert!(matches!(told.last(), Some(WorkerMessage::Superseded)), "{told:?}");
    assert_eq!(
        world.handed(0, fourth).len(),
        1,
        "no stream lists the task, so it is handed out again"
    );
}

#[test]
fn poll_keeps_its_session_alive_while_it_waits_and_renews_it_at_its_end() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world);
    let worker = world.attach(0, poll("default", "s", Some(&[&task])));
    world.pass(10 * SECOND);
    assert_eq!(
        world.snapshot(0, task.execution).live.len(),
        1,
        "the waiting poll keeps the session alive for longer than 3 s"
    );
    world.put(0, Input::Detach { worker });
    world.pass(Duration::from_millis(2_900));
    assert_eq!(world.snapshot(0, task.execution).live.len(), 1);
    // The time to live, plus the time to ask whether the worker has connected to another node.
    world.pass(Duration::from_millis(600));
    assert_eq!(world.snapshot(0, task.execution).live, []);
    assert_eq!(lost(&world), [("default".to_owned(), "s".to_owned())]);
}

/// The namespaces and sessions of the events about lost sessions.
fn lost(world: &World) -> Vec<(String, String)> {
    let events = world.store.events().into_iter().map(|event| event.row);
    let lost = events.filter(|row| row.kind == FailureKind::WorkerLost && row.execution.is_none());
    lost.map(|row| {
        let event = recoup_store::format::decode_failure_event(row.format, &row.data);
        let event = event.expect("it was just written");
        assert_eq!(event.namespace, row.namespace);
        (event.namespace.to_string(), event.session)
    })
    .collect()
}

#[test]
fn a_result_renews_the_session_of_its_task() {
    let mut world = World::new(1);
    let first = handed_to_a_poll(&mut world);
    world.start(0, "default");
    let worker = world.attach(0, poll("default", "s", Some(&[&first])));
    let second = world.handed(0, worker).remove(0);
    world.pass(2 * SECOND);
    let output = Payload::json("1");
    let execution = second.execution;
    let command =
        recoup_core::command::Command::CompleteTask { task: second, output, worker: String::new() };
    let done = world.ask(0, |reply| Input::Submit { execution, command, request: None, reply });
    assert!(matches!(done, Some(Ok(Answer::Recorded { .. }))), "{done:?}");
    world.pass(2 * SECOND);
    assert_eq!(world.snapshot(0, first.execution).live.len(), 1);
}

#[test]
fn equal_session_ids_in_two_namespaces_are_two_sessions() {
    let mut world = World::new(1);
    let ours = handed_to_a_poll(&mut world);
    world.start(0, "team");
    let worker = world.attach(0, poll("team", "s", Some(&[])));
    let theirs = world.handed(0, worker).remove(0);
    assert_ne!(ours.execution, theirs.execution);
    assert_eq!(
        world.snapshot(0, ours.execution).live.len(),
        1,
        "the empty list of the other session does not affect it"
    );
    for _ in 0..4 {
        world.put(0, Input::Touch { session: session("team", "s") });
        world.pass(SECOND);
    }
    assert_eq!(lost(&world), [("default".to_owned(), "s".to_owned())]);
    assert_eq!(world.snapshot(0, theirs.execution).live.len(), 1);
    world.pass(3 * SECOND);
    assert_eq!(lost(&world).last(), Some(&("team".to_owned(), "s".to_owned())));
}

#[test]
fn sessions_with_equal_ids_that_end_together_are_reported_separately() {
    let mut world = World::new(1);
    handed_to_a_poll(&mut world);
    world.start(0, "team");
    let worker = world.attach(0, poll("team", "s", None));
    assert_eq!(world.handed(0, worker).len(), 1);
    world.pass(4 * SECOND);
    let mut lost = lost(&world);
    lost.sort();
    assert_eq!(lost, [("default".to_owned(), "s".to_owned()), ("team".to_owned(), "s".to_owned())]);
}

#[test]
fn lost_sessions_are_reported_before_their_attempts_fail_across_batches() {
    let mut world = World::with(1, Options { batch_transitions_max: 1, ..Options::default() });
    for id in ["s", "t", "u"] {
        world.start(0, "default");
        let worker = world.attach(0, poll("default", id, None));
        assert_eq!(world.handed(0, worker).len(), 1);
    }
    world.pass(SECOND);
    world.machines[0].batches.clear();
    world.pass(4 * SECOND);
    assert_eq!(lost(&world).len(), 3);
    let batches = world.machines[0].batches.iter();
    let parts = batches.map(|batch| (batch.feed.len(), batch.transitions.len()));
    let parts: Vec<_> = parts.filter(|parts| *parts != (0, 0)).collect();
    assert_eq!(parts[..4], [(1, 0), (1, 0), (1, 1), (0, 1)], "{parts:?}");
}

#[test]
fn task_released_by_its_holder_is_redelivered_once_as_the_same_attempt() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world);
    release(&mut world, 0, &task, "another");
    release(&mut world, 0, &task, "");
    let other = world.attach(0, stream("default", "t", &[]));
    assert_eq!(world.handed(0, other), [], "only its holder can release a task");
    release(&mut world, 0, &task, "s");
    assert_eq!(world.handed(0, other), std::slice::from_ref(&task));
    // The same call arrives again, late.
    release(&mut world, 0, &task, "s");
    let third = world.attach(0, stream("default", "u", &[]));
    assert_eq!(world.handed(0, third), []);
    assert_eq!(world.snapshot(0, task.execution).live[0].session.as_deref(), Some("t"));
}

#[test]
fn sessionless_worker_releases_a_task_by_its_token_alone() {
    let mut world = World::new(1);
    world.start(0, "default");
    let bare = world.attach(0, poll("default", "", None));
    let task = world.handed(0, bare).remove(0);
    release(&mut world, 0, &task, "");
    let other = world.attach(0, poll("default", "", None));
    assert_eq!(world.handed(0, other), std::slice::from_ref(&task));
    let gone = TaskId { attempt: 7, ..task };
    let answer = world.ask(0, |reply| Input::Release { task: gone, session: String::new(), reply });
    let closed = Refusal::Rejected(Rejection::AttemptClosed);
    assert_eq!(answer.expect("at once").err(), Some(closed));
}

/// Shuts the second node down: it finishes its work, gives its lease back and is removed.
fn shut_down_second_node(world: &mut World) {
    let node = world.machines[1].node.node_id().expect("it lives");
    world.machines[1].node.stop();
    world.put(1, Input::Touch { session: session("default", "s") });
    assert!(world.machines[1].node.is_quiet());
    ready(world.store.leave(node)).expect("the model does not fail");
    world.machines.pop();
}

#[test]
fn task_released_before_shutdown_is_not_left_with_its_last_worker() {
    let mut world = World::new(2);
    world.start(1, "default");
    let bare = world.attach(1, poll("default", "", None));
    let task = world.handed(1, bare).remove(0);
    // Its start is recorded.
    world.pass(2 * SECOND);
    release(&mut world, 1, &task, "");
    shut_down_second_node(&mut world);
    let other = world.attach(0, poll("default", "t", None));
    world.pass(Options::default().reconnect_grace + 3 * SECOND);
    assert_eq!(world.handed(0, other), [task], "the same attempt, long before its timeout");
}

#[test]
fn task_released_before_shutdown_is_redelivered_where_its_worker_was_known() {
    let mut world = World::new(2);
    let execution = world.start(1, "default");
    let bare = world.attach(1, poll("default", "", None));
    let task = world.handed(1, bare).remove(0);
    // Its start is recorded, and another node reads it because a caller waits there.
    world.pass(2 * SECOND);
    let until = world.now() + 60 * SECOND;
    world.put(0, Input::Await { execution, until, reply: 1000 });
    world.pass(SECOND);
    release(&mut world, 1, &task, "");
    shut_down_second_node(&mut world);
    let other = world.attach(0, poll("default", "t", None));
    world.pass(Options::default().reconnect_grace + 3 * SECOND);
    assert_eq!(world.handed(0, other), [task], "the same attempt, long before its timeout");
}

#[test]
fn overflowed_task_released_before_shutdown_is_not_left_with_its_worker() {
    let mut world = World::with(2, Options { queue_max: 0, ..Options::default() });
    let bare = world.attach(1, poll("default", "", None));
    let execution = world.start(1, "default");
    let task = world.handed(1, bare).remove(0);
    // Its start is recorded.
    world.pass(2 * SECOND);
    release(&mut world, 1, &task, "");
    world.pass(2 * SECOND);
    let depth = ready(world.store.overflow_depth()).expect("the model answers");
    assert_eq!(depth.into_iter().map(|(_, tasks)| tasks).sum::<u64>(), 1);
    shut_down_second_node(&mut world);
    let state = world.snapshot(0, execution).state;
    let open = state.task(&task.path).and_then(|task| task.open.as_ref()).expect("it is open");
    let started = open.started.as_ref().expect("it was handed out once");
    assert_ne!(
        started.session, "",
        "a start without a session would block the task until its timeout"
    );
}

#[test]
fn task_can_be_released_at_any_node() {
    let mut world = World::new(2);
    let task = handed_to_a_poll(&mut world);
    release(&mut world, 1, &task, "s");
    let other = world.attach(1, poll("default", "t", Some(&[])));
    assert_eq!(world.handed(1, other), std::slice::from_ref(&task));
    let live = &world.snapshot(1, task.execution).live;
    assert_eq!((live.len(), live[0].task.attempt), (1, 1));
}

#[test]
fn release_at_another_node_is_ignored_once_another_session_holds_the_task() {
    let mut world = World::new(2);
    let task = handed_to_a_poll(&mut world);
    release(&mut world, 0, &task, "s");
    let other = world.attach(0, stream("default", "t", &[]));
    assert_eq!(world.handed(0, other), std::slice::from_ref(&task));
    // Its start is recorded.
    world.pass(2 * SECOND);
    release(&mut world, 1, &task, "s");
    let third = world.attach(1, poll("default", "u", Some(&[])));
    assert_eq!(world.handed(1, third), []);
    world.put(0, Input::Touch { session: session("default", "t") });
    world.pass(2 * SECOND);
    assert_eq!(world.handed(1, third), []);
    assert_eq!(world.snapshot(0, task.execution).live[0].session.as_deref(), Some("t"));
}

#[test]
fn undelivered_hand_over_is_repeated_and_a_later_one_is_kept() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world);
    let handed_at = world.now();
    world.put(0, Input::Undelivered { task: task.clone(), handed_at });
    world.pass(Duration::from_millis(1));
    let worker = world.attach(0, poll("default", "t", None));
    assert_eq!(world.handed(0, worker), std::slice::from_ref(&task));
    // A repeated message about the first hand-over does not affect the second.
    world.put(0, Input::Undelivered { task: task.clone(), handed_at });
    let other = world.attach(0, poll("default", "u", None));
    assert_eq!(world.handed(0, other), []);
}

#[test]
fn latest_heartbeat_details_are_kept_until_the_next_hand_over() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world);
    let said = [None, Some("10"), Some("20"), None];
    let kept = [None, Some("10"), Some("20"), Some("20")];
    for (said, kept) in said.into_iter().zip(kept) {
        let (beat, details) = (task.clone(), said.map(Payload::json));
        let answer = world.ask(0, |reply| Input::Heartbeat { task: beat, details, reply });
        assert!(matches!(answer, Some(Ok(Answer::Beat { .. }))), "{answer:?}");
        let live = world.snapshot(0, task.execution).live;
        assert_eq!(live[0].details, kept.map(Payload::json));
    }
    // Listing a task is not a heartbeat.
    world.attach(0, poll("default", "s", Some(&[&task])));
    let live = world.snapshot(0, task.execution).live;
    assert_eq!(live[0].details, Some(Payload::json("20")));
    // The next worker has not reported any details yet.
    let worker = world.attach(0, poll("default", "s", Some(&[])));
    assert_eq!(world.handed(0, worker), std::slice::from_ref(&task));
    assert_eq!(world.snapshot(0, task.execution).live[0].details, None);
}

#[test]
fn task_of_a_dead_worker_without_a_session_ends_only_at_its_timeout() {
    let mut world = World::new(1);
    for (workflow, timeout, error_type) in [
        ("order", 60 * SECOND, "recoup.timeout.start_to_close"),
        ("watched", 2 * SECOND, "recoup.timeout.heartbeat"),
    ] {
        world.start_of(0, "default", workflow);
        let worker = world.attach(0, poll("default", "", None));
        let task = world.handed(0, worker).remove(0);
        world.pass(timeout - SECOND / 2);
        assert_eq!(world.snapshot(0, task.execution).live.len(), 1);
        world.pass(SECOND);
        let state = world.snapshot(0, task.execution).state;
        let error = state.task(&task.path).and_then(|task| task.last_error.as_ref());
        assert_eq!(error.map(|error| error.error_type.as_str()), Some(error_type));
        let (execution, reason) = (task.execution, String::new());
        let command = Command::TerminateExecution { reason, unstarted: Vec::new() };
        world.ask(0, |reply| Input::Submit { execution, command, request: None, reply });
    }
}

#[test]
fn attempt_whose_result_is_refused_stays_open_until_its_session_ends() {
    let mut world = World::new(1);
    let task = handed_to_a_poll(&mut world);
    let execution = task.execution;
    world.machines[0].refuses = Some("too strange");
    let (output, worker) = (Payload::json("1"), String::new());
    let command = recoup_core::command::Command::CompleteTask { task, output, worker };
    let answer = world.ask(0, |reply| Input::Submit { execution, command, request: None, reply });
    assert!(matches!(answer, Some(Err(Refusal::Refused(_)))), "{answer:?}");
    world.machines[0].refuses = None;
    assert_eq!(world.snapshot(0, execution).live.len(), 1);
    world.pass(4 * SECOND);
    assert_eq!(world.snapshot(0, execution).live, [], "its session has ended");
}

#[test]
fn session_whose_worker_just_moved_to_another_node_is_not_lost() {
    let mut world = World::new(2);
    let task = handed_to_a_poll(&mut world);
    // Long enough that the other node takes the task over just before the session ends here.
    world.pass(Duration::from_millis(2_950));
    world.machines[0].hold_back = &["heads"];
    world.attach(1, poll("default", "s", Some(&[&task])));
    world.machines[0].hold_back = &[];
    for input in std::mem::take(&mut world.machines[0].late) {
        world.put(0, input);
    }
    world.pass(2 * SECOND);
    assert_eq!(lost(&world), []);
    assert_eq!(world.snapshot(1, task.execution).live.len(), 1);
}

#[test]
fn nodes_that_lose_the_same_session_both_report_it() {
    let mut world = World::new(2);
    let mut tasks = Vec::new();
    for machine in 0..2 {
        world.start(machine, "default");
        let worker = world.attach(machine, stream("default", "s", &[]));
        tasks.push(world.handed(machine, worker).remove(0));
    }
    assert_eq!(tasks.len(), 2);
    world.pass(20 * SECOND);
    let lost =
        world.store.events().into_iter().filter(|event| event.row.id.starts_with("session-"));
    assert_eq!(lost.count(), 2);
}
