//! Executions that change their owner while workers hold their tasks.

use std::time::Duration;

use recoup_core::command::{Command, Rejection, StartBasis, TaskId};
use recoup_core::error::{TaskError, builtin};
use recoup_core::event::Event;
use recoup_core::payload::Payload;
use recoup_core::retry::Schedule;
use recoup_core::time::Timestamp;
use recoup_engine::node::io::{Answer, Input, Offer, Refusal, WorkerKey, WorkerMessage};
use recoup_engine::options::Options;
use recoup_store::{Executions, NodeId, Retention};

use crate::fixture::world::{Reply, World, order, poll, ready, session, stream};

const SECOND: Duration = Duration::from_secs(1);

fn submit(command: Command) -> impl FnOnce(Reply) -> Input<Reply> {
    let execution = command.task().map(|task| task.execution).expect("it is about a task");
    move |reply| Input::Submit { execution, command, request: None, reply }
}

fn cancel(world: &mut World, machine: usize, task: &TaskId) {
    let (execution, reason) = (task.execution, String::new());
    let command = Command::CancelExecution { reason };
    let answer =
        world.ask(machine, |reply| Input::Submit { execution, command, request: None, reply });
    assert!(matches!(answer, Some(Ok(Answer::Done { .. }))), "{answer:?}");
}

/// Lets time pass, with messages that keep a session alive.
fn pass_alive(world: &mut World, machine: usize, id: &str, time: Duration) {
    let until = world.now() + time;
    while world.now() < until {
        world.put(machine, Input::Touch { session: session("default", id) });
        world.pass(SECOND.min(until.since(world.now())));
    }
}

#[test]
fn result_without_a_session_names_the_worker_that_the_history_names() {
    for (fails, ran_for, named) in [
        (false, 2 * SECOND, "worker of s"),
        (true, 2 * SECOND, "worker of s"),
        (false, SECOND / 2, ""),
    ] {
        let mut world = World::new(1);
        let execution = world.start(0, "default");
        let worker = world.attach(0, poll("default", "s", Some(&[])));
        let task = world.handed(0, worker).remove(0);
        // The hand-over is recorded once the attempt has run for a second.
        world.pass(ran_for);
        world.leave(0);
        let second = world.boot();
        // The worker repeats its result at the new server before it opens its session there.
        let worker = String::new();
        let command = match fails {
            true => {
                let error = TaskError::new("card.declined", "no money");
                Command::FailTask { task, error, worker }
            }
            false => Command::CompleteTask { task, output: Payload::json("1"), worker },
        };
        world.ask(second, submit(command)).expect("at once").expect("it is accepted");
        let history = ready(world.store.load(NodeId(0), &[execution])).expect("it is read");
        let rows = history[0].transitions.iter();
        let events = rows.flat_map(|row| row.decode(execution).expect("it is readable").events);
        let mut names = events.filter_map(|event| match event {
            Event::StepCompleted { worker, .. } => Some(worker),
            Event::AttemptFailed(failed) => Some(failed.worker),
            _ => None,
        });
        assert_eq!(names.next().as_deref(), Some(named), "after {ran_for:?}");
    }
}

#[test]
fn task_stays_with_its_worker_when_another_node_takes_a_command() {
    let mut world = World::new(2);
    world.start(0, "default");
    let holder = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, holder).remove(0);
    // Its start is recorded.
    pass_alive(&mut world, 0, "s", 2 * SECOND);
    let other = world.attach(1, stream("default", "t", &[]));
    cancel(&mut world, 1, &task);
    for _ in 0..8 {
        world.put(1, Input::Touch { session: session("default", "t") });
        pass_alive(&mut world, 0, "s", SECOND);
    }
    assert_eq!(world.handed(1, other), [], "the first worker still has the task");
    let told = world.messages_to(0, holder);
    let is_told = told.iter().any(|message| matches!(message, WorkerMessage::CancelRequested(_)));
    assert!(is_told, "{told:?}");
    assert_eq!(world.snapshot(0, task.execution).live.len(), 1);
}

