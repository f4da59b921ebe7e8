//! Properties of workflows with steps that are nested in any way, whatever becomes of their attempts.

use proptest::prelude::*;

use super::*;

/// Steps that may be nested, with ids that are unique in the workflow.
fn nested(depth: u32) -> BoxedStrategy<Vec<Shape>> {
    let leaf = prop_oneof![
        4 => (1..3_u32).prop_map(Shape::Task),
        1 => Just(Shape::Set),
        1 => Just(Shape::Raise),
        1 => Just(Shape::Return),
    ];
    if depth == 0 {
        return proptest::collection::vec(leaf, 0..3).boxed();
    }
    let inner = || nested(depth - 1);
    let handlers = proptest::collection::vec((0..3_u8, inner()), 0..2);
    let one = prop_oneof![
        4 => leaf.clone(),
        2 => inner().prop_map(Shape::Try),
        2 => (inner(), inner(), any::<bool>()).prop_map(|(a, b, first)| Shape::Switch(a, b, first)),
        3 => (leaf, handlers, any::<bool>())
            .prop_map(|(own, handlers, ignores)| Shape::Guarded(vec![own], handlers, ignores)),
        2 => (inner(), proptest::collection::vec((0..3_u8, inner()), 0..2), any::<bool>())
            .prop_map(|(own, handlers, ignores)| Shape::Guarded(own, handlers, ignores)),
    ];
    proptest::collection::vec(one, 1..4).boxed()
}

#[derive(Clone, Debug)]
enum Shape {
    /// With this many attempts.
    Task(u32),
    Set,
    Raise,
    /// With a condition that is true, because nothing may follow an unconditional one.
    Return,
    Try(Vec<Shape>),
    Switch(Vec<Shape>, Vec<Shape>, bool),
    /// A block with handlers, each of errors of one of three kinds, and perhaps `on_error: IGNORE`.
    Guarded(Vec<Shape>, Vec<(u8, Vec<Shape>)>, bool),
}

/// Turns shapes into steps. Ids count up, so that they are unique.
fn build(shapes: &[Shape], next: &mut u32, in_handler: bool) -> Vec<Step> {
    let one = |shape: &Shape| {
        *next += 1;
        let id = format!("s{next}");
        match shape {
            Shape::Task(attempts) => step(&id, *attempts),
            Shape::Set => set(&id, "1"),
            Shape::Raise if in_handler => rethrow(&id),
            Shape::Raise => raise(&id, "order.rejected"),
            Shape::Return => when("true", give_back(&id, Some("7"))),
            Shape::Try(inner) => group(&id, some(inner, next, in_handler)),
            Shape::Switch(case, default, first) => {
                let case = build(case, next, in_handler);
                let default = build(default, next, in_handler);
                switch(&id, &[(if *first { "true" } else { "false" }, case)], Some(default))
            }
            Shape::Guarded(inner, handlers, ignores) => {
                let own = group(&id, some(inner, next, in_handler));
                let mut catch: Vec<_> = handlers
                    .iter()
                    .map(|(kind, steps)| {
                        let error_type = ["payment", "recoup", ""][usize::from(*kind)];
                        handler(error_type, build(steps, next, true), None)
                    })
                    .collect();
                // A handler after one of every error is refused.
                catch.sort_by_key(|catch| catch.error_types.is_empty());
                catch.dedup_by_key(|catch| catch.error_types.clone());
                let own = catching(own, catch);
                if *ignores { ignoring(own) } else { own }
            }
        }
    };
    shapes.iter().map(one).collect()
}

/// At least one step.
fn some(shapes: &[Shape], next: &mut u32, in_handler: bool) -> Vec<Step> {
    match shapes {
        [] => build(&[Shape::Set], next, in_handler),
        _ => build(shapes, next, in_handler),
    }
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Success,
    Error,
    Final,
    Lost,
    Cancel,
    Doubled,
}

fn outcomes() -> impl Strategy<Value = Vec<Outcome>> {
    let one = prop_oneof![
        8 => Just(Outcome::Success),
        3 => Just(Outcome::Error),
        3 => Just(Outcome::Final),
        2 => Just(Outcome::Lost),
        1 => Just(Outcome::Cancel),
        2 => Just(Outcome::Doubled),
    ];
    proptest::collection::vec(one, 0..40)
}

