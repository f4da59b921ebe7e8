//! Tests of executions with many steps. No transition grows with the number of steps, and work that takes
//! several transitions is finished by the node that continues from the folded state, whichever it is.

use super::*;
use crate::evolve::Misfit;
use crate::limits::{
    COMPENSATIONS_LISTED_MAX, HISTORY_EVENTS_CLEANUP_MAX, HISTORY_EVENTS_MAX, TRANSITION_BYTES_MAX,
    TRANSITION_EVENTS_MAX,
};

const MANY: usize = 10_000;
/// Each attempt is closed by one event, and its compensation is parked by another. The events that list
/// compensations are few.
const PARTS: usize = 2 * MANY / TRANSITION_EVENTS_MAX;

/// An execution whose attempts are all open at the same time, as the items of a loop will be.
fn wide(count: usize, mut change: impl FnMut(&mut Workflow)) -> Rig {
    let steps = (0..count).map(|n| step(&format!("s{n}"), 3));
    let mut workflow = workflow(steps.collect());
    change(&mut workflow);
    let plan = Plan::of_accepted(&workflow, 1).expect("it compiles");
    let mut rig = Rig::of(&super::workflow(vec![step("s0", 3)]), Payload::null());
    rig.plan = plan;
    let mut folded = rig.folded.take();
    let mut begun = 1;
    while begun < count {
        let part = begun..count.min(begun + 400);
        let events = part.clone().flat_map(|n| {
            let path = StepPath::from(format!("s{n}"));
            let input = Payload::null();
            let started = Event::StepStarted {
                path: path.clone(),
                generation: 0,
                input: PayloadSource::Inline(input),
                first: None,
            };
            [started, Event::AttemptScheduled { path, attempt: 1, at: rig.now }]
        });
        folded = Some(followed_by(folded, rig.now, events.collect()).expect("it folds"));
        begun = part.end;
    }
    rig.state = folded.clone().map(Box::new);
    rig.folded = folded;
    rig.terse = None;
    rig.events.clear();
    rig
}

pub fn followed_by(
    state: Option<Execution>,
    decided_at: Timestamp,
    events: Vec<Event>,
) -> Result<Execution, Misfit> {
    let (id, sequence) = state.as_ref().map(|state| (state.id, state.sequence)).expect("it runs");
    fold(state, id, &Transition { sequence: sequence + 1, decided_at, events })
}

/// Wakes the execution until no work is due, and returns the number of transitions.
fn wake_until_idle(rig: &mut Rig) -> usize {
    let mut transitions = 0;
    while next_wake(rig.state(), &rig.plan).is_some_and(|at| at <= rig.now) {
        // Continue from the folded state, as any other node would.
        rig.state = rig.folded.clone().map(Box::new);
        rig.submit(Command::Wake).expect("it is due");
        transitions += 1;
    }
    transitions
}

fn count(rig: &Rig, kind: impl Fn(&Event) -> bool) -> usize {
    rig.events.iter().filter(|event| kind(event)).count()
}

#[test]
fn termination_of_ten_thousand_attempts_takes_several_transitions() {
    let mut rig = wide(MANY, |_| {});
    assert_eq!(rig.state().open_attempt_count(), MANY);
    rig.submit(terminate("stop")).expect("it runs");
    assert!(rig.state().is_stopping() && !rig.state().state.is_ended());
    let middle = rig.state().open_attempts().next().map(|open| rig.state().task_id(&open));
    // Commands that arrive in between are answered, and do not change how the execution ends.
    rig.submit(Command::CancelExecution { reason: "too late".into() }).expect("it has not ended");
    rig.submit(terminate("once more")).expect("it is under way");
    let result = |task| Command::CompleteTask { task, output: Payload::null(), worker: "w".into() };
    let answer = rig.submit(result(middle.expect("most are open")));
    assert!(matches!(answer, Ok(()) | Err(Rejection::AttemptClosed)));

    let parts = wake_until_idle(&mut rig);
    assert!((PARTS - 5..=PARTS + 5).contains(&parts), "{parts}");
    assert_eq!(rig.ended(), (State::Terminated, CompensationState::Parked));
    let ends = |event: &Event| matches!(event, Event::ExecutionEnded { .. });
    assert_eq!(count(&rig, ends), 1);
    assert!(rig.events.last().is_some_and(ends), "the end is the last thing that happens");
    assert_eq!(count(&rig, |event| matches!(event, Event::AttemptScheduled { .. })), 0);
    assert_eq!(rig.state().error.as_ref().map(|error| &*error.message), Some("stop"));
    assert_eq!(rig.state().compensations().len(), MANY, "each may have taken effect");
    let started = |kind: &&FailureKind| **kind == FailureKind::CompensationStarted;
    assert_eq!(rig.kinds.iter().filter(started).count(), 1, "compensation starts once");
    assert!(rig.state().termination.is_none());
}