#[test]
fn worker_that_moves_keeps_its_task_long_after_the_grace_period() {
    let mut world = World::new(2);
    let execution = world.start(0, "default");
    let holder = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, holder).remove(0);
    pass_alive(&mut world, 0, "s", 2 * SECOND);
    // The other node has the execution in memory all the while.
    let until = world.now() + 60 * SECOND;
    world.put(1, Input::Await { execution, until, reply: 0 });
    pass_alive(&mut world, 0, "s", Options::default().reconnect_grace + SECOND);
    world.put(0, Input::Detach { worker: holder });
    let other = world.attach(1, stream("default", "t", &[]));
    world.attach(1, Offer { credit: 0, ..stream("default", "s", &[&task]) });
    pass_alive(&mut world, 1, "s", SECOND);
    assert_eq!(world.handed(1, other), []);
    assert_eq!(world.snapshot(1, execution).live[0].session.as_deref(), Some("s"));
}

#[test]
fn task_is_not_handed_out_if_the_lease_is_lost_right_after_its_commit() {
    let mut world = World::new(1);
    world.machines[0].hold_back = &["commit"];
    let worker = world.attach(0, stream("default", "s", &[]));
    world.start_later(0, "default");
    let before = world.machines[0].node.node_id().expect("it lives");
    let mut inputs = std::mem::take(&mut world.machines[0].late);
    assert_eq!(inputs.len(), 1, "{inputs:?}");
    world.machines[0].hold_back = &[];
    // Both answers arrive before the node does anything.
    inputs.push(Input::Renewed(before, Err(recoup_store::Error::LeaseLost)));
    world.put_all(0, inputs);
    assert_ne!(world.machines[0].node.node_id(), Some(before));
    assert_eq!(world.handed(0, worker), [], "the execution is not read under the new lease yet");
}

#[test]
fn attempt_started_before_it_was_due_waits_for_its_worker_at_a_new_owner() {
    let mut world = World::new(2);
    world.start(0, "default");
    let holder = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, holder).remove(0);
    let error = TaskError::new("user.transient", "once more");
    let failed = submit(Command::FailTask { task: task.clone(), error, worker: String::new() });
    assert!(matches!(world.ask(0, failed), Some(Ok(_))));
    // The next attempt is not due for a second, but a worker elsewhere has it already.
    let sequence = world.snapshot(0, task.execution).state.sequence;
    let task = TaskId { attempt: 2, sequence, ..task };
    let (worker, session, at) = ("w".to_owned(), "elsewhere".to_owned(), world.now());
    let started = submit(Command::RecordStart {
        task: task.clone(),
        worker,
        session,
        at,
        basis: StartBasis::Held,
    });
    assert!(matches!(world.ask(0, started), Some(Ok(_))));
    world.leave(0);
    world.machines.remove(0);
    let other = world.attach(0, stream("default", "t", &[]));
    pass_alive(&mut world, 0, "t", 3 * SECOND);
    assert_eq!(world.handed(0, other), [], "within the grace period");
    pass_alive(&mut world, 0, "t", Options::default().reconnect_grace);
    assert_eq!(world.handed(0, other), [task]);
}

#[test]
fn undelivered_at_most_once_attempt_fails_and_another_node_gets_the_next() {
    let mut world = World::delivered_at_most_once(2);
    let execution = world.start(0, "default");
    world.machines[0].hold_back = &["commit"];
    let worker = world.attach(0, poll("default", "s", None));
    world.put(0, Input::Detach { worker });
    world.deliver_the_late_answer(0);
    let other = world.attach(1, stream("default", "t", &[]));
    pass_alive(&mut world, 1, "t", 8 * SECOND);
    let state = world.snapshot(0, execution).state;
    let error = state.task(&"charge".into()).and_then(|task| task.last_error.clone());
    assert_eq!(error.map(|error| error.error_type), Some(builtin::CANCELLED.to_owned()));
    // Any node may claim the next attempt.
    let handed = world.handed(1, other);
    assert_eq!(handed.iter().map(|task| task.attempt).collect::<Vec<_>>(), [2]);
}

#[test]
fn task_undelivered_while_its_start_is_committed_is_redelivered() {
    let mut world = World::new(2);
    world.start(1, "default");
    let bare = world.attach(1, poll("default", "", None));
    let task = world.handed(1, bare).remove(0);
    let handed_at = world.now();
    world.machines[1].hold_back = &["commit"];
    world.machines[1].node.stop();
    world.put(1, Input::Undelivered { task: task.clone(), handed_at });
    world.deliver_the_late_answer(1);
    assert!(world.machines[1].node.is_quiet());
    world.leave(1);
    world.machines.pop();
    let other = world.attach(0, poll("default", "t", None));
    world.pass(Options::default().reconnect_grace + 3 * SECOND);
    assert_eq!(world.handed(0, other), [task], "long before its timeout");
}

