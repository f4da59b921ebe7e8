//! Tests of the failure events of branches: what becomes of an error is published once, when it is known.

use super::*;
use crate::definition::ForEach;
use crate::failure_event::FailureEvent;

/// `kind step attempt error type`, and the errors beside it.
fn told(event: &FailureEvent) -> String {
    let subject = event.subject.as_ref().expect("it is about an execution");
    let step = subject.step.as_ref().map_or("-", StepPath::as_str);
    let Some(error) = &event.error else { return format!("{:?}", event.kind) };
    let beside: String =
        error.suppressed.iter().map(|other| format!(" +{}", other.error_type)).collect();
    format!("{:?} {step} {} {}{beside}", event.kind, subject.attempt, error.error_type)
}

impl Rig {
    /// The failure events of the transition that the change makes.
    fn events_of(&mut self, change: impl FnOnce(&mut Self)) -> Vec<String> {
        let (before, sequence) = (self.events.len(), self.state().sequence);
        change(self);
        assert_eq!(self.state().sequence, sequence + 1, "it is one transition");
        let events = failure_events(self.state(), &self.plan, &self.events[before..]);
        events.iter().map(told).collect()
    }

    fn fails(&mut self, path: &str, error_type: &str) -> Vec<String> {
        self.events_of(|rig| rig.fail_one(path, error_type))
    }
}

/// A step with this id and branches `x` and `y`, each of one task.
fn pair(id: &str, mode: FailureMode, tasks: [&str; 2]) -> Step {
    let one = |id: &str| branch(vec![Step { compensate: None, ..step(id, 3) }], &[]);
    let branches = parallel(&[("x", one(tasks[0])), ("y", one(tasks[1]))]);
    block(id, StepKind::Parallel(Parallel { mode, ..branches }))
}

#[test]
fn first_error_is_published_with_its_fate_and_each_other_one_when_its_branch_fails() {
    let step = pair("fan", FailureMode::WaitAll, ["a", "b"]);
    let caught = catching(step.clone(), vec![handler("", vec![], None)]);
    let ignored = Step { on_error: OnError::Ignore, ..step.clone() };
    for (step, fate) in [(step, "StepFailed"), (caught, "StepCaught"), (ignored, "StepIgnored")] {
        let mut rig = Rig::new(&workflow(vec![step]));
        let retried = TaskError::new("stock.busy", "");
        let (task, worker) = (rig.task("fan[y].b"), "w".to_owned());
        let fail = Command::FailTask { task, error: retried, worker };
        rig.submit(fail).expect("the attempt is open");
        rig.pass_to_schedule();
        assert_eq!(rig.fails("fan[y].b", "stock.out"), [""; 0], "its fate is not known yet");
        let events = rig.fails("fan[x].a", "payment.declined");
        assert_eq!(events[0], "StepFailed fan[x].a 1 payment.declined");
        // A step that ignores the error of its inner steps is itself the one that is reported.
        let step = if fate == "StepIgnored" { "fan 0" } else { "fan[y].b 2" };
        assert_eq!(events[1], format!("{fate} {step} stock.out +payment.declined"));
    }
}

#[test]
fn attempts_of_two_branches_that_fail_in_one_transition_are_told_apart() {
    let mut rig = Rig::new(&workflow(vec![pair("fan", FailureMode::WaitAll, ["a", "b"])]));
    let fail = |rig: &Rig, path: &str, worker: &str| {
        let error = TaskError { non_retryable: Some(true), ..TaskError::new(path, "") };
        Command::FailTask { task: rig.task(path), error, worker: worker.into() }
    };
    let commands = [fail(&rig, "fan[x].a", "w1"), fail(&rig, "fan[y].b", "w2")];
    let before = rig.events.len();
    let verdicts = rig.submit_together(commands.map(|command| (command, None)));
    assert!(verdicts.iter().all(Result::is_ok));
    let events = failure_events(rig.state(), &rig.plan, &rig.events[before..]);
    let workers = events.iter().map(|event| (event.kind, event.worker.as_str()));
    let workers: Vec<_> = workers.take(2).collect();
    // The error of `b` came second. That of `a` decides about the run.
    let failed = FailureKind::StepFailed;
    assert_eq!(workers, [(failed, "w2"), (failed, "w1")]);
    assert!(events[1].subject.as_ref().is_some_and(|subject| subject.decision.is_some()));
}

#[test]
fn timeout_of_the_step_replaces_the_first_error_which_is_published_by_itself() {
    let step = pair("fan", FailureMode::WaitAll, ["a", "b"]);
    let mut rig = Rig::new(&workflow(vec![Step { timeout: Some(60 * SECOND), ..step }]));
    rig.start("fan[x].a");
    assert_eq!(rig.fails("fan[y].b", "stock.out"), [""; 0]);
    assert_eq!(rig.events_of(Rig::wake), ["StepFailed fan[y].b 1 stock.out"]);
    let events = rig.events_of(|rig| rig.complete_one("fan[x].a"));
    assert_eq!(events[0], "StepFailed fan 0 recoup.timeout.block +stock.out");
}