#[test]
fn resume_continues_unfinished_work_one_transition_at_a_time() {
    let mut rig = wide(2_000, |_| {});
    rig.submit(terminate("stop")).expect("it runs");
    let open = rig.state().open_attempt_count();
    assert!(open > 900);
    let mut decider = Decider::new(rig.state.take(), &rig.plan, rig.now, 42);
    decider.resume();
    assert!(decider.is_spent(), "one part fills a transition");
    let state = decider.finish().state.expect("it runs");
    assert!(state.open_attempt_count() < open && !state.state.is_ended());

    let mut settled = Decider::new(rig.folded.take().map(Box::new), &rig.plan, rig.now, 42);
    while settled.state.as_deref().is_some_and(can_advance) {
        settled.events.clear();
        settled.bytes = 0;
        settled.resume();
    }
    settled.events.clear();
    settled.resume();
    assert!(settled.finish().events.is_empty(), "no unfinished work is left");
}

#[test]
fn a_termination_that_fits_is_one_transition() {
    let mut rig = wide(300, |_| {});
    rig.submit(terminate("stop")).expect("it runs");
    assert_eq!(rig.ended(), (State::Terminated, CompensationState::Parked));
    assert_eq!(count(&rig, |event| matches!(event, Event::RunStopped { .. })), 0);
}

#[test]
fn cancelled_run_with_many_attempts_is_compensated_page_by_page() {
    const COUNT: usize = 2_500;
    let mut rig = wide(COUNT, |workflow| workflow.cleanup_timeout = Some(100 * SECOND));
    rig.submit(Command::CancelExecution { reason: "enough".into() }).expect("it runs");
    assert_eq!(wake_until_idle(&mut rig), 0, "live attempts have a grace period");
    rig.now = rig.now + 10 * SECOND;
    assert!(wake_until_idle(&mut rig) >= COUNT / TRANSITION_EVENTS_MAX);
    assert_eq!(rig.state().phase, Phase::Compensation);
    assert_eq!(rig.state().compensations().len(), COMPENSATIONS_LISTED_MAX);
    // In reverse order, across the boundary between two lists.
    for n in (COUNT - COMPENSATIONS_LISTED_MAX - 2..COUNT).rev() {
        rig.complete(&format!("s{n}/compensate"));
    }
    assert_eq!(rig.state().compensations().len(), 2 * COMPENSATIONS_LISTED_MAX);
    // Once the cleanup has timed out, the remaining compensations do not run.
    rig.now = rig.now + 100 * SECOND;
    assert!(wake_until_idle(&mut rig) >= COUNT / TRANSITION_EVENTS_MAX);
    assert_eq!(rig.ended(), (State::Cancelled, CompensationState::Parked));
    assert_eq!(rig.state().compensations().len(), COUNT);
    let done = COMPENSATIONS_LISTED_MAX + 2;
    let parked = |event: &Event| matches!(event, Event::CompensationParked { .. });
    assert_eq!(count(&rig, parked), COUNT - done);
    // An operator retries the parked compensations, as many as one transition has room for.
    let retry = Command::RetryCompensation { step: None, reason: String::new() };
    rig.submit(retry).expect("they are parked");
    rig.submit(terminate("no more")).expect("compensations run again");
    wake_until_idle(&mut rig);
    assert_eq!(rig.ended(), (State::Cancelled, CompensationState::Parked));
}