#[test]
fn late_decision_of_the_old_owner_loses_to_a_hand_over_by_the_new_one() {
    let mut definition = order();
    let retry = definition.steps.steps[0].retry.as_mut().expect("it has one");
    retry.schedule = Some(Schedule::Constant { interval: 5 * SECOND });
    let mut world = World::with_order(2, &definition);
    let execution = world.start(0, "default");
    let holder = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, holder).remove(0);
    let error = TaskError::new("user.transient", "once more");
    let failed = submit(Command::FailTask { task: task.clone(), error, worker: String::new() });
    assert!(matches!(world.ask(0, failed), Some(Ok(_))));
    // As far as this life knows, no worker has the next attempt. The lease ends before the batch is committed.
    world.machines[0].hold_back = &["commit"];
    world.leave(0);
    let command = Command::TerminateExecution { reason: String::new(), unstarted: Vec::new() };
    let submitted = Input::Submit { execution, command, request: None, reply: 0 };
    world.put(0, submitted);
    assert_eq!(world.machines[0].late.len(), 1, "the batch is on its way to the store");
    let other = world.attach(1, stream("default", "t", &[]));
    pass_alive(&mut world, 1, "t", 6 * SECOND);
    assert_eq!(world.handed(1, other).len(), 1);
    world.machines[0].hold_back = &[];
    for input in std::mem::take(&mut world.machines[0].late) {
        world.put(0, input);
    }
    world.pass(SECOND);
    // The caller was told in the meantime that the outcome is unknown. The termination has taken effect.
    let answer = world.machines[0].replies.remove(&0);
    assert!(matches!(answer, Some(Err(Refusal::OutcomeUnknown))), "{answer:?}");
    let state = world.snapshot(1, execution).state;
    assert!(state.state.is_ended());
    assert!(state.task(&task.path).is_some_and(|task| task.unknown), "{state:?}");
}

#[test]
fn task_handed_out_during_a_pending_claim_goes_to_no_second_worker() {
    fn claims(world: &mut World) -> Vec<Input<Reply>> {
        let late = std::mem::take(&mut world.machines[1].late);
        late.into_iter().filter(|input| matches!(input, Input::Claimed(..))).collect()
    }
    let mut world = World::new(3);
    // A node that publishes credit and reads the execution, but has not claimed anything.
    world.machines[1].hold_back = &["claim", "adopt"];
    let worker = world.attach(1, stream("default", "u", &[]));
    world.pass(2 * SECOND);
    let execution = world.start(0, "default");
    world.pass(SECOND);
    assert!(world.machines[0].calls.contains(&"overflow"));
    world.put(1, Input::Detach { worker });
    world.machines[1].hold_back = &["claim", "adopt", "publish"];
    let until = world.now() + 60 * SECOND;
    world.put(1, Input::Await { execution, until, reply: 1000 });
    // Another node becomes the owner, and waits for a worker that may have the task.
    world.leave(0);
    world.machines[0].is_dead = true;
    world.pass(10 * SECOND);

    let second = world.attach(1, stream("default", "t", &[]));
    for claim in claims(&mut world) {
        world.put(1, claim);
    }
    world.pass(SECOND);
    let first = world.attach(2, stream("default", "s", &[]));
    assert_eq!(world.handed(2, first).len(), 1);
    let claims = claims(&mut world);
    assert!(
        matches!(&claims[..], [Input::Claimed(_, Ok(tasks))] if tasks.len() == 1),
        "{claims:?}"
    );
    for claim in claims {
        world.put(1, claim);
    }
    world.pass(SECOND);
    assert_eq!(world.handed(1, second), [], "the first worker has it");
}

#[test]
fn release_by_a_session_that_does_not_hold_the_task_is_ignored() {
    let mut world = World::delivered_at_most_once(2);
    world.start(0, "default");
    let holder = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, holder).remove(0);
    let (execution, until) = (task.execution, world.now() + 60 * SECOND);
    world.put(1, Input::Await { execution, until, reply: 1000 });
    let session = "t".to_owned();
    let released = task.clone();
    let answer = world.ask(1, |reply| Input::Release { task: released, session, reply });
    assert!(matches!(answer, Some(Ok(Answer::Released))), "{answer:?}");
    assert_eq!(world.snapshot(0, execution).live.len(), 1, "the other session still has it");
}