/// Reports the outcome of the attempt that is open; false if none is.
fn report(rig: &mut Rig, outcome: Outcome) -> bool {
    rig.pass_to_schedule();
    let open = rig.state().open_attempts().next().map(|open| rig.state().task_id(&open));
    let Some(task) = open else { return false };
    let worker = "w".to_owned();
    let complete = Command::CompleteTask { task: task.clone(), output: Payload::json("1"), worker };
    match outcome {
        Outcome::Success => rig.submit(complete).expect("it is open"),
        Outcome::Doubled => {
            rig.submit(complete.clone()).expect("it is open");
            let again = rig.submit(complete);
            assert!(matches!(again, Ok(()) | Err(Rejection::AttemptClosed)), "{again:?}");
        }
        Outcome::Error | Outcome::Final => {
            let is_final = matches!(outcome, Outcome::Final);
            let error = if is_final { final_error() } else { declined() };
            let fail = Command::FailTask { task, error, worker: "w".into() };
            rig.submit(fail).expect("it is open");
        }
        Outcome::Lost => {
            rig.submit(Command::LoseWorker { task, worker: "w".into() }).expect("it is open");
        }
        Outcome::Cancel => {
            let _ = rig.submit(Command::CancelExecution { reason: "x".into() });
        }
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn invariants_hold_for_any_nesting_and_any_outcomes(
        shapes in nested(3),
        outcomes in outcomes(),
    ) {
        let workflow = workflow(some(&shapes, &mut 0, false));
        let mut rig = Rig::new(&workflow);
        let (mut outcomes, mut turns) = (outcomes.into_iter(), 0);
        while rig.state().is_active() {
            turns += 1;
            prop_assert!(turns < 500, "it comes to its end");
            if !report(&mut rig, outcomes.next().unwrap_or(Outcome::Success)) {
                rig.wake();
            }
        }
        check_history(&rig);
    }
}

/// Properties of a whole history.
fn check_history(rig: &Rig) {
    let mut begun: Vec<&StepPath> = Vec::new();
    let mut ended: Vec<&StepPath> = Vec::new();
    let mut handled: Vec<&StepPath> = Vec::new();
    let mut stopped = false;
    for event in &rig.events {
        match event {
            Event::BlockStarted { path, .. } | Event::StepStarted { path, .. }
                if path.compensated().is_none() =>
            {
                assert!(!stopped, "{path} begins after the run has stopped");
                assert!(!begun.contains(&path), "{path} begins twice");
                for around in std::iter::successors(path.parent(), StepPath::parent) {
                    assert!(begun.contains(&&around), "{path} begins before {around}");
                    assert!(!ended.contains(&&around), "{path} begins after {around} has ended");
                }
                begun.push(path);
            }
            Event::BlockCompleted { path, .. }
            | Event::ScopeReturned { path, .. }
            | Event::StepCaught { path, .. }
            | Event::StepFailed { path, .. }
            | Event::StepIgnored { path, .. } => {
                assert!(!ended.contains(&path), "{path} ends twice");
                ended.push(path);
            }
            Event::HandlerStarted { path, .. } => {
                assert!(!handled.contains(&path), "a second handler of {path} begins");
                handled.push(path);
            }
            Event::RunStopped { .. } => stopped = true,
            _ => {}
        }
    }
    let state = rig.state();
    assert!(state.nodes.first_idle().is_none(), "a scope is open after the end");
    for node in state.steps() {
        assert!(!matches!(node.state, NodeState::Running), "{} never ended", node.path);
        let undone = state.compensation_of(&node.path).is_some();
        let is_task = node.task().is_some();
        let took_effect = is_task && matches!(node.state, NodeState::Completed { .. })
            || node.task().is_some_and(|task| task.unknown);
        let is_due = state.state.is_failure() && took_effect;
        assert_eq!(undone, is_due, "{} in {}", node.path, state.state);
    }
    let of_kind = |kind| rig.kinds.iter().filter(|own| **own == kind).count();
    assert_eq!(of_kind(FailureKind::StepCaught), handled.len());
    let is_failed = usize::from(state.state == State::Failed);
    assert!(of_kind(FailureKind::StepFailed) <= is_failed.max(1));
}
