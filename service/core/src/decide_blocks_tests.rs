//! Tests of steps that contain steps, of handlers, and of the way that an error takes outwards.

#[path = "decide_loop_tests.rs"]
mod loops;
#[path = "decide_nesting_tests.rs"]
mod nesting;
#[path = "decide_parallel_tests.rs"]
mod parallel;
#[path = "decide_semantics_tests.rs"]
mod semantics;

use super::*;
use crate::definition::{Case, Catch, Fail, Raise, Switch};
use crate::execution::Node;

/// A step that is not a task.
fn block(id: &str, kind: StepKind) -> Step {
    Step { kind, retry: None, compensate: None, ..step(id, 1) }
}

fn group(id: &str, steps: Vec<Step>) -> Step {
    block(id, StepKind::Try(steps.into()))
}

fn set(id: &str, value: &str) -> Step {
    block(id, StepKind::Set(value.into()))
}

fn raise(id: &str, error_type: &str) -> Step {
    let message = "order ${execution.version} of ${input.amount}".to_owned();
    let raise = Raise { error_type: error_type.into(), message, ..Raise::default() };
    block(id, StepKind::Fail(Fail::Raise(raise)))
}

fn rethrow(id: &str) -> Step {
    block(id, StepKind::Fail(Fail::Rethrow))
}

fn give_back(id: &str, output: Option<&str>) -> Step {
    block(id, StepKind::Return { output: output.map(Into::into) })
}

fn switch(id: &str, cases: &[(&str, Vec<Step>)], default: Option<Vec<Step>>) -> Step {
    let case = |(when, steps): &(&str, Vec<Step>)| Case {
        when: (*when).into(),
        block: steps.clone().into(),
    };
    let cases = cases.iter().map(case).collect();
    block(id, StepKind::Switch(Switch { cases, default: default.map(Into::into) }))
}

fn when(condition: &str, step: Step) -> Step {
    Step { when: Some(condition.into()), ..step }
}

fn ignoring(step: Step) -> Step {
    Step { on_error: OnError::Ignore, ..step }
}

/// A handler of errors of this type, or of all errors if it is empty.
fn handler(error_type: &str, steps: Vec<Step>, output: Option<&str>) -> Catch {
    let error_types = Some(error_type).filter(|own| !own.is_empty());
    let block = Block { steps, output: output.map(Into::into) };
    let error_types = error_types.into_iter().map(Into::into).collect();
    Catch { error_types, block, ..Catch::default() }
}

fn catching(step: Step, catch: Vec<Catch>) -> Step {
    Step { catch, ..step }
}

fn output(rig: &Rig) -> &str {
    let output = rig.state().output.as_ref().expect("the run has an output");
    std::str::from_utf8(&output.data).expect("it is JSON")
}

fn error(rig: &Rig) -> &TaskError {
    rig.state().error.as_ref().expect("the execution ended with an error")
}

fn state_of<'r>(rig: &'r Rig, path: &str) -> &'r NodeState {
    &rig.state().node(&path.into()).expect("the step has begun").state
}

/// The history of an execution that nothing waits for.
fn at_once(steps: Vec<Step>) -> Rig {
    Rig::new(&workflow(steps))
}