/// Makes the history count as having this many events.
fn set_events(rig: &mut Rig, events: usize) {
    for state in [rig.state.as_deref_mut(), rig.folded.as_mut()] {
        state.expect("it was started").event_count = u32::try_from(events).expect("it is small");
    }
    rig.terse = None;
}

/// An execution in which `a` has completed and a worker holds the attempt of `b`, with a history of this
/// many events.
fn under_way(events: usize) -> (Rig, TaskId) {
    let mut rig = Rig::new(&workflow(vec![step("a", 3), step("b", 3), step("c", 3)]));
    rig.complete("a");
    let task = rig.open();
    rig.submit(start_of(&task, "s1", StartBasis::Held)).expect("it is open");
    set_events(&mut rig, events);
    (rig, task)
}

fn start_of(task: &TaskId, session: &str, basis: StartBasis) -> Command {
    let (worker, session) = ("w".to_owned(), session.to_owned());
    let at = Timestamp::from_micros(5_000_000);
    Command::RecordStart { task: task.clone(), worker, session, at, basis }
}

/// An execution whose compensation of `a` is parked, with a history of this many events.
fn parked(events: usize) -> Rig {
    let (mut rig, _) = under_way(0);
    rig.fail("b", final_error());
    rig.fail("a/compensate", final_error());
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Parked));
    set_events(&mut rig, events);
    rig
}

fn cancel(reason: &str) -> Command {
    Command::CancelExecution { reason: reason.into() }
}

fn request(id: &str) -> RequestId {
    RequestId { id: id.into(), digest: 1 }
}