#[test]
fn node_that_takes_over_by_a_command_waits_for_workers_it_has_long_known() {
    let mut world = World::delivered_at_most_once(2);
    world.start(0, "default");
    let holder = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, holder).remove(0);
    let (execution, until) = (task.execution, world.now() + 60 * SECOND);
    world.put(1, Input::Await { execution, until, reply: 1000 });
    // Longer than the grace period.
    pass_alive(&mut world, 0, "s", 8 * SECOND);
    cancel(&mut world, 1, &task);
    pass_alive(&mut world, 0, "s", 2 * SECOND);
    let state = world.snapshot(0, execution).state;
    assert!(state.open_attempts().any(|open| state.task_id(&open) == task), "{state:?}");
}

#[test]
fn long_queued_task_is_not_handed_out_by_its_former_owner() {
    let mut world = World::new(2);
    let execution = world.start(0, "default");
    let state = world.snapshot(0, execution).state;
    let task = state.open_attempts().map(|open| state.task_id(&open)).next().expect("it waits");
    // The other node waits for a worker that may have the attempt, and then hands it out itself.
    cancel(&mut world, 1, &task);
    world.pass(Options::default().reconnect_grace + SECOND);
    let first = world.attach(1, stream("default", "s", &[]));
    assert_eq!(world.handed(1, first), [task]);
    let second = world.attach(0, stream("default", "t", &[]));
    assert_eq!(world.handed(0, second), [], "the first worker has it");
}

#[test]
fn lone_node_hands_out_a_long_queued_task_without_recording_its_start() {
    let mut world = World::new(1);
    let execution = world.start(0, "default");
    world.pass(4 * Options::default().reconnect_grace);
    let worker = world.attach(0, stream("default", "s", &[]));
    assert_eq!(world.handed(0, worker).len(), 1);
    assert_eq!(world.snapshot(0, execution).state.sequence, 1);
}

#[test]
fn start_that_the_history_rejects_is_not_retried_in_a_loop() {
    let mut world = World::delivered_at_most_once(2);
    let execution = world.start(0, "default");
    let first = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, first).remove(0);
    world.leave(0);
    world.machines[0].is_dead = true;
    pass_alive(&mut world, 1, "t", 2 * SECOND);
    // The history names the first session.
    world.attach(1, stream("default", "t", &[&task]));
    pass_alive(&mut world, 1, "t", 3 * SECOND);
    assert_eq!(world.snapshot(1, execution).live[0].session.as_deref(), Some("t"));
}

#[test]
fn attempt_due_just_after_a_change_of_owner_goes_to_one_worker() {
    let mut world = World::new(2);
    world.start(0, "default");
    let first = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, first).remove(0);
    let error = TaskError::new("user.transient", "once more");
    let failed = submit(Command::FailTask { task: task.clone(), error, worker: String::new() });
    assert!(matches!(world.ask(0, failed), Some(Ok(_))));
    world.put(0, Input::Credit { worker: first, tasks: 1 });
    // The next attempt is not due for a second, and the owner does not learn about this.
    cancel(&mut world, 1, &task);
    let second = world.attach(1, stream("default", "t", &[]));
    for _ in 0..8 {
        world.put(1, Input::Touch { session: session("default", "t") });
        pass_alive(&mut world, 0, "s", SECOND);
    }
    assert_eq!(world.handed(0, first).iter().map(|task| task.attempt).collect::<Vec<_>>(), [2]);
    assert_eq!(world.handed(1, second), [], "the first worker has it");
}

#[test]
fn sessionless_worker_keeps_its_task_when_a_former_owner_takes_over_again() {
    let mut world = World::new(2);
    let bare = world.attach(1, poll("default", "", None));
    world.pass(2 * SECOND);
    let execution = world.start(0, "default");
    // A caller waits, so that the first node keeps the execution in memory.
    let until = world.now() + 60 * SECOND;
    world.put(0, Input::Await { execution, until, reply: 1000 });
    world.pass(SECOND);
    assert_eq!(world.handed(1, bare).len(), 1, "the task goes to the node with an idle worker");
    world.leave(1);
    world.machines[1].is_dead = true;
    let other = world.attach(0, stream("default", "t", &[]));
    pass_alive(&mut world, 0, "t", Options::default().reconnect_grace + 10 * SECOND);
    assert_eq!(world.handed(0, other), [], "its timeout has not expired");
    assert_eq!(world.snapshot(0, execution).live.len(), 1);
}

