//! Executions with many steps: no transition grows with them, and what takes several transitions is
//! finished by whoever goes on from the folded state.

use super::*;
use crate::evolve::Misfit;
use crate::limits::{
    COMPENSATIONS_LISTED_MAX, HISTORY_EVENTS_CLEANUP_MAX, HISTORY_EVENTS_MAX, TRANSITION_EVENTS_MAX,
};

const MANY: usize = 10_000;
/// Closed, listed and parked.
const PARTS: usize = 2 * MANY / TRANSITION_EVENTS_MAX;

/// An execution whose attempts are all open at a time, as the items of a loop will be.
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

fn followed_by(
    state: Option<Execution>,
    decided_at: Timestamp,
    events: Vec<Event>,
) -> Result<Execution, Misfit> {
    let (id, sequence) = state.as_ref().map(|state| (state.id, state.sequence)).expect("it runs");
    fold(state, id, &Transition { sequence: sequence + 1, decided_at, events })
}

/// Wakes the execution until nothing is to be done at once; gives the number of transitions.
fn go_on(rig: &mut Rig) -> usize {
    let mut transitions = 0;
    while next_wake(rig.state(), &rig.plan).is_some_and(|at| at <= rig.now) {
        // Any node reads the same state.
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
fn a_termination_closes_ten_thousand_attempts_in_parts() {
    let mut rig = wide(MANY, |_| {});
    assert_eq!(rig.state().open_attempt_count(), MANY);
    rig.submit(terminate("stop")).expect("it runs");
    assert!(rig.state().is_stopping() && !rig.state().state.is_ended());
    let middle = rig.state().open_attempts().next().map(|open| rig.state().task_id(&open));
    // Whatever comes in between is answered, and changes nothing about the end.
    rig.submit(Command::CancelExecution { reason: "too late".into() }).expect("it has not ended");
    rig.submit(terminate("once more")).expect("it is under way");
    let result = |task| Command::CompleteTask { task, output: Payload::null(), worker: "w".into() };
    let answer = rig.submit(result(middle.expect("most are open")));
    assert!(matches!(answer, Ok(()) | Err(Rejection::AttemptClosed)));

    let parts = go_on(&mut rig);
    assert!((PARTS - 5..=PARTS + 5).contains(&parts), "{parts}");
    assert_eq!(rig.ended(), (State::Terminated, CompensationState::Parked));
    let ends = |event: &Event| matches!(event, Event::ExecutionEnded { .. });
    assert_eq!(count(&rig, ends), 1);
    assert!(rig.events.last().is_some_and(ends), "the end is the last thing that happens");
    assert_eq!(count(&rig, |event| matches!(event, Event::AttemptScheduled { .. })), 0);
    assert_eq!(rig.state().error.as_ref().map(|error| &*error.message), Some("stop"));
    assert_eq!(rig.state().compensations().len(), MANY, "each may have taken effect");
    let started = |kind: &&FailureKind| **kind == FailureKind::CompensationStarted;
    assert_eq!(rig.kinds.iter().filter(started).count(), 1, "it is one compensation");
    assert!(rig.state().termination.is_none());
}

#[test]
fn what_was_left_in_the_middle_comes_before_other_commands() {
    let mut rig = wide(2_000, |_| {});
    rig.submit(terminate("stop")).expect("it runs");
    let open = rig.state().open_attempt_count();
    assert!(open > 900);
    let mut decider = Decider::new(rig.state.take(), &rig.plan, rig.now, 42);
    decider.resume();
    assert!(decider.is_spent(), "one part is a transition");
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
    assert!(settled.finish().events.is_empty(), "nothing is left to go on with");
}

#[test]
fn a_termination_that_fits_is_one_transition() {
    let mut rig = wide(300, |_| {});
    rig.submit(terminate("stop")).expect("it runs");
    assert_eq!(rig.ended(), (State::Terminated, CompensationState::Parked));
    assert_eq!(count(&rig, |event| matches!(event, Event::RunStopped { .. })), 0);
}

#[test]
fn a_run_with_many_attempts_that_is_cancelled_is_undone_page_by_page() {
    const COUNT: usize = 2_500;
    let mut rig = wide(COUNT, |workflow| workflow.cleanup_timeout = Some(100 * SECOND));
    rig.submit(Command::CancelExecution { reason: "enough".into() }).expect("it runs");
    assert_eq!(go_on(&mut rig), 0, "live attempts have their grace");
    rig.now = rig.now + 10 * SECOND;
    assert!(go_on(&mut rig) >= COUNT / TRANSITION_EVENTS_MAX);
    assert_eq!(rig.state().phase, Phase::Compensation);
    assert_eq!(rig.state().compensations().len(), COMPENSATIONS_LISTED_MAX);
    // In reverse order, over the edge of the page.
    for n in (COUNT - COMPENSATIONS_LISTED_MAX - 2..COUNT).rev() {
        rig.complete(&format!("s{n}/compensate"));
    }
    assert_eq!(rig.state().compensations().len(), 2 * COMPENSATIONS_LISTED_MAX);
    // The rest does not run any more.
    rig.now = rig.now + 100 * SECOND;
    assert!(go_on(&mut rig) >= COUNT / TRANSITION_EVENTS_MAX);
    assert_eq!(rig.ended(), (State::Cancelled, CompensationState::Parked));
    assert_eq!(rig.state().compensations().len(), COUNT);
    let done = COMPENSATIONS_LISTED_MAX + 2;
    let parked = |event: &Event| matches!(event, Event::CompensationParked { .. });
    assert_eq!(count(&rig, parked), COUNT - done);
    // A person tries again what is parked, as much as a transition takes at a time.
    let retry = Command::RetryCompensation { step: None, reason: String::new() };
    rig.submit(retry).expect("they are parked");
    rig.submit(terminate("no more")).expect("compensations run again");
    go_on(&mut rig);
    assert_eq!(rig.ended(), (State::Cancelled, CompensationState::Parked));
}

#[test]
fn the_limit_of_a_history_refuses_the_next_step_but_no_clean_up() {
    let mut rig = Rig::new(&workflow(vec![step("a", 3), step("b", 3)]));
    let set = |rig: &mut Rig, events: usize| {
        for state in [rig.state.as_deref_mut(), rig.folded.as_mut()] {
            state.expect("it was started").event_count = events as u32;
        }
        rig.terse = None;
    };
    set(&mut rig, HISTORY_EVENTS_MAX - 1);
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
    set(&mut rig, HISTORY_EVENTS_CLEANUP_MAX);
    rig.fail("a/compensate", declined());
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Parked), "it ends all the same");
}