/// Which commands a full history accepts: those that end something, however long it is. Each of the others
/// is also tried just below the limit, where it is accepted.
#[test]
fn full_history_rejects_growth_but_accepts_commands_that_end_something() {
    const LIMIT: usize = HISTORY_EVENTS_MAX;
    let is_too_long = |error: &TaskError| error.error_type == builtin::HISTORY_TOO_LONG;
    let refused = Err(Rejection::HistoryFull { events_max: LIMIT });
    type Asked = fn(&TaskId) -> Command;
    let grows: [(&str, Asked); 3] = [
        ("another session claims the attempt", |task| start_of(task, "s2", StartBasis::Held)),
        ("another session releases it", |task| start_of(task, "s2", StartBasis::GivenBack)),
        ("a heartbeat at another node", |task| {
            let (task, worker, session) = (task.clone(), String::new(), String::new());
            let at = Timestamp::from_micros(6_000_000);
            Command::RecordStart { task, worker, session, at, basis: StartBasis::Held }
        }),
    ];
    for (name, command) in grows {
        for (events, expected) in [(LIMIT - 1, Ok(())), (LIMIT, refused.clone())] {
            let (mut rig, task) = under_way(events);
            let recorded = start_of(&task, "s1", StartBasis::Held);
            rig.submit(recorded).expect("a repeated start does not grow the history");
            assert_eq!(rig.submit(command(&task)), expected, "{name}, at {events}");
        }
    }
    for (events, expected) in [(LIMIT - 1, Ok(())), (LIMIT, refused.clone())] {
        // The first cancel ends the run. A second one would record its request id and nothing else.
        let (mut rig, _) = under_way(0);
        rig.submit_as(cancel("x"), Some(&request("r1"))).expect("it runs");
        set_events(&mut rig, events);
        assert_eq!(rig.submit_as(cancel("x"), Some(&request("r2"))), expected, "at {events}");
        let again = rig.submit_as(cancel("x"), Some(&request("r1")));
        again.expect("a known request id is answered");
        rig.submit(cancel("x")).expect("without a request id nothing is recorded");
    }
    let limit = HISTORY_EVENTS_CLEANUP_MAX;
    let retry = Command::RetryCompensation { step: None, reason: String::new() };
    let full = Err(Rejection::HistoryFull { events_max: limit });
    for (events, expected) in [(limit - 1, Ok(())), (limit, full)] {
        let mut rig = parked(events);
        assert_eq!(rig.submit_as(retry.clone(), Some(&request("r"))), expected, "at {events}");
    }

    // Commands that end something.
    let ends: [(&str, Asked); 6] = [
        ("a result", |task| Command::CompleteTask {
            task: task.clone(),
            output: Payload::null(),
            worker: "w".into(),
        }),
        ("an error", |task| Command::FailTask {
            task: task.clone(),
            error: declined(),
            worker: "w".into(),
        }),
        ("a timeout", |task| Command::TimeOutTask {
            task: task.clone(),
            timeout: AttemptTimeout::StartToClose,
            possibly_started: true,
            worker: "w".into(),
        }),
        ("a lost worker", |task| Command::LoseWorker { task: task.clone(), worker: "w".into() }),
        ("a hand-over that is no longer possible", |task| {
            start_of(task, "s2", StartBasis::HandOver { unsent: None })
        }),
        ("a hand-over after one that never left", |task| {
            let unsent = Some(Timestamp::from_micros(5_000_000));
            start_of(task, "s2", StartBasis::HandOver { unsent })
        }),
    ];
    for (name, command) in ends {
        let (mut rig, task) = under_way(LIMIT);
        assert_eq!(rig.submit(command(&task)), Ok(()), "{name}");
        let stop = rig.state().stop.as_ref().unwrap_or_else(|| panic!("{name} ends the run"));
        assert!(is_too_long(&stop.error), "{name}: {:?}", stop.error);
        assert!(!rig.started().contains(&"c".to_owned()), "{name} begins no further step");
        assert_ne!(rig.state().phase, Phase::Steps, "{name}: the clean-up runs");
    }
    for (name, command) in [("cancel", cancel("x")), ("terminate", terminate("x"))] {
        let (mut rig, _) = under_way(LIMIT);
        let asked = rig.submit_as(command, Some(&request("r")));
        assert_eq!(asked, Ok(()), "{name}");
        assert!(rig.state().is_stopping() || rig.state().state.is_ended(), "{name}");
    }
    let (mut rig, task) = under_way(LIMIT);
    rig.submit(cancel("x")).expect("it runs");
    rig.now = rig.now + 100 * SECOND;
    rig.submit(Command::Wake).expect("the grace period is over");
    assert!(rig.state().open_attempts().all(|open| open.path != task.path));
    let skip = Command::SkipCompensation { step: "a".into(), reason: "by hand".into() };
    let mut rig = parked(limit);
    assert_eq!(rig.submit_as(skip, Some(&request("r"))), Ok(()));
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
}

#[test]
fn first_start_of_an_attempt_is_recorded_even_if_the_history_is_full() {
    let mut rig = Rig::new(&workflow(vec![step("a", 3)]));
    let task = rig.open();
    set_events(&mut rig, HISTORY_EVENTS_MAX);
    let started = rig.submit(start_of(&task, "s1", StartBasis::HandOver { unsent: None }));
    assert_eq!(started, Ok(()), "each attempt may record one start");
    assert_eq!(rig.state().started(&task).map(|by| &*by.session), Some("s1"));
}

/// Submits a command and wakes the execution until nothing is due. Returns the bytes of each transition.
fn bytes_per_transition(rig: &mut Rig, command: Command) -> Vec<usize> {
    let mut bytes = Vec::new();
    let mut next = Some(command);
    while let Some(command) = next.take() {
        let before = rig.events.len();
        rig.submit(command).expect("it is due");
        bytes.push(rig.events[before..].iter().map(Event::size).sum());
        let is_due = next_wake(rig.state(), &rig.plan).is_some_and(|at| at <= rig.now);
        next = is_due.then_some(Command::Wake);
    }
    bytes
}