#[test]
fn expired_execution_that_ended_elsewhere_is_not_recreated_by_its_old_owner() {
    let mut world = World::new(2);
    let execution = world.start(0, "default");
    // The owner does not learn that another node takes over.
    world.machines[0].hold_back = &["heads"];
    let command = Command::TerminateExecution { reason: String::new(), unstarted: Vec::new() };
    let ended = world.ask(1, |reply| Input::Submit { execution, command, request: None, reply });
    assert!(matches!(ended, Some(Ok(Answer::Done { .. }))), "{ended:?}");
    world.pass(120 * SECOND);
    world.set_clock(world.now() + 24 * 3600 * 40 * SECOND);
    let expired = ready(world.store.expire(Timestamp::MAX, 10)).expect("the model answers");
    assert_eq!(expired.executions, 1);
    let command = Command::CancelExecution { reason: String::new() };
    let late = world.ask(0, |reply| Input::Submit { execution, command, request: None, reply });
    let missing = Refusal::Rejected(Rejection::NoSuchExecution);
    assert_eq!(late.expect("at once").map(|_| ()), Err(missing));
    let found = ready(world.store.load(NodeId(0), &[execution])).expect("the model answers");
    assert_eq!(found, []);
}

#[test]
fn undelivered_at_most_once_task_is_recorded_with_the_worker_that_gets_it() {
    let mut world = World::delivered_at_most_once(2);
    let execution = world.start(0, "default");
    world.machines[0].hold_back = &["commit"];
    let gone = world.attach(0, stream("default", "s", &[]));
    world.put(0, Input::Detach { worker: gone });
    world.deliver_the_late_answer(0);
    let worker = world.attach(0, stream("default", "t", &[]));
    let task = world.handed(0, worker).remove(0);
    let state = world.snapshot(0, execution).state;
    assert_eq!(state.started(&task).map(|started| &*started.session), Some("t"));
    // After its owner is gone, that worker keeps the task and no other worker gets it.
    world.leave(0);
    let other = world.attach(1, stream("default", "s", &[]));
    world.attach(1, Offer { credit: 0, ..stream("default", "t", &[&task]) });
    pass_alive(&mut world, 1, "t", 2 * SECOND);
    assert_eq!(world.handed(1, other), []);
    assert_eq!(world.snapshot(1, execution).live[0].session.as_deref(), Some("t"));
}

#[test]
fn heartbeat_and_release_that_arrive_together_are_both_accepted() {
    let mut world = World::new(2);
    world.start(0, "default");
    let holder = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, holder).remove(0);
    // Its start is recorded.
    pass_alive(&mut world, 0, "s", 2 * SECOND);
    world.machines[1].hold_back = &["load"];
    world.put(1, Input::Heartbeat { task: task.clone(), details: None, reply: 1_001 });
    world.put(1, Input::Release { task, session: String::new(), reply: 1_002 });
    world.machines[1].hold_back = &[];
    while let Some(input) = world.machines[1].late.pop() {
        world.put(1, input);
    }
    let beat = world.machines[1].replies.remove(&1_001);
    assert!(matches!(beat, Some(Ok(Answer::Recorded { .. }))), "{beat:?}");
    let released = world.machines[1].replies.remove(&1_002);
    assert!(matches!(released, Some(Ok(Answer::Released))), "{released:?}");
}

#[test]
fn sessionless_worker_keeps_its_new_task_when_another_node_takes_a_command() {
    let mut world = World::new(2);
    world.start(0, "default");
    let bare = world.attach(0, poll("default", "", None));
    let task = world.handed(0, bare).remove(0);
    // Its start is not on record yet.
    cancel(&mut world, 1, &task);
    let other = world.attach(1, stream("default", "t", &[]));
    // Shorter than the grace period of the cancelled run.
    pass_alive(&mut world, 1, "t", Options::default().reconnect_grace + 3 * SECOND);
    assert_eq!(world.handed(1, other), [], "its timeout has not expired");
    let state = world.snapshot(0, task.execution).state;
    assert!(state.open_attempts().any(|open| state.task_id(&open) == task), "{state:?}");
}

