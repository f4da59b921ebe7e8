//! Tests of the plans that definitions compile to, and of the definitions that are rejected.

use super::*;
use crate::definition::{
    Block, Compensate, Defaults, Step, StepKind as Kind, Task, Timeouts, Workflow,
};
use crate::limits::{CEL_SOURCE_BYTES_MAX, ERROR_TYPE_BYTES_MAX, STEPS_MAX};
use crate::retry::{Limits, RetryPolicy, Rule, Schedule};

fn step(id: &str) -> Step {
    Step {
        id: id.into(),
        description: String::new(),
        kind: Kind::Task(Task { task_type: "work".into(), ..Task::default() }),
        when: None,
        retry: None,
        timeout: None,
        catch: Vec::new(),
        on_error: OnError::Fail,
        allow_warning: false,
        compensate: None,
    }
}

fn workflow(steps: &[&str], finally: &[&str]) -> Workflow {
    Workflow {
        name: "order".into(),
        description: String::new(),
        defaults: Defaults::default(),
        steps: Block::from(steps.iter().map(|id| step(id)).collect::<Vec<_>>()),
        on_failure: Vec::new(),
        finally: finally.iter().map(|id| step(id)).collect(),
        timeout: None,
        cleanup_timeout: None,
        cancel_grace: None,
    }
}

fn task(definition: &mut Workflow, index: usize) -> &mut Task {
    definition.steps.steps[index].kind.task_mut().expect("it is a task")
}

fn compensate(input: Option<&str>) -> Option<Compensate> {
    let input = input.map(Into::into);
    let task = Task { task_type: "undo".into(), input, ..Task::default() };
    Some(Compensate { task, retry: None, only_completed: false })
}

const fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

fn policy(change: impl FnOnce(&mut RetryPolicy)) -> Option<RetryPolicy> {
    let mut policy = RetryPolicy::default();
    change(&mut policy);
    Some(policy)
}

/// A change to a definition with the steps `a` and `b`, and the step `c` in `finally`.
type Change = Box<dyn Fn(&mut Workflow)>;

fn change(change: impl Fn(&mut Workflow) + 'static) -> Change {
    Box::new(change)
}

fn issues(change: &Change) -> Vec<(String, IssueCode)> {
    let mut definition = workflow(&["a", "b"], &["c"]);
    change(&mut definition);
    match Plan::compile(&definition, 1) {
        Ok(_) => Vec::new(),
        Err(issues) => issues.into_iter().map(|issue| (issue.field_path, issue.code)).collect(),
    }
}

/// Each change stands for a definition that was accepted before a rule existed, or while the rule was more
/// lenient.
#[test]
fn accepted_definition_still_loads_after_rules_became_stricter() {
    let long = format!("'{}' != input.a", "x".repeat(CEL_SOURCE_BYTES_MAX));
    let nested = "[1].all(a, [1].all(b, [1].all(c, [1].all(d, a + b + c + d == 4))))";
    let when = |source: &str| {
        let source = source.to_owned();
        change(move |workflow| workflow.steps.steps[0].when = Some(source.clone()))
    };
    let changes = [
        change(|workflow| workflow.name = "no name!".into()),
        change(|workflow| workflow.steps.steps[1].id = "If".into()),
        change(|workflow| workflow.steps.steps[0].allow_warning = true),
        change(|workflow| task(workflow, 0).priority = i32::MAX),
        change(|workflow| task(workflow, 0).timeouts.heartbeat = seconds(0)),
        change(|workflow| workflow.finally[0].compensate = compensate(None)),
        change(|workflow| {
            let step = workflow.steps.steps[0].clone();
            let more = (0..=STEPS_MAX).map(|at| {
                let id = format!("s{at}").as_str().into();
                crate::definition::Step { id, ..step.clone() }
            });
            workflow.steps.steps.extend(more);
        }),
        when(&long),
        when(nested),
        when("steps.b.output == null"),
        when("error == null"),
        when("[1].all(input, input == 1)"),
    ];
    for (at, change) in changes.iter().enumerate() {
        let mut definition = workflow(&["a", "b"], &["c"]);
        change(&mut definition);
        let refused = Plan::compile(&definition, 1).expect_err("registration rejects it");
        let plan = Plan::of_accepted(&definition, 1);
        let plan = plan.unwrap_or_else(|issues| panic!("change {at} {refused:?}: {issues:?}"));
        let mut steps = plan.children(ScopeId::STEPS);
        assert_eq!(steps.len(), definition.steps.steps.len(), "change {at}");
        let has_condition = steps.next().is_some_and(|step| step.when.is_some());
        assert_eq!(has_condition, definition.steps.steps[0].when.is_some());
    }
    // A definition that cannot be executed is still rejected.
    let mut definition = workflow(&["a"], &[]);
    definition.steps.steps[0].when = Some("1 +".into());
    assert!(Plan::of_accepted(&definition, 1).is_err());
}