#[test]
fn termination_with_a_long_reason_is_split_into_transitions_by_bytes() {
    const COUNT: usize = 900;
    const REASON: usize = 16 * 1024;
    let mut rig = wide(COUNT, |_| {});
    let bytes = bytes_per_transition(&mut rig, terminate(&"x".repeat(REASON)));
    assert_eq!(rig.ended(), (State::Terminated, CompensationState::Parked));
    // The event that reaches the limit is still included, together with the events that belong to it.
    let most = TRANSITION_BYTES_MAX + 3 * 2 * REASON;
    assert!(bytes.iter().all(|bytes| *bytes < most), "{bytes:?}");
    // Each attempt is closed and its step's compensation is parked, each time with the full reason.
    let parts = 2 * COUNT * REASON / TRANSITION_BYTES_MAX;
    assert!((parts..=parts + 3).contains(&bytes.len()), "{bytes:?}");
}

#[test]
fn transition_takes_no_more_results_once_its_byte_limit_is_reached() {
    const OUTPUT: usize = 1024 * 1024;
    let mut rig = wide(10, |_| {});
    let tasks: Vec<_> =
        rig.state().open_attempts().map(|open| rig.state().task_id(&open)).collect();
    let output = Payload::json(format!("\"{}\"", "x".repeat(OUTPUT)));
    let mut decider = Decider::new(rig.state.take(), &rig.plan, rig.now, 42);
    let mut decided = 0;
    for task in tasks {
        if decider.is_spent() {
            break;
        }
        let (output, worker) = (output.clone(), "w".to_owned());
        let result = Command::CompleteTask { task, output, worker };
        decider.decide(result, None).expect("it is open");
        decided += 1;
    }
    assert_eq!(decided, TRANSITION_BYTES_MAX / OUTPUT, "the rest belongs to the next transition");
}

#[test]
fn history_limit_stops_the_next_step_but_not_the_cleanup() {
    let mut rig = Rig::new(&workflow(vec![step("a", 3), step("b", 3)]));
    set_events(&mut rig, HISTORY_EVENTS_MAX - 1);
    rig.complete("a");
    let error = rig.state().stop.as_ref().map(|stop| &*stop.error.error_type);
    assert_eq!(error, Some(builtin::HISTORY_TOO_LONG));
    assert_eq!(rig.started(), ["a", "a/compensate"], "b does not begin");
    rig.fail("a/compensate", declined());
    rig.complete("a/compensate");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));

    let mut rig = Rig::new(&workflow(vec![step("a", 3), step("b", 3)]));
    rig.complete("a");
    rig.fail("b", final_error());
    set_events(&mut rig, HISTORY_EVENTS_CLEANUP_MAX);
    rig.fail("a/compensate", declined());
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Parked), "the execution still ends");
}

#[test]
fn schedule_to_close_times_out_open_steps_in_the_order_they_began() {
    let timeout = |workflow: &mut Workflow| {
        for step in &mut workflow.steps.steps {
            let task = step.kind.task_mut().expect("it is a task");
            task.timeouts.schedule_to_close = Some(30 * SECOND);
            step.on_error = OnError::Ignore;
        }
    };
    let mut rig = wide(3, timeout);
    assert_eq!(next_wake(rig.state(), &rig.plan), Some(rig.now + 30 * SECOND));
    rig.wake();
    let timed_out = rig.events.iter().filter_map(|event| match event {
        Event::AttemptFailed(failed) => Some((&*failed.error.error_type, failed.path.as_str())),
        _ => None,
    });
    let all = ["s0", "s1", "s2"].map(|path| (builtin::SCHEDULE_TO_CLOSE, path));
    assert_eq!(timed_out.collect::<Vec<_>>(), all);
}