#[test]
fn of_each_step_the_task_that_began_first_times_out_first() {
    let timeout = |workflow: &mut Workflow| {
        for step in &mut workflow.steps.0 {
            let StepKind::Task(task) = &mut step.kind;
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
fn a_step_inside_of_another_one_counts_in_the_scope_that_its_path_names() {
    let rig = Rig::new(&workflow(vec![step("lines", 1)]));
    let begins = |path: &str| {
        let path = StepPath::from(path);
        Event::StepStarted {
            path,
            generation: 0,
            input: PayloadSource::Inline(Payload::null()),
            first: None,
        }
    };
    let orphan = followed_by(rig.folded.clone(), rig.now, vec![begins("other[a].pack")]);
    assert!(orphan.is_err_and(|misfit| misfit.what == "the step around it has not begun"));

    let path = |path: &str| StepPath::from(path);
    let ends = |path| Event::StepCompleted {
        path,
        attempt: 1,
        output: Payload::null(),
        worker: String::new(),
    };
    let attempt = |path| Event::AttemptScheduled { path, attempt: 1, at: rig.now };
    let events = vec![
        begins("lines[a].pack"),
        begins("lines[b].pack"),
        begins("lines[a].pack.wrap"),
        attempt(path("lines[a].pack")),
        attempt(path("lines[b].pack")),
        ends(path("lines[a].pack")),
    ];
    let state = followed_by(rig.folded.clone(), rig.now, events).expect("it folds");
    state.assert_kept();
    let counters = |path: &str| {
        let node = state.node(&path.into()).expect("it has begun");
        let Counters { begun, running } = state.counters(&node.scope);
        (begun, running)
    };
    assert_eq!(counters("lines"), (1, 1));
    assert_eq!(counters("lines[a].pack"), (1, 0));
    assert_eq!(counters("lines[b].pack"), (1, 1));
    assert_eq!(counters("lines[a].pack.wrap"), (1, 1));
    assert_eq!(state.steps().count(), 4);
}

#[test]
fn a_step_that_is_tried_again_keeps_its_entry_in_the_ledger() {
    let mut rig = Rig::new(&workflow(vec![step("a", 1), step("b", 1)]));
    rig.complete("a");
    rig.lose();
    let due = rig.state().compensations().iter().map(|one| one.outcome);
    let outcomes = [CompensationOutcome::Unknown, CompensationOutcome::Completed];
    assert_eq!(due.collect::<Vec<_>>(), outcomes, "b may have taken effect");

    // As the next run will: the same generation begins again, and ends in a way that is known.
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
