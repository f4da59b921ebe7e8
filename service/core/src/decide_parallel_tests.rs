//! Tests of branches, of what the failure of one does to the others, and of steps that time out.

#[path = "decide_failure_tests.rs"]
mod failures;

use super::*;
use crate::definition::{Branch, FailureMode, Parallel};
use crate::event::AttemptOutcome;
use crate::plan::IssueCode;

pub fn branch(steps: Vec<Step>, after: &[&str]) -> Branch {
    Branch { block: steps.into(), after: after.iter().map(|id| (*id).into()).collect() }
}

pub fn parallel(branches: &[(&str, Branch)]) -> Parallel {
    let branches = branches.iter().map(|(id, branch)| ((*id).into(), branch.clone()));
    Parallel { branches: branches.collect(), ..Parallel::default() }
}

pub fn fan(parallel: Parallel) -> Step {
    block("fan", StepKind::Parallel(parallel))
}

/// A step `fan` with branches `left` and `right`, each of one task of the same name.
fn two(mode: FailureMode) -> Step {
    let one = |id| branch(vec![step(id, 1)], &[]);
    fan(Parallel { mode, ..parallel(&[("left", one("a")), ("right", one("b"))]) })
}

impl Rig {
    pub fn task(&self, path: &str) -> TaskId {
        let open = self.state().open_attempt_of(&path.into());
        self.state().task_id(&open.unwrap_or_else(|| panic!("{path} has an open attempt")))
    }

    pub fn open_paths(&self) -> Vec<String> {
        self.state().open_attempts().map(|open| open.path.to_string()).collect()
    }

    pub fn start(&mut self, path: &str) {
        let (task, at, basis) = (self.task(path), self.now, StartBasis::Held);
        let (worker, session) = ("w".to_owned(), "s".to_owned());
        let start = Command::RecordStart { task, worker, session, at, basis };
        self.submit(start).expect("the attempt is open");
    }

    pub fn complete_one(&mut self, path: &str) {
        let (task, worker) = (self.task(path), "w".to_owned());
        let output = Payload::json(format!("\"{path}\""));
        let complete = Command::CompleteTask { task, output, worker };
        self.submit(complete).expect("the attempt is open");
    }

    pub fn fail_one(&mut self, path: &str, error_type: &str) {
        let error = TaskError { non_retryable: Some(true), ..TaskError::new(error_type, "no") };
        let (task, worker) = (self.task(path), "w".to_owned());
        self.submit(Command::FailTask { task, error, worker }).expect("the attempt is open");
    }

    pub fn undone(&self) -> Vec<String> {
        self.state().compensations().iter().map(|one| one.step.to_string()).collect()
    }

    /// Completes whatever is open until the execution has ended.
    pub fn complete_all(&mut self) {
        while self.state().is_active() {
            match self.open_paths().first().cloned() {
                Some(path) => self.complete_one(&path),
                None => self.wake(),
            }
        }
    }
}