#[test]
fn first_error_whose_step_does_not_go_on_is_published_when_that_is_certain() {
    let pending = || {
        let mut rig = Rig::new(&Workflow {
            timeout: Some(60 * SECOND),
            ..workflow(vec![pair("fan", FailureMode::WaitAll, ["a", "b"])])
        });
        rig.start("fan[x].a");
        assert_eq!(rig.fails("fan[y].b", "stock.out"), [""; 0]);
        rig
    };
    let cancel = |rig: &mut Rig| {
        rig.submit(Command::CancelExecution { reason: "x".into() }).expect("it runs");
    };
    let terminate = |rig: &mut Rig| {
        let terminate = Command::TerminateExecution { reason: "x".into(), unstarted: Vec::new() };
        rig.submit(terminate).expect("it runs");
    };
    let expected = "StepFailed fan[y].b 1 stock.out";
    let mut rig = pending();
    assert_eq!(rig.events_of(cancel), [expected]);
    let events = rig.events_of(terminate);
    assert!(!events.contains(&expected.to_owned()), "it is published once: {events:?}");
    assert_eq!(pending().events_of(Rig::wake), [expected], "the workflow timed out");
    assert_eq!(pending().events_of(terminate)[0], expected);
}

#[test]
fn error_inside_a_step_that_another_branch_stops_is_published_once() {
    let inner = pair("inner", FailureMode::WaitAll, ["a", "b"]);
    let outer =
        parallel(&[("left", branch(vec![inner], &[])), ("right", branch(vec![step("c", 1)], &[]))]);
    let mut rig = Rig::new(&workflow(vec![fan(outer)]));
    rig.start("fan[left].inner[x].a");
    assert_eq!(rig.fails("fan[left].inner[y].b", "stock.out"), [""; 0]);
    let stopped = rig.fails("fan[right].c", "payment.declined");
    assert_eq!(stopped, ["StepFailed fan[left].inner[y].b 1 stock.out"]);
    let cancelled = rig.events_of(|rig| {
        rig.submit(Command::CancelExecution { reason: "x".into() }).expect("it runs");
    });
    assert_eq!(cancelled, ["StepFailed fan[right].c 1 payment.declined"]);
}

#[test]
fn first_error_in_finally_is_published_when_the_cleanup_times_out() {
    let definition = Workflow {
        finally: vec![pair("fan", FailureMode::WaitAll, ["a", "b"])],
        cleanup_timeout: Some(60 * SECOND),
        ..workflow(vec![set("s", "1")])
    };
    let mut rig = Rig::new(&definition);
    rig.start("fan[x].a");
    assert_eq!(rig.fails("fan[y].b", "stock.out"), [""; 0]);
    let events = rig.events_of(Rig::wake);
    let published = events.iter().filter(|told| *told == "StepFailed fan[y].b 1 stock.out");
    assert_eq!(published.count(), 1, "{events:?}");
}

#[test]
fn error_of_an_item_is_published_at_once_and_what_it_stops_is_published_once() {
    let each = ForEach {
        items: "[1, 2]".into(),
        concurrency: Some(2),
        block: vec![pair("inner", FailureMode::WaitAll, ["a", "b"])].into(),
        ..ForEach::default()
    };
    let mut rig = Rig::new(&workflow(vec![block("lines", StepKind::ForEach(each))]));
    rig.start("lines[0].inner[x].a");
    assert_eq!(rig.fails("lines[0].inner[y].b", "stock.out"), [""; 0]);
    assert_eq!(rig.fails("lines[1].inner[x].a", "payment.declined"), [""; 0]);
    let stopped = rig.fails("lines[1].inner[y].b", "label.torn");
    let expected = [
        "StepFailed lines[1].inner[y].b 1 label.torn",
        "StepFailed lines[1].inner[x].a 1 payment.declined +label.torn",
        "StepFailed lines[0].inner[y].b 1 stock.out",
    ];
    assert_eq!(stopped, expected);
    let cancelled = rig.events_of(|rig| {
        rig.submit(Command::CancelExecution { reason: "x".into() }).expect("it runs");
    });
    assert_eq!(cancelled, [""; 0]);
}

#[test]
fn error_of_a_loop_is_published_as_that_of_the_loop_with_its_fate() {
    let each = ForEach {
        items: "[1, 2]".into(),
        mode: FailureMode::WaitAll,
        block: vec![step("a", 1)].into(),
        ..ForEach::default()
    };
    let lines = block("lines", StepKind::ForEach(each));
    let mut rig = Rig::new(&workflow(vec![catching(lines, vec![handler("", vec![], None)])]));
    let first = rig.fails("lines[0].a", "stock.out");
    assert_eq!(first, ["StepFailed lines[0].a 1 stock.out"]);
    let expected = [
        "StepFailed lines[1].a 1 stock.gone",
        "StepCaught lines 0 recoup.too_many_failures +stock.gone",
    ];
    assert_eq!(rig.fails("lines[1].a", "stock.gone"), expected);
}