#[test]
fn heartbeat_accepted_on_an_outdated_state_keeps_the_task_with_its_worker() {
    let mut world = World::new(2);
    let holder = world.attach(1, stream("default", "s", &[]));
    world.pass(2 * SECOND);
    // The first node does not learn that the second one has handed the task out.
    world.machines[0].hold_back = &["heads"];
    let execution = world.start(0, "default");
    pass_alive(&mut world, 1, "s", 2 * SECOND);
    let task = world.handed(1, holder).remove(0);
    let beat = world.ask(0, |reply| Input::Heartbeat { task, details: None, reply });
    assert!(matches!(beat, Some(Ok(Answer::Beat { .. }))), "{beat:?}");
    world.leave(1);
    world.machines[1].is_dead = true;
    let other = world.attach(0, stream("default", "t", &[]));
    // Recording the start fails at first, because the second node has recorded it already.
    pass_alive(&mut world, 0, "t", Options::default().reconnect_grace + 5 * SECOND);
    assert_eq!(world.handed(0, other), [], "its timeout has not expired");
    assert_eq!(world.snapshot(0, execution).state.sequence, 3);
}

/// A worker without a session has got a task, and the node has lost its lease before the start was recorded.
/// The new life has not read anything yet.
fn lease_lost_after_a_hand_over() -> (World, TaskId, Timestamp) {
    let mut world = World::new(1);
    world.start(0, "default");
    let bare = world.attach(0, poll("default", "", None));
    let (task, handed_at) = (world.handed(0, bare).remove(0), world.now());
    world.machines[0].hold_back = &["load"];
    let before = world.machines[0].node.node_id().expect("it lives");
    world.put(0, Input::Renewed(before, Err(recoup_store::Error::LeaseLost)));
    assert_ne!(world.machines[0].node.node_id(), Some(before));
    (world, task, handed_at)
}

/// The tasks that a second worker gets once executions are read again.
fn second_workers_tasks(mut world: World) -> Vec<TaskId> {
    world.machines[0].hold_back = &[];
    let late = std::mem::take(&mut world.machines[0].late);
    world.put_all(0, late);
    let other = world.attach(0, stream("default", "t", &[]));
    pass_alive(&mut world, 0, "t", Options::default().reconnect_grace + 10 * SECOND);
    world.handed(0, other)
}

#[test]
fn sessionless_worker_keeps_its_new_task_when_the_lease_is_lost() {
    let (world, ..) = lease_lost_after_a_hand_over();
    assert_eq!(second_workers_tasks(world), [], "its timeout has not expired");
}

#[test]
fn undelivered_task_of_a_sessionless_worker_is_redelivered_after_lease_loss() {
    let (mut world, task, handed_at) = lease_lost_after_a_hand_over();
    world.put(0, Input::Undelivered { task: task.clone(), handed_at });
    assert_eq!(second_workers_tasks(world), [task]);
}

#[test]
fn execution_adopted_while_its_last_commit_is_pending_is_read_again() {
    let mut world = World::new(2);
    let execution = world.start(0, "default");
    let worker = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, worker).remove(0);
    // The transition is written, but the answer is delayed.
    world.machines[0].hold_back = &["commit"];
    let error = TaskError::new("user.transient", "once more");
    let failed = Command::FailTask { task: task.clone(), error, worker: String::new() };
    assert!(world.ask(0, submit(failed)).is_none());
    // Another node continues from there, and dies before this node learns of it.
    cancel(&mut world, 1, &task);
    world.leave(1);
    world.machines[1].is_dead = true;
    world.pass(Options::default().adopt_interval);
    world.machines[0].hold_back = &[];
    let late = std::mem::take(&mut world.machines[0].late);
    world.put_all(0, late);
    let head = ready(world.store.heads(&[execution])).expect("the model answers");
    assert!(head[0].sequence >= 3, "{head:?}");
    assert_eq!(world.snapshot(0, execution).state.sequence, head[0].sequence);
}