#[test]
fn unset_field_takes_the_workflow_default_then_the_built_in_one() {
    let mut definition = workflow(&["a", "b"], &["c"]);
    definition.defaults.queue = Some("slow".into());
    definition.defaults.timeouts.heartbeat = seconds(5);
    definition.defaults.retry = policy(|retry| retry.limits.max_attempts = Some(2));
    definition.steps.steps[0].compensate = compensate(None);
    definition.steps.steps[1].retry = policy(|_| {});
    *task(&mut definition, 1) = Task {
        queue: Some("fast".into()),
        timeouts: Timeouts {
            schedule_to_close: seconds(20),
            heartbeat: seconds(3),
            ..Timeouts::default()
        },
        ..task(&mut definition, 1).clone()
    };
    let plan = Plan::compile(&definition, 7).expect("the definition is valid");
    assert_eq!((plan.version, plan.timeout), (7, None));
    assert_eq!((plan.cleanup_timeout, plan.cancel_grace), (seconds(3600), CANCEL_GRACE));
    let task = |path: &str| plan.task(&path.into()).expect(path);
    assert_eq!((task("a").queue.as_str(), task("b").queue.as_str()), ("slow", "fast"));
    assert_eq!((task("a").heartbeat, task("b").heartbeat), (seconds(5), seconds(3)));
    assert_eq!(task("a").start_to_close, START_TO_CLOSE);
    assert_eq!(task("b").start_to_close, Duration::from_secs(20), "bounded by schedule-to-close");
    assert_eq!(task("a").retry.max_attempts(), Some(2));
    assert_eq!(
        task("b").retry.max_attempts(),
        Some(5),
        "a step's policy replaces the default as a whole"
    );
    assert_eq!(task("a/compensate").retry.max_attempts(), Some(2));
    assert_eq!(task("a/compensate").task_type, "undo");
    assert!(plan.is_cleanup(&"c".into()) && !plan.is_cleanup(&"b".into()));
    assert!(plan.task(&"b/compensate".into()).is_none());
    assert!(plan.step(&"d".into()).is_none());
}