#[test]
fn block_ends_with_the_output_of_its_last_step_that_has_one() {
    let rig = at_once(vec![
        set("a", r#"{"n": "${input.amount + 1}"}"#),
        group("b", vec![set("c", r#""${steps.a.output.n * 2}""#), when("false", set("d", "9"))]),
    ]);
    assert_eq!(rig.ended(), (State::Succeeded, CompensationState::None));
    assert_eq!(output(&rig), "12");
    assert!(rig.kinds.is_empty());
    let empty = at_once(vec![set("a", "1"), switch("b", &[("false", vec![set("c", "2")])], None)]);
    assert_eq!(output(&empty), "null", "a switch that takes no case has the output null");
}

#[test]
fn block_ends_with_its_output_template_which_sees_all_its_steps() {
    let mut body = Block::from(vec![set("a", "1"), set("b", "2")]);
    body.output = Some(r#"{"sum": "${steps.a.output + steps.b.output}"}"#.into());
    let rig = at_once(vec![block("both", StepKind::Try(body))]);
    assert_eq!(output(&rig), r#"{"sum":3}"#);
}

#[test]
fn switch_takes_the_first_case_that_is_true_else_the_default() {
    for (amount, expected) in [(1, "\"low\""), (5, "\"mid\""), (50, "\"high\"")] {
        let cases = [
            ("input.amount < 3", vec![set("a", "\"low\"")]),
            ("input.amount < 10", vec![set("b", "\"mid\"")]),
            ("input.amount < 20", vec![set("c", "\"never\"")]),
        ];
        let default = Some(vec![set("d", "\"high\"")]);
        let of = workflow(vec![switch("size", &cases, default)]);
        let rig = Rig::of(&of, Payload::json(format!("{{\"amount\":{amount}}}")));
        assert_eq!(rig.ended().0, State::Succeeded);
        assert_eq!(output(&rig), expected);
        let begun: Vec<_> = rig.state().steps().map(|node| node.path.as_str()).collect();
        assert_eq!(begun.len(), 2, "no step of another case begins: {begun:?}");
    }
}

#[test]
fn return_ends_only_the_block_in_which_it_stands() {
    let inner = || vec![set("a", "1"), give_back("b", Some("2")), set("c", "3")];
    let conditional = |id| when("input.amount == 5", give_back(id, Some("2")));
    let steps = vec![set("a", "1"), conditional("b"), set("c", "3")];
    let rig = at_once(vec![group("inner", steps.clone()), set("d", r#""${steps.inner.output}""#)]);
    assert_eq!(output(&rig), "2");
    assert!(rig.state().node(&"inner.c".into()).is_none(), "nothing follows a return");

    let rig = at_once(steps);
    assert_eq!((rig.ended().0, output(&rig)), (State::Succeeded, "2"), "it ends the run");

    let unset = vec![set("a", "1"), when("true", give_back("b", None)), set("c", "3")];
    assert_eq!(output(&at_once(unset)), "1", "by default the output is that of the block");
    let unconditional = Plan::compile(&workflow(inner()), 1).expect_err("c can never run");
    assert_eq!(unconditional[0].field_path, "steps[1].return");
}

#[test]
fn handler_takes_the_error_and_its_output_replaces_that_of_the_step() {
    let charge = catching(
        step("charge", 2),
        vec![handler(
            "payment",
            vec![step("ask", 1)],
            Some(
                r#"{"by": "${steps.ask.output}", "type": "${error.type}", "at": "${error.step}", "after": "${error.attempts}"}"#,
            ),
        )],
    );
    let mut rig = Rig::new(&workflow(vec![charge, set("last", r#""${steps.charge.output}""#)]));
    rig.fail("charge", declined());
    rig.fail("charge", declined());
    rig.complete("charge.ask");
    assert_eq!(rig.ended(), (State::Succeeded, CompensationState::None));
    let expected = r#"{"after":2,"at":"charge","by":"charge.ask","type":"payment.card_declined"}"#;
    assert_eq!(output(&rig), expected);
    assert!(matches!(state_of(&rig, "charge"), NodeState::Caught { .. }));
    let node = rig.state().node(&"charge".into()).expect("it ran");
    assert_eq!(node.error(), Some(&declined()), "the step keeps its error");
    assert_eq!(rig.kinds, [FailureKind::AttemptFailed, FailureKind::StepCaught]);
}

#[test]
fn error_passes_outwards_to_the_first_handler_that_matches() {
    let inner = catching(step("charge", 1), vec![handler("mail", vec![], None)]);
    let middle = catching(group("middle", vec![inner]), vec![handler("stock", vec![], None)]);
    let outer = catching(
        group("outer", vec![middle]),
        vec![
            handler("recoup", vec![], None),
            handler("payment", vec![], Some(r#""${error.step}""#)),
            handler("", vec![], Some("\"too late\"")),
        ],
    );
    let mut rig = Rig::new(&workflow(vec![outer]));
    rig.fail("outer.middle.charge", declined());
    assert_eq!(rig.ended(), (State::Succeeded, CompensationState::None));
    assert_eq!(output(&rig), "\"outer.middle.charge\"");
    assert_eq!(rig.kinds, [FailureKind::StepCaught], "one event for one error");
    for path in ["outer.middle.charge", "outer.middle"] {
        assert!(matches!(state_of(&rig, path), NodeState::Failed { .. }), "{path}");
    }
}

#[test]
fn error_that_nothing_takes_fails_the_run_and_undoes_nested_steps_in_reverse() {
    let mut rig = Rig::new(&workflow(vec![
        step("a", 1),
        group("b", vec![step("c", 1), group("d", vec![step("e", 1), step("f", 1)])]),
        step("g", 1),
    ]));
    rig.complete("a");
    rig.complete("b.c");
    rig.complete("b.d.e");
    rig.fail("b.d.f", declined());
    rig.complete("b.d.e/compensate");
    rig.complete("b.c/compensate");
    rig.complete("a/compensate");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
    assert_eq!(error(&rig), &declined());
    let stop = rig.state().stop.as_ref().expect("the run stopped");
    assert_eq!(stop.step.as_ref().map(StepPath::as_str), Some("b.d.f"));
    let failed = rig.kinds.iter().filter(|kind| **kind == FailureKind::StepFailed).count();
    assert_eq!(failed, 1, "one event for one error");
}

#[test]
fn error_in_a_handler_has_the_original_as_its_cause_and_passes_outwards() {
    let failing = || vec![handler("", vec![raise("worse", "mail.down")], None)];
    let mut rig = Rig::new(&workflow(vec![catching(step("a", 1), failing())]));
    rig.fail("a", declined());
    assert_eq!(rig.ended().0, State::Failed);
    assert_eq!(error(&rig).error_type, "mail.down");
    assert_eq!(error(&rig).message, "order 1 of 5");
    assert_eq!(error(&rig).cause.as_deref(), Some(&declined()));
    let stop = rig.state().stop.as_ref().and_then(|stop| stop.step.as_ref());
    assert_eq!(stop.map(StepPath::as_str), Some("a.worse"));
    assert_eq!(rig.kinds[..2], [FailureKind::StepCaught, FailureKind::StepFailed]);

    let mut rig = Rig::new(&workflow(vec![ignoring(catching(step("a", 1), failing()))]));
    rig.fail("a", declined());
    assert_eq!(rig.ended().0, State::Warning, "the step's own on_error takes it");

    let outer = handler("mail", vec![], Some(r#""${error.cause.type}""#));
    let outer = catching(group("outer", vec![catching(step("a", 1), failing())]), vec![outer]);
    let mut rig = Rig::new(&workflow(vec![outer]));
    rig.fail("outer.a", declined());
    assert_eq!(output(&rig), "\"payment.card_declined\"", "so does a handler further out");
}

#[test]
fn rethrow_passes_the_error_on_unchanged() {
    let report = |id: &str| vec![step(id, 1), rethrow(&format!("{id}_again"))];
    let inner = catching(step("a", 1), vec![handler("payment", report("tell"), None)]);
    let nested = group("nested", report("note"));
    let outer = catching(group("outer", vec![inner]), vec![handler("", vec![nested], None)]);
    let mut rig = Rig::new(&workflow(vec![outer]));
    rig.fail("outer.a", declined());
    rig.complete("outer.a.tell");
    rig.complete("outer.nested.note");
    rig.complete("outer.nested.note/compensate");
    rig.complete("outer.a.tell/compensate");
    assert_eq!(rig.ended().0, State::Failed);
    assert_eq!(error(&rig), &declined());
    let stop = rig.state().stop.as_ref().and_then(|stop| stop.step.as_ref());
    assert_eq!(stop.map(StepPath::as_str), Some("outer.a"), "where it arose");
}

#[test]
fn rethrow_outside_a_handler_that_another_release_accepted_fails_as_an_expression() {
    let workflow = workflow(vec![ignoring(rethrow("a")), step("b", 1)]);
    let refused = Plan::compile(&workflow, 1).expect_err("there is no error");
    assert_eq!(refused[0].field_path, "steps[0].fail.rethrow");
    let plan = Plan::of_accepted(&workflow, 1).expect("it was accepted elsewhere");
    let now = Timestamp::from_micros(1_000_000);
    let mut decider = Decider::new(None, &plan, now, 42).starting_in(BLOCKS);
    decider.decide(start_with(now, Payload::null()), None).expect("it is new");
    let state = decider.finish().state.expect("it was started");
    let error = state.node(&"a".into()).and_then(Node::error).expect("it failed");
    assert_eq!(error.error_type, builtin::EXPRESSION);
    assert_eq!(state.open_attempts().next().expect("b runs").path.as_str(), "b");
}

#[test]
fn of_two_steps_with_the_same_id_in_an_accepted_definition_only_the_first_runs() {
    let first = || group("a", vec![step("x", 1)]);
    let other = |id| group(id, vec![set("x", "1"), set(&format!("{id}_end"), "\"end\"")]);
    for (steps, ends) in [
        (vec![first(), other("b")], "b.b_end"),
        (vec![first(), set("x", "1"), other("b")], "b.b_end"),
        (
            vec![first(), group("b", vec![group("a", vec![set("c", "1")]), set("d", "\"end\"")])],
            "b.d",
        ),
    ] {
        let workflow = workflow(steps);
        Plan::compile(&workflow, 1).expect_err("registration refuses it");
        let plan = Plan::of_accepted(&workflow, 1).expect("it was accepted elsewhere");
        let now = Timestamp::from_micros(1_000_000);
        let mut decider = Decider::new(None, &plan, now, 42).starting_in(BLOCKS);
        decider.decide(start_with(now, Payload::null()), None).expect("it is new");
        let state = decider.finish().state.expect("it was started");
        let task = state.task_id(&state.open_attempts().next().expect("x runs"));
        assert_eq!(task.path.as_str(), "a.x");
        let mut decider = Decider::new(Some(state), &plan, now, 42);
        let complete =
            Command::CompleteTask { task, output: Payload::json("1"), worker: "w".into() };
        decider.decide(complete, None).expect("it is open");
        let state = decider.finish().state.expect("it exists");
        assert_eq!(
            (state.state, &state.output),
            (State::Succeeded, &Some(Payload::json("\"end\"")))
        );
        assert!(state.node(&ends.into()).is_some());
        assert_eq!(state.open_attempt_count(), 0);
    }
}

#[test]
fn ignored_block_has_a_null_output_and_keeps_what_must_be_undone() {
    let tolerated = ignoring(group("b", vec![step("c", 1), step("d", 1)]));
    let mut rig = Rig::new(&workflow(vec![tolerated, step("e", 1)]));
    rig.complete("b.c");
    rig.fail("b.d", declined());
    assert!(matches!(state_of(&rig, "b"), NodeState::Ignored { .. }));
    assert_eq!(rig.kinds, [FailureKind::StepIgnored]);
    rig.fail("e", declined());
    rig.complete("b.c/compensate");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
}

#[test]
fn caught_step_that_may_have_taken_effect_is_undone_when_the_run_fails_later() {
    let mut rig = Rig::new(&workflow(vec![
        catching(step("a", 1), vec![handler("recoup", vec![], None)]),
        step("b", 1),
    ]));
    rig.lose();
    rig.fail("b", declined());
    let outcome = rig.state().compensations()[0].outcome;
    assert_eq!(outcome, CompensationOutcome::Unknown);
    rig.complete("a/compensate");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
}

#[test]
fn handler_condition_reads_the_error_and_its_own_error_passes_outwards() {
    let with = |condition: &str| {
        let own = handler("", vec![], Some("1"));
        let own = Catch { when: Some(condition.into()), ..own };
        workflow(vec![catching(step("a", 1), vec![own, handler("", vec![], Some("2"))])])
    };
    for (condition, expected) in
        [("error.message == 'no' && error.step == 'a'", "1"), ("error.attempts > 1", "2")]
    {
        let mut rig = Rig::new(&with(condition));
        rig.fail("a", declined());
        assert_eq!(output(&rig), expected, "{condition}");
    }
    let mut rig = Rig::new(&with("error.details.code == 1"));
    rig.fail("a", declined());
    assert_eq!(rig.ended().0, State::Failed);
    assert_eq!(error(&rig).error_type, builtin::EXPRESSION);
    assert_eq!(error(&rig).cause.as_deref(), Some(&declined()));
}

#[test]
fn expression_that_fails_takes_the_way_of_every_error() {
    let caught = |step: Step| catching(step, vec![handler("recoup.expression", vec![], Some("1"))]);
    let mut bad_output = Block::from(vec![set("x", "1")]);
    bad_output.output = Some("\"${input.nothing}\"".into());
    let bad_message =
        Raise { error_type: "a".into(), message: "${input.nothing}".into(), ..Raise::default() };
    for failing in [
        set("a", "\"${input.nothing}\""),
        when("input.nothing", set("a", "1")),
        switch("a", &[("input.nothing", vec![set("b", "2")])], None),
        block("a", StepKind::Try(bad_output)),
        block("a", StepKind::Fail(Fail::Raise(bad_message))),
        give_back("a", Some("\"${input.nothing}\"")),
        when("input.nothing", step("a", 1)),
    ] {
        let rig = at_once(vec![caught(failing.clone())]);
        assert_eq!(rig.ended().0, State::Succeeded, "{failing:?}");
        assert_eq!(output(&rig), "1", "{failing:?}");
        let rig = at_once(vec![failing.clone()]);
        assert_eq!(rig.ended().0, State::Failed, "{failing:?}");
        assert_eq!(error(&rig).error_type, builtin::EXPRESSION, "{failing:?}");
    }
}

#[test]
fn raised_error_that_is_too_large_is_replaced() {
    let large =
        Raise { error_type: "a".into(), message: "${input.text}".into(), ..Raise::default() };
    let of = workflow(vec![block("a", StepKind::Fail(Fail::Raise(large)))]);
    let text = "x".repeat(crate::limits::ERROR_BYTES_MAX);
    let rig = Rig::of(&of, Payload::json(format!("{{\"text\":\"{text}\"}}")));
    assert_eq!(error(&rig).error_type, builtin::PAYLOAD_TOO_LARGE);
}

#[test]
fn stop_of_the_run_cancels_the_blocks_around_the_steps_that_run() {
    let nested = || {
        vec![catching(
            group("b", vec![step("c", 1), step("d", 1)]),
            vec![handler("", vec![step("e", 1)], None)],
        )]
    };
    let cancel = |rig: &mut Rig| {
        rig.submit(Command::CancelExecution { reason: "x".into() }).expect("it runs");
    };
    let mut rig = Rig::new(&workflow(nested()));
    rig.complete("b.c");
    cancel(&mut rig);
    assert!(matches!(state_of(&rig, "b"), NodeState::Cancelled));
    rig.complete("b.d");
    assert!(rig.started().iter().all(|path| path != "b.e"), "no handler takes a cancellation");
    rig.complete("b.d/compensate");
    rig.complete("b.c/compensate");
    assert_eq!(rig.ended(), (State::Cancelled, CompensationState::Done));

    let mut rig = Rig::new(&workflow(nested()));
    rig.complete("b.c");
    rig.fail("b.d", declined());
    cancel(&mut rig);
    rig.wake();
    assert!(matches!(state_of(&rig, "b"), NodeState::Cancelled), "a handler ends likewise");
    assert_eq!(rig.state().compensations().len(), 2, "e may have taken effect");

    let mut rig = Rig::new(&workflow(nested()));
    rig.submit(terminate("stop")).expect("it runs");
    assert!(matches!(state_of(&rig, "b"), NodeState::Cancelled));
    assert_eq!(rig.ended(), (State::Terminated, CompensationState::Parked));
}

#[test]
fn timeout_of_the_workflow_is_taken_by_no_handler() {
    let caught = catching(group("b", vec![step("c", 1)]), vec![handler("", vec![], None)]);
    let mut workflow = workflow(vec![ignoring(caught)]);
    workflow.timeout = Some(60 * SECOND);
    let mut rig = Rig::new(&workflow);
    rig.wake();
    rig.wake();
    rig.complete("b.c/compensate");
    assert_eq!(rig.ended(), (State::TimedOut, CompensationState::Done));
}

#[test]
fn blocks_of_finally_run_and_fail_as_its_steps_do() {
    let mut workflow = workflow(vec![step("a", 1)]);
    let tell = Step { compensate: None, ..step("tell", 1) };
    let caught = handler("mail", vec![], Some(r#""${error.type}""#));
    let write = Step { compensate: None, ..step("write", 1) };
    workflow.finally = vec![
        catching(group("b", vec![tell]), vec![caught]),
        when("error.type == 'payment.card_declined'", group("c", vec![write])),
        set("d", "1"),
    ];
    let mut rig = Rig::new(&workflow);
    rig.fail("a", declined());
    rig.fail("b.tell", TaskError::new("mail.down", "no"));
    assert_eq!(rig.state().phase, Phase::Finally);
    rig.fail("c.write", TaskError::new("disk.full", "no"));
    assert_eq!(rig.ended().0, State::Failed);
    assert_eq!(error(&rig), &declined(), "cleanup never changes the error");
    let failed = rig.events.iter().find_map(|event| match event {
        Event::HandlerFailed { path, .. } => Some(path.as_str()),
        _ => None,
    });
    assert_eq!(failed, Some("c.write"));
    assert!(rig.state().node(&"d".into()).is_none(), "nothing follows a failed step");
}

/// A workflow with a handler of its failures and a step of `finally`.
fn with_on_failure() -> Workflow {
    let mut report = Step { compensate: None, ..step("report", 1) };
    if let StepKind::Task(task) = &mut report.kind {
        task.input = Some(
            r#"{"why": "${error.type}", "at": "${execution.failed_step}", "undone": "${execution.compensation_state}", "a": "${steps.a.output}"}"#.into(),
        );
    }
    let mut workflow = workflow(vec![step("a", 1), step("b", 1)]);
    workflow.on_failure = vec![report, group("more", vec![set("note", "1")])];
    workflow.finally = vec![finally("tidy")];
    workflow.timeout = Some(60 * SECOND);
    workflow.cleanup_timeout = Some(200 * SECOND);
    workflow
}

#[test]
fn on_failure_runs_once_after_compensation_and_before_finally() {
    let mut rig = Rig::new(&with_on_failure());
    rig.complete("a");
    rig.fail("b", declined());
    rig.complete("a/compensate");
    assert_eq!(rig.state().phase, Phase::OnFailure);
    let input = &rig.state().task(&"report".into()).expect("it has begun").input;
    let expected = r#"{"a":"a","at":"b","undone":"DONE","why":"payment.card_declined"}"#;
    assert_eq!(input, &Payload::json(expected));
    rig.complete("report");
    assert!(matches!(state_of(&rig, "more"), NodeState::Completed { .. }));
    rig.complete("tidy");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
    assert_eq!(rig.started(), ["a", "b", "a/compensate", "report", "tidy"]);
    assert_eq!(rig.state().compensations().len(), 1, "its steps are never undone");
}

#[test]
fn on_failure_runs_only_after_a_failure_or_a_timeout() {
    type Script = fn(&mut Rig);
    let table: [(&str, Script, State, bool); 5] = [
        (
            "success",
            |rig| [(); 2].into_iter().zip(["a", "b"]).for_each(|((), id)| rig.complete(id)),
            State::Succeeded,
            false,
        ),
        ("failure", |rig| rig.fail("a", declined()), State::Failed, true),
        ("timeout", |rig| [(); 2].into_iter().for_each(|()| rig.wake()), State::TimedOut, true),
        (
            "cancel",
            |rig| {
                rig.submit(Command::CancelExecution { reason: "x".into() }).expect("it runs");
                rig.wake();
            },
            State::Cancelled,
            false,
        ),
        (
            "termination",
            |rig| rig.submit(terminate("x")).expect("it runs"),
            State::Terminated,
            false,
        ),
    ];
    for (name, script, ended, runs) in table {
        let mut rig = Rig::new(&with_on_failure());
        script(&mut rig);
        for _ in 0..10 {
            let open = rig.state().open_attempts().next().map(|open| open.path.to_string());
            if let Some(path) = open {
                rig.complete(&path);
            }
        }
        assert_eq!(rig.ended().0, ended, "{name}");
        let times = rig.started().iter().filter(|path| *path == "report").count();
        assert_eq!(times, usize::from(runs), "{name}");
        let began =
            rig.events.iter().filter(|event| matches!(event, Event::OnFailureStarted { .. }));
        assert_eq!(began.count(), usize::from(runs), "{name}");
    }
}

#[test]
fn failed_step_of_on_failure_is_recorded_and_finally_runs() {
    let mut rig = Rig::new(&with_on_failure());
    rig.fail("a", declined());
    rig.fail("report", TaskError::new("mail.down", "no"));
    assert_eq!(rig.state().phase, Phase::Finally);
    assert!(rig.state().node(&"more".into()).is_none(), "nothing follows a failed step");
    rig.complete("tidy");
    assert_eq!(rig.ended().0, State::Failed);
    assert_eq!(error(&rig), &declined(), "cleanup never changes the error");
    let handler_failed = rig.kinds.iter().filter(|kind| **kind == FailureKind::HandlerFailed);
    assert_eq!(handler_failed.count(), 1);
}

#[test]
fn cleanup_timeout_records_each_list_of_handlers_that_it_cuts_off() {
    let cut = |rig: &Rig| -> Vec<String> {
        let cut = rig.events.iter().filter_map(|event| match event {
            Event::HandlerFailed { path, error }
                if error.error_type == builtin::CLEANUP_TIMEOUT =>
            {
                Some(path.to_string())
            }
            _ => None,
        });
        cut.collect()
    };
    let mut rig = Rig::new(&with_on_failure());
    rig.complete("a");
    rig.fail("b", declined());
    rig.wake();
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Parked));
    assert_eq!(cut(&rig), ["report", "tidy"]);

    let mut rig = Rig::new(&with_on_failure());
    rig.fail("a", declined());
    rig.wake();
    assert_eq!(rig.ended().0, State::Failed);
    assert_eq!(cut(&rig), ["report", "tidy"], "the first was cut off, the second never began");

    let mut rig = Rig::new(&with_on_failure());
    rig.submit(Command::CancelExecution { reason: "x".into() }).expect("it runs");
    rig.wake();
    rig.wake();
    assert_eq!(rig.ended().0, State::Cancelled);
    assert_eq!(cut(&rig), ["tidy"], "a cancel has no `on_failure`");
}

#[test]
fn step_of_finally_that_the_cleanup_timeout_cuts_off_has_not_failed() {
    let mut workflow = workflow(vec![step("a", 1)]);
    let mut tell = finally("tell");
    let task = tell.kind.task_mut().expect("it is a task");
    task.timeouts.schedule_to_close = Some(10 * SECOND);
    let mend = handler("recoup.timeout", vec![finally("mend")], None);
    workflow.finally = vec![catching(group("b", vec![tell]), vec![mend])];
    workflow.cleanup_timeout = Some(15 * SECOND);
    let mut rig = Rig::new(&workflow);
    rig.complete("a");
    // Both deadlines have passed when the execution is woken, so one transition decides about both.
    rig.now = rig.now + 20 * SECOND;
    rig.submit(Command::Wake).expect("two deadlines have passed");
    assert_eq!(rig.ended().0, State::Warning);
    let told = [FailureKind::StepCaught, FailureKind::HandlerFailed, FailureKind::ExecutionWarning];
    assert_eq!(rig.kinds, told);
}

#[test]
fn start_needs_a_history_format_that_can_hold_the_steps() {
    let start = |workflow: &Workflow, format| {
        let plan = Plan::compile(workflow, 1).expect("it is valid");
        let mut decider = Decider::new(None, &plan, Timestamp::default(), 1).starting_in(format);
        decider.decide(start_with(Timestamp::default(), Payload::null()), None)
    };
    let refused = Err(Rejection::FormatTooOld { needed: BLOCKS, format: TERSE });
    assert_eq!(start(&workflow(vec![set("a", "1")]), TERSE), refused);
    let caught = catching(step("a", 1), vec![handler("", vec![], None)]);
    assert_eq!(start(&workflow(vec![caught]), TERSE), refused);
    assert_eq!(start(&with_on_failure(), TERSE), refused);
    assert_eq!(start(&workflow(vec![set("a", "1")]), BLOCKS), Ok(()));
    assert_eq!(start(&workflow(vec![step("a", 1)]), 1), Ok(()));
}
