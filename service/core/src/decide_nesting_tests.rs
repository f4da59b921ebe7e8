//! Properties of workflows with steps that are nested in any way, whatever becomes of their attempts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::definition::{Branch, FailureMode, ForEach, Parallel};

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
        3 => branches(depth),
        1 => inner().prop_map(Shape::Timed),
        3 => (inner(), 0..4_u32, 1..4_u32, any::<bool>())
            .prop_map(|(body, items, at_once, waits)| Shape::ForEach { body, items, at_once, waits }),
        3 => (leaf, handlers, any::<bool>())
            .prop_map(|(own, handlers, ignores)| Shape::Guarded(vec![own], handlers, ignores)),
        2 => (inner(), proptest::collection::vec((0..3_u8, inner()), 0..2), any::<bool>())
            .prop_map(|(own, handlers, ignores)| Shape::Guarded(own, handlers, ignores)),
    ];
    proptest::collection::vec(one, 1..4).boxed()
}

fn branches(depth: u32) -> impl Strategy<Value = Shape> {
    let branch = (nested(depth - 1), any::<bool>(), any::<bool>());
    let branches = proptest::collection::vec(branch, 1..4);
    (branches, any::<bool>(), proptest::option::of(1..3_u32))
        .prop_map(|(branches, waits, at_once)| Shape::Parallel { branches, waits, at_once })
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
    /// Each branch perhaps comes after the one before it, and after the one before that.
    Parallel {
        branches: Vec<(Vec<Shape>, bool, bool)>,
        waits: bool,
        at_once: Option<u32>,
    },
    ForEach {
        body: Vec<Shape>,
        items: u32,
        at_once: u32,
        waits: bool,
    },
    /// A block with a timeout.
    Timed(Vec<Shape>),
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
            Shape::ForEach { body, items, at_once, waits } => {
                let mode = if *waits { FailureMode::WaitAll } else { FailureMode::FailFast };
                let (concurrency, block_of) = (Some(*at_once), some(body, next, in_handler));
                let items = format!("{:?}", (0..*items).collect::<Vec<_>>());
                let block_of = block_of.into();
                let each = ForEach { items, item_key: None, concurrency, mode, block: block_of };
                block(&id, StepKind::ForEach(each))
            }
            Shape::Timed(inner) => {
                let timeout = Some(3 * SECOND);
                Step { timeout, ..group(&id, some(inner, next, in_handler)) }
            }
            Shape::Parallel { branches, waits, at_once } => {
                let mut all = BTreeMap::new();
                for (at, (steps, one_before, two_before)) in branches.iter().enumerate() {
                    let before = [(1, one_before), (2, two_before)].into_iter();
                    let before = before.filter(|(back, is_so)| **is_so && at >= *back);
                    let after = before.map(|(back, _)| format!("b{}", at - back).as_str().into());
                    let block = some(steps, next, in_handler).into();
                    let branch = Branch { block, after: after.collect() };
                    all.insert(format!("b{at}").as_str().into(), branch);
                }
                let mode = if *waits { FailureMode::WaitAll } else { FailureMode::FailFast };
                let concurrency = *at_once;
                block(&id, StepKind::Parallel(Parallel { branches: all, mode, concurrency }))
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
    /// A worker has the attempt.
    Started,
    /// Nothing is reported until the next deadline.
    Silence,
}

/// What becomes of one of the attempts that are open.
fn outcomes() -> impl Strategy<Value = Vec<(Outcome, prop::sample::Index)>> {
    let one = prop_oneof![
        8 => Just(Outcome::Success),
        3 => Just(Outcome::Error),
        3 => Just(Outcome::Final),
        2 => Just(Outcome::Lost),
        1 => Just(Outcome::Cancel),
        2 => Just(Outcome::Doubled),
        3 => Just(Outcome::Started),
        1 => Just(Outcome::Silence),
    ];
    proptest::collection::vec((one, any::<prop::sample::Index>()), 0..40)
}

/// Reports the outcome of one of the attempts that are open; false if none is.
fn report(rig: &mut Rig, outcome: Outcome, which: prop::sample::Index) -> bool {
    let open: Vec<_> = rig.state().open_attempts().map(|open| rig.state().task_id(&open)).collect();
    if open.is_empty() {
        return false;
    }
    let task = which.get(&open).clone();
    let attempt = rig.state().open_attempt_of(&task.path).expect("it is open");
    rig.now = rig.now.max(attempt.attempt.scheduled_at);
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
        Outcome::Started => {
            let (worker, session, at) = ("w".to_owned(), "s".to_owned(), rig.now);
            let basis = StartBasis::Held;
            let start = Command::RecordStart { task, worker, session, at, basis };
            rig.submit(start).expect("it is open");
        }
        Outcome::Silence => match next_wake(rig.state(), &rig.plan) {
            Some(_) => rig.wake(),
            None => rig.submit(complete).expect("it is open"),
        },
    }
    // What no worker has and should stop is withdrawn, as its owner does.
    let state = rig.state();
    let nobodys = state.open_attempts().filter(|open| open.attempt.started.is_none());
    let ending =
        nobodys.filter(|open| state.is_ending(&open.path)).map(|open| state.task_id(&open));
    for task in ending.collect::<Vec<_>>() {
        let _ = rig.submit(Command::WithdrawTask { task });
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn invariants_hold_for_any_nesting_and_any_outcomes(
        shapes in nested(3),
        outcomes in outcomes(),
        rest in any::<prop::sample::Index>(),
    ) {
        let workflow = workflow(some(&shapes, &mut 0, false));
        let mut rig = Rig::new(&workflow);
        let (mut outcomes, mut turns) = (outcomes.into_iter(), 0);
        while rig.state().is_active() {
            turns += 1;
            prop_assert!(turns < 500, "it comes to its end");
            let next = outcomes.next().unwrap_or((Outcome::Success, rest));
            if !report(&mut rig, next.0, next.1) {
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
    let mut branches: Vec<String> = Vec::new();
    let mut being_stopped: Vec<&StepPath> = Vec::new();
    let mut suppressed = 0;
    let mut stopped = false;
    for event in &rig.events {
        match event {
            Event::BlockStarted { path, .. }
            | Event::ParallelStarted { path, .. }
            | Event::LoopStarted { path, .. }
            | Event::StepStarted { path, .. }
                if path.compensated().is_none() =>
            {
                assert!(!stopped, "{path} begins after the run has stopped");
                assert!(!begun.contains(&path), "{path} begins twice");
                for around in std::iter::successors(path.parent(), StepPath::parent) {
                    assert!(begun.contains(&&around), "{path} begins before {around}");
                    assert!(!ended.contains(&&around), "{path} begins after {around} has ended");
                    assert!(!being_stopped.contains(&&around), "{path} begins in {around}");
                }
                let ended = branches.iter().find(|branch| path.as_str().starts_with(*branch));
                assert!(ended.is_none(), "{path} begins after its branch has ended");
                begun.push(path);
            }
            Event::BranchCompleted { path, branch: key, .. }
            | Event::BranchFailed { path, branch: key, .. }
            | Event::ItemCompleted { path, item: key, .. }
            | Event::ItemFailed { path, item: key, .. } => {
                assert!(!being_stopped.contains(&path), "a branch of {path} ends after its stop");
                branches.push(format!("{path}[{key}]."));
            }
            Event::BlockStopped { path, .. } => being_stopped.push(path),
            Event::BlockCompleted { path, .. }
            | Event::ParallelCompleted { path }
            | Event::LoopCompleted { path }
            | Event::ScopeReturned { path, .. }
            | Event::StepCaught { path, .. }
            | Event::StepFailed { path, .. }
            | Event::StepIgnored { path, .. } => {
                assert!(!ended.contains(&path), "{path} ends twice");
                being_stopped.retain(|stopped| *stopped != path);
                ended.push(path);
            }
            Event::HandlerStarted { path, .. } => {
                assert!(!handled.contains(&path), "a second handler of {path} begins");
                being_stopped.retain(|stopped| *stopped != path);
                handled.push(path);
            }
            Event::RunStopped { .. } => stopped = true,
            _ => {}
        }
        if let Event::HandlerStarted { path, .. } | Event::StepFailed { path, .. } = event {
            suppressed += rig.state().lanes(path).map_or(0, |lanes| lanes.failures().len());
        }
        if let Event::HandlerStarted { path, .. }
        | Event::StepFailed { path, .. }
        | Event::StepIgnored { path, .. }
        | Event::LoopCompleted { path }
        | Event::ParallelCompleted { path } = event
        {
            let inside = |other: &&&StepPath| other.as_str().starts_with(&format!("{path}["));
            let left = begun.iter().filter(inside).find(|step| !ended.contains(step));
            let is_over = |step: &&StepPath| {
                let node = rig.state().node(step);
                node.is_some_and(|node| {
                    matches!(node.state, NodeState::Cancelled | NodeState::Completed { .. })
                })
            };
            assert!(left.is_none_or(is_over), "{left:?} lives after {path} has ended");
        }
    }
    let state = rig.state();
    assert!(state.nodes.first_idle().is_none(), "a scope is open after the end");
    assert!(state.nodes.first_settled().is_none(), "a step has work after the end");
    for node in state.steps() {
        assert!(!matches!(node.state, NodeState::Running), "{} never ended", node.path);
        assert!(node.stopped.is_none(), "{} is still being stopped", node.path);
        let undone = state.compensation_of(&node.path).is_some();
        let is_task = node.task().is_some();
        let took_effect = is_task && matches!(node.state, NodeState::Completed { .. })
            || node.task().is_some_and(|task| task.unknown);
        let is_due = state.state.is_failure() && took_effect;
        assert_eq!(undone, is_due, "{} in {}", node.path, state.state);
    }
    let of_kind = |kind| rig.kinds.iter().filter(|own| **own == kind).count();
    assert_eq!(of_kind(FailureKind::StepCaught), handled.len());
    // An attempt of a step that is being stopped may still fail, which is an event of its own.
    // An item that fails is published by itself, beside the error of its loop.
    let is_stop =
        |event: &Event| matches!(event, Event::BlockStopped { .. } | Event::ItemFailed { .. });
    if suppressed == 0 && !rig.events.iter().any(is_stop) {
        let is_failed = usize::from(state.state == State::Failed);
        // Nothing takes the error of an item, so it is an event of its own, even if the loop never ends.
        let is_item = |event: &&Event| matches!(event, Event::ItemFailed { .. });
        let items = rig.events.iter().filter(is_item).count();
        // The first error of a `parallel` that does not go on is an event as well. Several items may each have one.
        let is_cut = |node: &&Node| {
            let own = state.parallel(&node.path).and_then(|own| own.first_failure());
            node.state == NodeState::Cancelled && own.is_some()
        };
        let cut = state.steps().chain(state.cleanup_steps()).filter(is_cut).count();
        assert!(of_kind(FailureKind::StepFailed) <= is_failed.max(1) + items + cut);
    }
}