#[test]
fn step_sees_earlier_steps_and_handlers_see_all_steps_and_the_error() {
    let mut definition = workflow(&["a", "b"], &["c", "d"]);
    definition.steps.steps[0].compensate =
        compensate(Some(r#"["${steps.a.output}", "${steps.b.output}", "${error}"]"#));
    definition.steps.steps[1].when = Some("steps.a.output == 1".into());
    definition.finally[1].when = Some("error == null && steps.c.error == null".into());
    definition.steps.output = Some(r#""${steps.b.output}""#.into());
    assert!(Plan::compile(&definition, 1).is_ok());

    let reads = |path: &'static str, source: &str| {
        let source = source.to_owned();
        let change = change(move |definition| {
            let template = format!("\"${{{source}}}\"");
            match path {
                "steps[0].task.input" => task(definition, 0).input = Some(template),
                "steps[0].compensate.task.input" => {
                    definition.steps.steps[0].compensate = compensate(Some(&template));
                }
                "finally[0].when" => definition.finally[0].when = Some(source.clone()),
                "output" => definition.steps.output = Some(template),
                _ => definition.steps.steps[1].when = Some(source.clone()),
            }
        });
        (path, issues(&change))
    };
    for (path, issues) in [
        reads("steps[0].task.input", "steps.a.output"),
        reads("steps[0].task.input", "steps.b.output"),
        reads("steps[0].task.input", "steps.x.output"),
        reads("steps[0].task.input", "error"),
        reads("steps[1].when", "steps.c.output == 1"),
        reads("steps[1].when", "error == null"),
        reads("steps[0].compensate.task.input", "steps.c.output"),
        reads("finally[0].when", "steps.c.output == 1"),
        reads("output", "steps.c.output"),
        reads("output", "error"),
    ] {
        assert_eq!(issues, [(path.to_owned(), IssueCode::ExpressionInvalid)]);
    }
}

#[test]
fn every_validation_issue_names_its_field() {
    use IssueCode as C;
    let id = |id: &'static str| change(move |definition| definition.steps.steps[1].id = id.into());
    let timeouts =
        |timeouts: Timeouts| change(move |definition| task(definition, 1).timeouts = timeouts);
    let none = Timeouts::default();
    let long = "x".repeat(129);
    let too_long = long.clone();
    for (change, path, code) in [
        (change(|d| d.name = "".into()), "name", C::NameInvalid),
        (change(|d| d.name = "-a".into()), "name", C::NameInvalid),
        (change(|d| d.name = "a b".into()), "name", C::NameInvalid),
        (change(move |d| d.name = too_long.as_str().into()), "name", C::NameInvalid),
        (change(|d| d.description = "x".repeat(4097)), "description", C::TooLong),
        (change(|d| d.timeout = seconds(0)), "timeout", C::DurationInvalid),
        (change(|d| d.cleanup_timeout = seconds(0)), "cleanup_timeout", C::DurationInvalid),
        (change(|d| d.steps.steps.clear()), "steps", C::Required),
        (change(|d| d.steps = workflow(&["x"; 1000], &[]).steps), "steps", C::TooMany),
        (id("a"), "steps[1].id", C::StepIdTaken),
        (id("c"), "finally[0].id", C::StepIdTaken),
        (id("B"), "steps[1].id", C::StepIdInvalid),
        (id("1b"), "steps[1].id", C::StepIdInvalid),
        (id("b-c"), "steps[1].id", C::StepIdInvalid),
        (id(""), "steps[1].id", C::StepIdInvalid),
        (id("for"), "steps[1].id", C::StepIdReserved),
        (id("in"), "steps[1].id", C::StepIdReserved),
        (change(|d| d.steps.steps[1].id = "x".repeat(65).into()), "steps[1].id", C::StepIdInvalid),
        (change(|d| task(d, 1).task_type.clear()), "steps[1].task.type", C::Required),
        (change(move |d| task(d, 1).task_type = long.clone()), "steps[1].task.type", C::TooLong),
        (change(|d| task(d, 1).queue = Some(" ".into())), "steps[1].task.queue", C::Required),
        (change(|d| task(d, 1).queue = Some("x".repeat(129))), "steps[1].task.queue", C::TooLong),
        (change(|d| d.defaults.queue = Some(String::new())), "defaults.queue", C::Required),
        (change(|d| task(d, 0).priority = 101), "steps[0].task.priority", C::PriorityOutOfRange),
        (change(|d| task(d, 0).priority = -101), "steps[0].task.priority", C::PriorityOutOfRange),
        (
            change(|d| task(d, 0).input = Some("{".into())),
            "steps[0].task.input",
            C::ExpressionInvalid,
        ),
        (
            change(|d| d.steps.steps[0].when = Some("1 +".into())),
            "steps[0].when",
            C::ExpressionInvalid,
        ),
        (change(|d| d.steps.output = Some("\"${x}\"".into())), "output", C::ExpressionInvalid),
        (
            change(|d| d.steps.steps[1].description = "x".repeat(4097)),
            "steps[1].description",
            C::TooLong,
        ),
        (
            change(|d| d.steps.steps[0].allow_warning = true),
            "steps[0].allow_warning",
            C::AllowWarningWithoutIgnore,
        ),
        (
            change(|d| d.finally[0].compensate = compensate(None)),
            "finally[0].compensate",
            C::CompensateInCleanup,
        ),
        (
            timeouts(Timeouts { schedule_to_start: seconds(0), ..none }),
            "steps[1].task.schedule_to_start",
            C::DurationInvalid,
        ),
        (
            timeouts(Timeouts { start_to_close: seconds(0), ..none }),
            "steps[1].task.start_to_close",
            C::DurationInvalid,
        ),
        (
            timeouts(Timeouts { schedule_to_close: seconds(0), ..none }),
            "steps[1].task.schedule_to_close",
            C::DurationInvalid,
        ),
        (
            timeouts(Timeouts { heartbeat: seconds(0), ..none }),
            "steps[1].task.heartbeat",
            C::DurationInvalid,
        ),
        (
            timeouts(Timeouts { heartbeat: seconds(61), ..none }),
            "steps[1].task.heartbeat",
            C::TimeoutsContradict,
        ),
        (
            timeouts(Timeouts {
                start_to_close: seconds(11),
                schedule_to_close: seconds(10),
                ..none
            }),
            "steps[1].task.start_to_close",
            C::TimeoutsContradict,
        ),
        (
            timeouts(Timeouts {
                schedule_to_start: seconds(11),
                schedule_to_close: seconds(10),
                ..none
            }),
            "steps[1].task.schedule_to_start",
            C::TimeoutsContradict,
        ),
        (
            change(|d| d.defaults.timeouts.heartbeat = seconds(61)),
            "defaults.heartbeat",
            C::TimeoutsContradict,
        ),
    ] {
        assert_eq!(issues(&change), [(path.to_owned(), code)], "{path}");
    }
}

#[test]
fn retry_policies_that_cannot_work_are_rejected() {
    let exponential = |initial, backoff_coefficient, max| Schedule::Exponential {
        initial_interval: Duration::from_secs(initial),
        backoff_coefficient,
        max_interval: Duration::from_secs(max),
    };
    let limits = |max_attempts, max_duration| Limits { max_attempts, max_duration };
    let schedule = |schedule: Schedule| policy(|retry| retry.schedule = Some(schedule));
    let constant = |interval| Schedule::Constant { interval: Duration::from_secs(interval) };
    let rule = |error_types: &[&str], limits, schedule| {
        let error_types = error_types.iter().map(|pattern| (*pattern).into()).collect();
        policy(|retry| {
            retry.rules.push(Rule { error_types, match_on: Default::default(), schedule, limits });
        })
    };
    let never = |pattern: &str| {
        policy(|retry| retry.non_retryable_error_types = vec!["fine".into(), pattern.into()])
    };
    let free = Limits::default();
    let within = |duration, own| {
        policy(|retry| {
            retry.schedule = Some(own);
            retry.limits = limits(None, seconds(duration));
        })
    };
    for (retry, path) in [
        (policy(|retry| retry.jitter = Some(1.1)), "jitter"),
        (policy(|retry| retry.jitter = Some(-0.1)), "jitter"),
        (policy(|retry| retry.jitter = Some(f64::NAN)), "jitter"),
        (policy(|retry| retry.limits = limits(Some(0), None)), "max_attempts"),
        (policy(|retry| retry.limits = limits(None, seconds(0))), "max_duration"),
        (policy(|retry| retry.limits = limits(None, seconds(1))), "max_duration"),
        (within(10, constant(10)), "max_duration"),
        (within(10, constant(0)), "constant.interval"),
        (within(10, Schedule::Random { min: Duration::ZERO, max: Duration::ZERO }), "random.max"),
        (schedule(constant(31 * 24 * 3600)), "constant.interval"),
        (schedule(exponential(0, 2.0, 10)), "exponential.initial_interval"),
        (schedule(exponential(1, 0.9, 10)), "exponential.backoff_coefficient"),
        (schedule(exponential(1, f64::NAN, 10)), "exponential.backoff_coefficient"),
        (schedule(exponential(1, f64::INFINITY, 10)), "exponential.backoff_coefficient"),
        (schedule(exponential(11, 2.0, 10)), "exponential.max_interval"),
        (
            schedule(Schedule::Random { min: Duration::from_secs(2), max: Duration::from_secs(1) }),
            "random.max",
        ),
        (
            schedule(Schedule::Linear {
                initial: Duration::from_secs(2),
                increment: Duration::ZERO,
                max: Duration::from_secs(1),
            }),
            "linear.max",
        ),
        (never(""), "non_retryable_error_types[1]"),
        (never("a..b"), "non_retryable_error_types[1]"),
        (never("a b"), "non_retryable_error_types[1]"),
        (never("a*"), "non_retryable_error_types[1]"),
        (never("recoup.tiemout"), "non_retryable_error_types[1]"),
        (never("recoup.timeout.never.*"), "non_retryable_error_types[1]"),
        (
            policy(|retry| retry.retryable_error_types = vec![String::new()]),
            "retryable_error_types[0]",
        ),
        (rule(&[], free, None), "rules[0].error_types"),
        (rule(&["a", ""], free, None), "rules[0].error_types[1]"),
        (rule(&["a"], limits(Some(0), None), None), "rules[0].max_attempts"),
        (rule(&["a"], limits(None, seconds(3)), Some(constant(3))), "rules[0].max_duration"),
        (rule(&["a"], free, Some(exponential(0, 1.0, 1))), "rules[0].exponential.initial_interval"),
    ] {
        let own = retry.clone();
        let at_step = change(move |definition| definition.steps.steps[1].retry = own.clone());
        let expected = |at: &str| [(format!("{at}.retry.{path}"), IssueCode::RetryPolicyInvalid)];
        assert_eq!(issues(&at_step), expected("steps[1]"), "{retry:?}");
        let in_defaults = change(move |definition| definition.defaults.retry = retry.clone());
        assert_eq!(issues(&in_defaults), expected("defaults"));
    }
    for retry in [
        never("recoup.*"),
        never("recoup"),
        never("recoup.timeout.*"),
        never("*"),
        never("grpc.unavailable"),
        schedule(constant(0)),
        schedule(exponential(1, 1.0, 1)),
        within(10, constant(9)),
        policy(|retry| retry.limits = limits(Some(1), seconds(1))),
        rule(&["a"], limits(Some(1), seconds(1)), None),
    ] {
        let change = change(move |definition| definition.steps.steps[0].retry = retry.clone());
        assert_eq!(issues(&change), []);
    }
}

#[test]
fn type_of_a_raised_error_must_have_the_form_of_an_error_type() {
    use crate::definition::{Fail, Raise};
    let raise = |error_type: &str| {
        let raise = Raise { error_type: error_type.into(), ..Raise::default() };
        change(move |definition| {
            definition.steps.steps[1].kind = Kind::Fail(Fail::Raise(raise.clone()));
        })
    };
    let longest = "a".repeat(ERROR_TYPE_BYTES_MAX);
    for good in ["order.rejected", "a", "A-1_b.2", "recoups", &longest] {
        assert_eq!(issues(&raise(good)), [], "{good}");
    }
    let at = |code| [("steps[1].fail.type".to_owned(), code)];
    let long = format!("{longest}a");
    for (bad, code) in [
        ("", IssueCode::Required),
        (" ", IssueCode::Required),
        ("recoup", IssueCode::ErrorTypeReserved),
        ("recoup.cancelled", IssueCode::ErrorTypeReserved),
        ("order rejected", IssueCode::ErrorTypeInvalid),
        (" order", IssueCode::ErrorTypeInvalid),
        ("order..rejected", IssueCode::ErrorTypeInvalid),
        ("order.*", IssueCode::ErrorTypeInvalid),
        ("*", IssueCode::ErrorTypeInvalid),
        ("bestellung.gr\u{f6}\u{df}e", IssueCode::ErrorTypeInvalid),
        (&long, IssueCode::TooLong),
    ] {
        assert_eq!(issues(&raise(bad)), at(code), "{bad:?}");
    }
}

#[test]
fn handler_after_one_of_every_error_is_refused() {
    use crate::definition::Catch;
    let catch = |error_type: &str, when: &str| Catch {
        error_types: Some(error_type)
            .filter(|own| !own.is_empty())
            .map(Into::into)
            .into_iter()
            .collect(),
        when: Some(when).filter(|own| !own.is_empty()).map(Into::into),
        ..Catch::default()
    };
    let handlers = |catch: Vec<Catch>| {
        change(move |definition| definition.steps.steps[0].catch = catch.clone())
    };
    for (first, expected) in [
        (catch("", ""), vec![("steps[0].catch[1]", IssueCode::HandlerUnreachable)]),
        (catch("order", ""), vec![]),
        (catch("", "error.attempts > 1"), vec![]),
        // The condition must be corrected, but the second handler can be reached.
        (catch("", "nothing"), vec![("steps[0].catch[0].when", IssueCode::ExpressionInvalid)]),
    ] {
        let expected: Vec<_> =
            expected.into_iter().map(|(path, code)| (path.to_owned(), code)).collect();
        assert_eq!(issues(&handlers(vec![first.clone(), catch("", "")])), expected, "{first:?}");
    }
}

#[test]
fn all_issues_are_reported_in_order() {
    let change = change(|definition| {
        definition.name = "?".into();
        definition.finally[0].when = Some("x && y".into());
        definition.steps.steps[0].retry = policy(|retry| retry.jitter = Some(2.0));
        task(definition, 0).input = Some("\"${z}\"".into());
    });
    let paths: Vec<_> = issues(&change).into_iter().map(|(path, _)| path).collect();
    let expected = [
        "name",
        "steps[0].retry.jitter",
        "steps[0].task.input",
        "finally[0].when",
        "finally[0].when",
    ];
    assert_eq!(paths, expected);
}