#[test]
fn nested_step_is_counted_in_the_scope_that_its_path_names() {
    let lines = StepKind::Try(vec![step("first", 1)].into());
    let lines = Step { kind: lines, retry: None, compensate: None, ..step("lines", 1) };
    let rig = Rig::new(&workflow(vec![lines]));
    let begins = |path: &str| Event::BlockStarted {
        path: path.into(),
        generation: 0,
        part: Some(Part::Body),
        deadline: None,
    };
    let orphan = followed_by(rig.folded.clone(), rig.now, vec![begins("other[a].pack")]);
    assert!(orphan.is_err_and(|misfit| misfit.what == "the step around it has not begun"));
    let childless = followed_by(rig.folded.clone(), rig.now, vec![begins("lines.first.pack")]);
    assert!(childless.is_err_and(|misfit| misfit.what == "the step around it runs no steps"));

    let keyed = followed_by(rig.folded.clone(), rig.now, vec![begins("lines[a].pack")]);
    let what = "the step around it has no branches or items";
    assert!(keyed.is_err_and(|misfit| misfit.what == what));

    let lines = Event::LoopStarted {
        path: "each".into(),
        generation: 0,
        items: PayloadSource::Inline(Payload::json("[1, 2]")),
        keys: Some(vec!["a".into(), "b".into()]),
        concurrency: 2,
        deadline: None,
    };
    let output = PayloadSource::Inline(Payload::null());
    let ends = Event::BlockCompleted { path: "each[a].pack".into(), output };
    let begun = ["each[a].pack", "each[b].pack", "each[a].pack.wrap"].map(begins);
    let events = std::iter::once(lines).chain(begun).chain([ends]).collect();
    let state = followed_by(rig.folded.clone(), rig.now, events).expect("it folds");
    state.assert_kept();
    let counters = |path: &str| {
        let node = state.node(&path.into()).expect("it has begun");
        let Counters { begun, running, .. } = state.counters(&node.scope);
        (begun, running)
    };
    assert_eq!(counters("lines"), (2, 2), "`each` stands beside it");
    assert_eq!(counters("each[a].pack"), (1, 0));
    assert_eq!(counters("each[b].pack"), (1, 1));
    assert_eq!(counters("each[a].pack.wrap"), (1, 1));
    assert_eq!(state.steps().count(), 6);
}

#[test]
fn step_that_runs_again_keeps_one_ledger_entry_with_its_latest_outcome() {
    let mut rig = Rig::new(&workflow(vec![step("a", 1), step("b", 1)]));
    rig.complete("a");
    rig.lose();
    let due = rig.state().compensations().iter().map(|one| one.outcome);
    let outcomes = [CompensationOutcome::Unknown, CompensationOutcome::Completed];
    assert_eq!(due.collect::<Vec<_>>(), outcomes, "b may have taken effect");

    // As a later run will do: the same generation begins again, and this time its outcome is known.
    let mut rig = Rig::new(&workflow(vec![step("a", 2), step("b", 1)]));
    rig.lose();
    let begins = Event::StepStarted {
        path: "a".into(),
        generation: 0,
        input: PayloadSource::Inline(Payload::null()),
        first: None,
    };
    let again = followed_by(rig.folded.clone(), rig.now, vec![begins]).expect("it folds");
    let unlisted: Vec<_> = again.ledger.unlisted().map(|effect| effect.outcome).collect();
    assert_eq!(unlisted, [CompensationOutcome::Unknown]);
    let attempt = Event::AttemptScheduled { path: "a".into(), attempt: 1, at: rig.now };
    let completed = Event::StepCompleted {
        path: "a".into(),
        attempt: 1,
        output: Payload::null(),
        worker: String::new(),
    };
    let events = vec![attempt, completed];
    let done = followed_by(Some(again), rig.now, events).expect("it folds");
    let unlisted: Vec<_> = done.ledger.unlisted().map(|effect| effect.outcome).collect();
    assert_eq!(unlisted, [CompensationOutcome::Completed], "one entry for a path and generation");
}