#[test]
fn branches_run_at_the_same_time_and_their_outputs_make_up_that_of_the_step() {
    let after = set("sum", r#"["${steps.fan.output.left}", "${steps.fan.output.right}"]"#);
    let mut rig = Rig::new(&workflow(vec![two(FailureMode::FailFast), after]));
    assert_eq!(rig.open_paths(), ["fan[left].a", "fan[right].b"]);
    rig.complete_one("fan[right].b");
    assert_eq!(*state_of(&rig, "fan"), NodeState::Running, "it waits for the other branch");
    rig.complete_one("fan[left].a");
    assert_eq!(rig.ended().0, State::Succeeded);
    assert_eq!(output(&rig), r#"["fan[left].a","fan[right].b"]"#);
    assert!(rig.kinds.is_empty());

    let whole = workflow(vec![two(FailureMode::FailFast)]);
    let mut rig = Rig::new(&whole);
    rig.complete_one("fan[left].a");
    rig.complete_one("fan[right].b");
    assert_eq!(output(&rig), r#"{"left":"fan[left].a","right":"fan[right].b"}"#);
}

#[test]
fn branch_has_its_own_output_and_return_ends_only_the_branch() {
    let mut left = branch(vec![set("a", "1"), set("b", "2")], &[]);
    left.block.output = Some(r#"{"sum": "${steps.a.output + steps.b.output}"}"#.into());
    let right = vec![when("true", give_back("c", Some("7"))), set("d", "8")];
    let rig = at_once(vec![fan(parallel(&[("left", left), ("right", branch(right, &[]))]))]);
    assert_eq!(output(&rig), r#"{"left":{"sum":3},"right":7}"#);
    assert!(rig.state().node(&"fan[right].d".into()).is_none());
}

#[test]
fn branch_begins_when_all_branches_before_it_have_completed_and_reads_their_outputs() {
    let join = set("join", r#""${branches.a.output}, ${branches.b.output}""#);
    let mut rig = Rig::new(&workflow(vec![fan(parallel(&[
        ("a", branch(vec![step("one", 1)], &[])),
        ("b", branch(vec![step("two", 1)], &["a"])),
        // `a` comes before `c` by way of `b` as well, so its output can be read.
        ("c", branch(vec![join], &["b"])),
        ("d", branch(vec![step("three", 1)], &["a", "b"])),
    ]))]));
    assert_eq!(rig.open_paths(), ["fan[a].one"]);
    rig.complete_one("fan[a].one");
    assert_eq!(rig.open_paths(), ["fan[b].two"]);
    rig.complete_one("fan[b].two");
    assert_eq!(rig.open_paths(), ["fan[d].three"]);
    rig.complete_one("fan[d].three");
    let output: serde_json::Value = serde_json::from_str(output(&rig)).expect("it is JSON");
    assert_eq!(output["c"], "fan[a].one, fan[b].two");
}

#[test]
fn no_more_branches_run_at_a_time_than_the_step_allows() {
    let one = |id| branch(vec![step(id, 1)], &[]);
    let all = parallel(&[("a", one("s1")), ("b", one("s2")), ("c", one("s3")), ("d", one("s4"))]);
    let mut rig = Rig::new(&workflow(vec![fan(Parallel { concurrency: Some(2), ..all })]));
    assert_eq!(rig.open_paths(), ["fan[a].s1", "fan[b].s2"]);
    rig.complete_one("fan[b].s2");
    assert_eq!(rig.open_paths(), ["fan[a].s1", "fan[c].s3"]);
    rig.complete_all();
    assert_eq!(rig.ended().0, State::Succeeded);
}

#[test]
fn first_branch_that_fails_stops_the_others_and_the_step_fails_when_nothing_lives_in_it() {
    let handler = handler("", vec![step("mend", 1)], Some(r#""${error.step}: ${error.type}""#));
    let three = parallel(&[
        ("left", branch(vec![step("a", 1), step("never", 1)], &[])),
        ("right", branch(vec![step("b", 1)], &[])),
        ("waiting", branch(vec![step("c", 3)], &[])),
        ("after", branch(vec![step("d", 1)], &["right"])),
    ]);
    let mut rig = Rig::new(&workflow(vec![catching(fan(three), vec![handler])]));
    rig.start("fan[left].a");
    let (task, worker) = (rig.task("fan[waiting].c"), "w".to_owned());
    rig.submit(Command::FailTask { task, error: declined(), worker }).expect("it is open");
    rig.fail_one("fan[right].b", "payment.declined");
    // The attempt that waited for its retry is withdrawn; the live one has the grace period.
    assert_eq!(rig.open_paths(), ["fan[left].a"]);
    assert_eq!(*state_of(&rig, "fan[waiting].c"), NodeState::Cancelled);
    assert!(rig.state().is_ending(&"fan[left].a".into()), "its worker is told to stop");
    assert_eq!(rig.state().state, State::Running, "the run goes on");
    assert_eq!(*state_of(&rig, "fan"), NodeState::Running);
    let grace = next_wake(rig.state(), &rig.plan);
    assert_eq!(grace, Some(rig.now + 10 * SECOND));
    // A result within the grace period counts, but nothing follows from it in the branch.
    rig.complete_one("fan[left].a");
    assert!(rig.state().node(&"fan[left].never".into()).is_none());
    assert!(rig.state().node(&"fan[after].d".into()).is_none());
    assert_eq!(rig.open_paths(), ["fan.mend"], "the handler waits for the end of the branches");
    rig.complete_one("fan.mend");
    assert_eq!(rig.ended().0, State::Succeeded);
    assert_eq!(output(&rig), "\"fan[right].b: payment.declined\"");
    assert_eq!(rig.kinds, [FailureKind::AttemptFailed, FailureKind::StepCaught]);
}

#[test]
fn attempt_that_outlives_the_grace_period_of_its_step_is_closed_and_compensated() {
    let mut rig = Rig::new(&workflow(vec![two(FailureMode::FailFast)]));
    rig.start("fan[left].a");
    rig.fail_one("fan[right].b", "payment.declined");
    let task = rig.task("fan[left].a");
    rig.wake();
    let closed = rig.events.iter().find_map(|event| match event {
        Event::AttemptFailed(failed) if failed.path.as_str() == "fan[left].a" => Some(failed),
        _ => None,
    });
    let closed = closed.expect("the attempt is closed");
    assert_eq!(
        (closed.outcome, &*closed.error.error_type),
        (AttemptOutcome::Unknown, builtin::CANCELLED)
    );
    let cause = closed.error.cause.as_ref().map(|cause| &*cause.error_type);
    assert_eq!(cause, Some("payment.declined"));
    let late = Command::CompleteTask { task, output: Payload::null(), worker: "w".into() };
    assert_eq!(rig.submit(late), Err(Rejection::AttemptClosed));
    assert_eq!(rig.undone(), ["fan[left].a"], "it may have taken effect");
    rig.complete_all();
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
    assert_eq!(error(&rig).error_type, "payment.declined");
}

#[test]
fn steps_of_all_branches_are_compensated_in_the_reverse_order_of_their_completion() {
    let steps = |ids: &[&str]| ids.iter().map(|id| step(id, 1)).collect();
    let two = parallel(&[
        ("left", branch(steps(&["a", "c"]), &[])),
        ("right", branch(steps(&["b", "d"]), &[])),
    ]);
    let mut rig = Rig::new(&workflow(vec![fan(two), step("last", 1)]));
    for path in ["fan[right].b", "fan[left].a", "fan[left].c", "fan[right].d"] {
        rig.complete_one(path);
    }
    rig.fail_one("last", "order.rejected");
    assert_eq!(rig.undone(), ["fan[right].d", "fan[left].c", "fan[left].a", "fan[right].b"]);
    rig.complete_all();
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
}

#[test]
fn waiting_for_all_branches_keeps_every_error_and_runs_no_branch_after_a_failed_one() {
    let one = |id| branch(vec![step(id, 1)], &[]);
    let all = Parallel {
        mode: FailureMode::WaitAll,
        ..parallel(&[
            ("a", one("s1")),
            ("b", one("s2")),
            ("c", one("s3")),
            ("d", branch(vec![step("s4", 1)], &["b"])),
            ("e", branch(vec![step("s5", 1)], &["d"])),
        ])
    };
    let told = r#"{"first": "${error.type}", "others": "${error.suppressed}"}"#;
    let handled = catching(fan(all.clone()), vec![handler("", vec![], Some(told))]);
    let mut rig = Rig::new(&workflow(vec![handled]));
    rig.fail_one("fan[b].s2", "stock.out");
    rig.fail_one("fan[a].s1", "payment.declined");
    assert_eq!(*state_of(&rig, "fan"), NodeState::Running, "the third branch goes on");
    rig.complete_one("fan[c].s3");
    assert_eq!(rig.ended().0, State::Succeeded);
    let expected = r#"{"first":"stock.out","others":[{"message":"no","step":"fan[a].s1","type":"payment.declined"}]}"#;
    assert_eq!(output(&rig), expected);
    assert!(rig.state().node(&"fan[d].s4".into()).is_none(), "it comes after a failed branch");
    assert!(rig.state().node(&"fan[e].s5".into()).is_none(), "and so does this one, indirectly");

    let mut rig = Rig::new(&workflow(vec![fan(all)]));
    rig.fail_one("fan[b].s2", "stock.out");
    rig.fail_one("fan[a].s1", "payment.declined");
    rig.complete_one("fan[c].s3");
    assert_eq!(rig.undone(), ["fan[c].s3"]);
    rig.complete_all();
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
    let failed = error(&rig);
    assert_eq!((&*failed.error_type, failed.suppressed.len()), ("stock.out", 1));
    assert_eq!(
        rig.state().stop.as_ref().and_then(|stop| stop.step.clone()),
        Some("fan[b].s2".into())
    );
}

#[test]
fn output_of_a_parallel_that_failed_or_was_caught_or_ignored() {
    let all = || two(FailureMode::WaitAll);
    let run = |fan: Step, reads: &str| {
        let mut rig = Rig::new(&workflow(vec![fan, set("after", reads)]));
        rig.fail_one("fan[right].b", "stock.out");
        rig.complete_one("fan[left].a");
        output(&rig).to_owned()
    };
    assert_eq!(run(ignoring(all()), r#""${steps.fan.output}""#), "null");
    assert_eq!(run(ignoring(all()), r#""${steps.fan.error.type}""#), "\"stock.out\"");
    let caught = catching(all(), vec![handler("", vec![], Some("5"))]);
    assert_eq!(run(caught, r#""${steps.fan.output}""#), "5");

    let tell = set("tell", r#""${steps.fan.output}""#);
    let of = Workflow { on_failure: vec![tell], ..workflow(vec![all()]) };
    let mut rig = Rig::new(&of);
    rig.complete_one("fan[left].a");
    rig.fail_one("fan[right].b", "stock.out");
    rig.complete_all();
    let told = rig.state().node(&"tell".into()).and_then(Node::output).cloned();
    let expected = Payload::json(r#"{"left":"fan[left].a"}"#);
    assert_eq!(told, Some(expected), "what completed can be read");
}

#[test]
fn output_that_is_too_large_for_one_payload_fails_its_reader_and_not_the_step() {
    let big = |id: &str| set(id, &format!("\"{}\"", "x".repeat(1_200_000)));
    let one = |id: &str| branch(vec![big(id)], &[]);
    let fan = || fan(parallel(&[("left", one("a")), ("right", one("b"))]));
    let rig = at_once(vec![fan(), set("count", r#""${size(steps.fan.output)}""#)]);
    assert_eq!((rig.ended().0, output(&rig)), (State::Succeeded, "2"));
    let rig = at_once(vec![fan(), set("copy", r#""${steps.fan.output}""#)]);
    assert_eq!(error(&rig).error_type, builtin::PAYLOAD_TOO_LARGE);
    assert_eq!(*state_of(&rig, "fan"), NodeState::Joined);
    let rig = at_once(vec![fan()]);
    assert_eq!(error(&rig).error_type, builtin::PAYLOAD_TOO_LARGE, "the output of the run");
}

#[test]
fn output_of_a_branch_that_is_not_json_fails_the_reader_of_the_whole() {
    let mut rig = Rig::new(&workflow(vec![
        two(FailureMode::FailFast),
        ignoring(set("copy", r#""${steps.fan.output}""#)),
    ]));
    let (task, worker) = (rig.task("fan[left].a"), "w".to_owned());
    let output = Payload { content_type: "text/csv".into(), ..Payload::json("a,b") };
    rig.submit(Command::CompleteTask { task, output, worker }).expect("it is open");
    rig.complete_one("fan[right].b");
    rig.complete_all();
    assert_eq!(rig.ended().0, State::Failed, "the output of the run is that of the step");
    let copy = rig.state().node(&"copy".into()).and_then(Node::error);
    let message = copy.map(|error| error.message.as_str()).unwrap_or_default();
    assert!(message.contains("that of `left` in it is not JSON"), "{message}");
}

#[test]
fn step_that_times_out_is_stopped_and_its_own_handler_takes_the_error() {
    let timed = |kind| Step { timeout: Some(5 * SECOND), ..block("slow", kind) };
    let mended = |step| catching(step, vec![handler("recoup.timeout.block", vec![], Some("9"))]);
    for (kind, path) in [
        (StepKind::Try(vec![step("a", 3)].into()), "slow.a"),
        (
            StepKind::Parallel(parallel(&[("left", branch(vec![step("a", 3)], &[]))])),
            "slow[left].a",
        ),
        (switch("slow", &[("true", vec![step("a", 3)])], None).kind, "slow.a"),
    ] {
        let mut rig = Rig::new(&workflow(vec![mended(timed(kind))]));
        rig.start(path);
        rig.wake();
        assert!(rig.state().is_ending(&path.into()));
        assert_eq!(rig.open_paths(), [path], "the attempt has the grace period");
        rig.wake();
        assert_eq!((rig.ended().0, output(&rig)), (State::Succeeded, "9"));
        assert_eq!(rig.kinds, [FailureKind::StepCaught]);
        assert_eq!(*state_of(&rig, path), NodeState::Cancelled);
    }
}

#[test]
fn no_retry_is_scheduled_beyond_the_timeout_of_a_step_around_it() {
    let inner = vec![step("a", 9)];
    let slow = Step { timeout: Some(SECOND / 2), ..group("slow", inner) };
    let mut rig = Rig::new(&workflow(vec![slow]));
    rig.fail("slow.a", declined());
    assert_eq!(rig.ended(), (State::Failed, CompensationState::None));
    let decision = rig.events.iter().find_map(|event| match event {
        Event::AttemptFailed(failed) => Some(failed.decision.reason),
        _ => None,
    });
    assert_eq!(decision, Some(Reason::Deadline));
}

#[test]
fn timeout_of_a_step_does_not_bound_its_handler() {
    let fails = vec![raise("a", "order.rejected")];
    let slow = Step { timeout: Some(SECOND), ..group("slow", fails) };
    let slow = catching(slow, vec![handler("", vec![step("mend", 1)], None)]);
    let mut rig = Rig::new(&workflow(vec![slow]));
    rig.now = rig.now + 60 * SECOND;
    assert_eq!(next_wake(rig.state(), &rig.plan), None);
    rig.complete("slow.mend");
    assert_eq!(rig.ended().0, State::Succeeded);
}

#[test]
fn inner_step_that_is_being_stopped_is_stopped_with_the_one_around_it() {
    let inner =
        parallel(&[("x", branch(vec![step("a", 1)], &[])), ("y", branch(vec![step("b", 1)], &[]))]);
    let inner = catching(
        block("inner", StepKind::Parallel(inner)),
        vec![handler("", vec![set("c", "1")], None)],
    );
    let outer = fan(parallel(&[
        ("left", branch(vec![inner], &[])),
        ("right", branch(vec![step("d", 1)], &[])),
    ]));
    let mut rig = Rig::new(&workflow(vec![outer]));
    rig.start("fan[left].inner[x].a");
    rig.fail_one("fan[left].inner[y].b", "stock.out");
    rig.fail_one("fan[right].d", "payment.declined");
    assert_eq!(*state_of(&rig, "fan[left].inner"), NodeState::Cancelled);
    rig.complete_one("fan[left].inner[x].a");
    assert!(rig.state().node(&"fan[left].inner.c".into()).is_none(), "no handler runs in it");
    rig.complete_all();
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
    assert_eq!(error(&rig).error_type, "payment.declined");
    assert_eq!(rig.undone(), ["fan[left].inner[x].a"]);
}

#[test]
fn error_reported_by_a_branch_that_is_being_stopped_is_published_and_changes_nothing() {
    let mut rig = Rig::new(&workflow(vec![two(FailureMode::FailFast)]));
    rig.start("fan[left].a");
    rig.fail_one("fan[right].b", "payment.declined");
    rig.fail_one("fan[left].a", "stock.out");
    assert_eq!(rig.ended(), (State::Failed, CompensationState::None));
    assert_eq!(error(&rig).error_type, "payment.declined");
    let expected = [FailureKind::StepFailed, FailureKind::StepFailed, FailureKind::ExecutionFailed];
    assert_eq!(rig.kinds, expected);
}

#[test]
fn run_that_is_cancelled_or_times_out_stops_all_branches() {
    for cancels in [true, false] {
        let definition =
            Workflow { timeout: Some(60 * SECOND), ..workflow(vec![two(FailureMode::WaitAll)]) };
        let mut rig = Rig::new(&definition);
        rig.start("fan[left].a");
        match cancels {
            true => rig.submit(Command::CancelExecution { reason: "x".into() }).expect("it runs"),
            false => rig.wake(),
        }
        assert_eq!(*state_of(&rig, "fan"), NodeState::Cancelled);
        rig.complete_one("fan[left].a");
        if let Some(path) = rig.open_paths().iter().find(|path| *path == "fan[right].b") {
            let task = rig.task(path);
            rig.submit(Command::WithdrawTask { task }).expect("no worker has it");
        }
        rig.complete_all();
        let ended = if cancels { State::Cancelled } else { State::TimedOut };
        assert_eq!(rig.ended(), (ended, CompensationState::Done));
        assert_eq!(rig.undone(), ["fan[left].a"]);
    }
}

#[test]
fn branches_run_in_finally_and_on_failure_too() {
    let fan_of = |id: &str, steps: [&str; 2]| {
        let one = |id: &str| branch(vec![finally(id)], &[]);
        let kind = StepKind::Parallel(parallel(&[("x", one(steps[0])), ("y", one(steps[1]))]));
        block(id, kind)
    };
    let definition = Workflow {
        on_failure: vec![fan_of("tell", ["mail", "page"])],
        finally: vec![fan_of("tidy", ["wipe", "log"])],
        ..workflow(vec![raise("a", "order.rejected")])
    };
    let mut rig = Rig::new(&definition);
    assert_eq!(rig.open_paths(), ["tell[x].mail", "tell[y].page"]);
    assert!(!rig.state().is_ending(&"tell[x].mail".into()), "they do not stop with the run");
    rig.start("tell[y].page");
    rig.fail_one("tell[x].mail", "smtp.down");
    assert!(rig.state().is_ending(&"tell[y].page".into()), "a failed branch stops the other one");
    rig.complete_one("tell[y].page");
    assert_eq!(rig.open_paths(), ["tidy[x].wipe", "tidy[y].log"]);
    rig.complete_all();
    assert_eq!(rig.ended().0, State::Failed);
    assert_eq!(error(&rig).error_type, "order.rejected");
}

#[test]
fn wrong_branches_and_timeouts_are_refused_with_their_places() {
    use IssueCode as C;
    let one = || vec![set("a", "1")];
    let issues = |steps: Vec<Step>| {
        let issues = Plan::compile(&workflow(steps), 1).expect_err("it is refused");
        issues.into_iter().map(|issue| (issue.field_path, issue.code)).collect::<Vec<_>>()
    };
    let of = |branches: &[(&str, Branch)]| issues(vec![fan(parallel(branches))]);
    let path = |rest: &str| format!("steps[0].parallel.branches{rest}");
    assert_eq!(of(&[]), [(path(""), C::Required)]);
    assert_eq!(of(&[("Left", branch(one(), &[]))]), [(path(".Left"), C::StepIdInvalid)]);
    assert_eq!(of(&[("for", branch(one(), &[]))]), [(path(".for"), C::StepIdReserved)]);
    assert_eq!(of(&[("x", branch(vec![], &[]))]), [(path(".x.steps"), C::Required)]);
    assert_eq!(of(&[("x", branch(one(), &["y"]))]), [(path(".x.after[0]"), C::BranchUnknown)]);
    let twice = [("x", branch(one(), &[])), ("y", branch(vec![set("b", "1")], &["x", "x"]))];
    assert_eq!(of(&twice), [(path(".y.after[1]"), C::BranchRepeated)]);
    assert_eq!(of(&[("x", branch(one(), &["x"]))]), [(path(".x.after"), C::BranchCycle)]);
    let cycle = [
        ("v", branch(vec![set("z", "1")], &["w"])),
        ("w", branch(one(), &["y"])),
        ("x", branch(vec![set("b", "1")], &["w"])),
        ("y", branch(vec![set("c", "1")], &["x"])),
    ];
    let refused = Plan::compile(&workflow(vec![fan(parallel(&cycle))]), 1).expect_err("a cycle");
    assert_eq!(refused[0].field_path, path(".w.after"));
    assert!(refused[0].message.ends_with("w after y after x after w"), "{}", refused[0].message);

    let timed = Step { timeout: Some(SECOND), ..step("a", 1) };
    assert_eq!(issues(vec![timed]), [("steps[0].timeout".to_owned(), C::Misplaced)]);
    let never = Step { timeout: Some(Duration::ZERO), ..group("a", vec![set("b", "1")]) };
    assert_eq!(issues(vec![never]), [("steps[0].timeout".to_owned(), C::DurationInvalid)]);
}

#[test]
fn expression_reads_only_branches_that_come_before_its_own() {
    let reading = |template: &str, after: &[&str]| {
        let branches = parallel(&[
            ("x", branch(vec![set("a", "1")], &[])),
            ("y", branch(vec![set("b", template)], after)),
        ]);
        let refused = Plan::compile(&workflow(vec![fan(branches)]), 1);
        refused.map(drop).map_err(|issues| issues[0].message.clone())
    };
    assert_eq!(reading(r#""${branches.x.output}""#, &["x"]), Ok(()));
    for (template, after, says) in [
        (r#""${branches.x.output}""#, &[][..], "does not come after a branch `x`"),
        (r#""${branches.z.output}""#, &["x"], "does not come after a branch `z`"),
        (r#""${branches.x}""#, &["x"], "only as `branches.<id>.output`"),
        (r#""${branches}""#, &["x"], "only as `branches.<id>.output`"),
        (r#""${steps.a.output}""#, &["x"], "inside another step"),
    ] {
        let refused = reading(template, after).expect_err("it is refused");
        assert!(refused.contains(says), "{refused}");
    }
}

#[test]
fn history_that_names_a_branch_that_is_not_running_does_not_fold() {
    let rig = Rig::new(&workflow(vec![two(FailureMode::FailFast)]));
    let begins = |path: &str| Event::StepSkipped { path: path.into() };
    for (path, what) in [
        ("fan[other].x", "the branch or item is not running"),
        ("fan.x", "the path names no branch or item"),
    ] {
        let state = rig.folded.clone();
        let misfit = bounds::followed_by(state, rig.now, vec![begins(path)]);
        assert_eq!(misfit.expect_err("it does not fold").what, what);
    }
}