#[test]
fn node_closed_to_workers_fails_no_attempt_of_an_adopted_execution() {
    let mut world = World::delivered_at_most_once(2);
    let execution = world.start(0, "default");
    let holder = world.attach(0, stream("default", "s", &[]));
    assert_eq!(world.handed(0, holder).len(), 1);
    // The node adopts the other node's execution, and then it stops accepting connections.
    world.leave(0);
    world.machines.remove(0);
    world.pass(2 * SECOND);
    assert!(world.machines[0].calls.contains(&"load"));
    world.put(0, Input::Close);
    world.pass(3 * Options::default().reconnect_grace);
    let state = world.snapshot(0, execution).state;
    let task = state.task(&"charge".into()).expect("it has begun");
    assert_eq!(task.last_error, None, "its worker may still be running");
    assert!(task.open.is_some());
}

#[test]
fn node_closed_to_workers_reports_no_session_as_lost() {
    let mut world = World::new(1);
    let execution = world.start(0, "default");
    let holder = world.attach(0, stream("default", "s", &[]));
    assert_eq!(world.handed(0, holder).len(), 1);
    world.put(0, Input::Close);
    world.put(0, Input::Detach { worker: holder });
    world.pass(9 * SECOND);
    assert_eq!(world.feed_length(), 0, "no worker is reported as lost");
    assert_eq!(world.snapshot(0, execution).live.len(), 1);
}

#[test]
fn node_closed_to_workers_adopts_nothing() {
    let mut world = World::new(2);
    world.start(0, "default");
    world.put(1, Input::Close);
    world.leave(0);
    world.machines.remove(0);
    let before = world.machines[0].calls.iter().filter(|call| **call == "adopt").count();
    world.pass(20 * SECOND);
    let after = world.machines[0].calls.iter().filter(|call| **call == "adopt").count();
    assert_eq!(after, before);
}

/// Kills the only machine while session `s` holds a task of `default`, whose start is recorded. Returns the
/// task, and a worker of another session at the node that starts after the crash, which has become the owner.
fn crashed_with_a_task(world: &mut World) -> (TaskId, WorkerKey) {
    world.start(0, "default");
    let holder = world.attach(0, stream("default", "s", &[]));
    let task = world.handed(0, holder).remove(0);
    world.pass(2 * SECOND);
    world.machines[0].is_dead = true;
    world.boot();
    let other = world.attach(1, stream("default", "t", &[]));
    // The lease of the dead node ends, and its executions are adopted.
    pass_alive(world, 1, "t", Options::default().lease_ttl + 2 * SECOND);
    assert!(world.snapshot(1, task.execution).state.open_attempt_of(&task.path).is_some());
    assert_eq!(world.handed(1, other), [], "the worker may still come back");
    (task, other)
}

#[test]
fn task_whose_worker_does_not_return_after_a_crash_is_handed_out_again_as_the_same_attempt() {
    let mut world = World::new(1);
    let (task, other) = crashed_with_a_task(&mut world);
    pass_alive(&mut world, 1, "t", Options::default().reconnect_grace);
    assert_eq!(world.handed(1, other), [task]);
}

#[test]
fn task_whose_worker_returns_after_a_crash_stays_with_it() {
    let mut world = World::new(1);
    let (task, other) = crashed_with_a_task(&mut world);
    let holder = world.attach(1, stream("default", "s", &[&task]));
    let until = world.now() + 2 * Options::default().reconnect_grace;
    while world.now() < until {
        world.put(1, Input::Touch { session: session("default", "s") });
        pass_alive(&mut world, 1, "t", SECOND);
    }
    assert_eq!((world.handed(1, holder), world.handed(1, other)), (Vec::new(), Vec::new()));
    assert_eq!(world.snapshot(1, task.execution).live.len(), 1);
}

#[test]
fn at_most_once_task_whose_worker_does_not_return_after_a_crash_is_not_handed_out_again() {
    let mut world = World::delivered_at_most_once(1);
    let (task, other) = crashed_with_a_task(&mut world);
    pass_alive(&mut world, 1, "t", Options::default().reconnect_grace);
    assert_eq!(world.handed(1, other), []);
    let state = world.snapshot(1, task.execution).state;
    let error = state.error.as_ref().expect("the execution has failed");
    assert_eq!(error.error_type, builtin::OUTCOME_UNKNOWN);
    let cause = error.cause.as_ref().map(|cause| cause.error_type.as_str());
    assert_eq!(cause, Some(builtin::WORKER_LOST));
}
