use super::*;

fn suppressed(step_path: &str, error_type: &str) -> v1::SuppressedError {
    let (step_path, r#type) = (step_path.to_owned(), error_type.to_owned());
    v1::SuppressedError { step_path, r#type, message: "x".to_owned() }
}

fn fan(concurrency: u32) -> Event {
    Event::ParallelStarted(v1::ParallelStarted {
        step: step("fan", false),
        ready: vec!["left".to_owned(), "right".to_owned()],
        concurrency,
        ..v1::ParallelStarted::default()
    })
}

fn branch_failed(branch: &str, failed_step: &str, error: Option<Error>) -> Event {
    Event::BranchFailed(v1::BranchFailed {
        step: step("fan", false),
        branch: branch.to_owned(),
        error,
        failed_step: failed_step.to_owned(),
    })
}

fn stopped(path: &str, error: Option<Error>, grace_until: i64) -> Event {
    Event::BlockStopped(v1::BlockStopped {
        step: step(path, false),
        error,
        grace_until: at(grace_until),
    })
}

fn step_failed(path: &str, error: Option<Error>) -> Event {
    Event::StepFailed(v1::StepFailed { step: step(path, false), error })
}

#[test]
fn timeline_shows_why_the_other_branches_were_stopped() {
    let out = error("stock.out", "none left");
    let mut whole = out.clone();
    if let Some(whole) = &mut whole {
        whole.suppressed = vec![suppressed("fan[right].b", "payment.declined")];
    }
    let cancelled = error("recoup.cancelled", "too late");
    let events = vec![
        (0, started()),
        (0, fan(0)),
        (0, scheduled("fan[left].a", false, 1, 0)),
        (0, scheduled("fan[right].b", false, 1, 0)),
        (100, failed("fan[left].a", 1, out.clone(), stop(RetryReason::NonRetryable))),
        (100, step_failed("fan[left].a", out.clone())),
        (100, branch_failed("left", "fan[left].a", out.clone())),
        (100, stopped("fan", None, 10_100)),
        (10_100, failed("fan[right].b", 1, cancelled.clone(), stop(RetryReason::Cancelled))),
        (10_100, step_failed("fan", whole)),
        // Only steps inside the stopped step end because of it.
        (10_200, scheduled("fan_out", false, 1, 10_200)),
        (10_300, failed("fan_out", 1, cancelled, stop(RetryReason::Cancelled))),
    ];
    assert_renders(
        &execution(ExecutionState::Failed),
        events,
        "
✗ order v3  e1  FAILED
  namespace default · key order-7 · started 2026-09-21T14:13:20Z
  input {\"id\":7}

   +0.000s  ● started                      order v3
   +0.000s  ⇉ fan                          begins left, right
   +0.100s  ✗ fan[left].a   1 of 5  100ms  stock.out: none left (on worker-1) → stopped: non-retryable (the error says so)
   +0.100s  ✗ fan[left]                    the branch failed with the error of fan[left].a
   +0.100s  ■ fan                          stopped, because branch `left` failed; live attempts have 10.0s to end
  +10.100s  ✗ fan[right].b  1 of 5  10.1s  recoup.cancelled: too late (on worker-1) → stopped: a step around it was stopped
  +10.100s  ✗ fan                          stock.out: none left (besides payment.declined in fan[right].b)
  +10.300s  ✗ fan_out       1 of 5  100ms  recoup.cancelled: too late (on worker-1) → stopped: the execution is being cancelled
",
    );
}

#[test]
fn timeline_shows_the_timeout_of_a_step_and_the_end_of_branches() {
    let late = error("recoup.timeout.block", "the step did not end in time");
    let completed_fan =
        Event::ParallelCompleted(v1::ParallelCompleted { step: step("fan", false) });
    let branch = Event::BranchCompleted(v1::BranchCompleted {
        step: step("fan", false),
        branch: "left".to_owned(),
        ..v1::BranchCompleted::default()
    });
    let events = vec![
        (0, started()),
        (0, fan(1)),
        (0, scheduled("fan[left].a", false, 1, 0)),
        (50, completed("fan[left].a", false, 1)),
        (50, branch),
        (50, completed_fan),
        (60_000, stopped("slow", late.clone(), 60_000)),
        (60_000, step_failed("slow", late)),
    ];
    assert_renders(
        &execution(ExecutionState::Failed),
        events,
        "
✗ order v3  e1  FAILED
  namespace default · key order-7 · started 2026-09-21T14:13:20Z
  input {\"id\":7}

   +0.000s  ● started                    order v3
   +0.000s  ⇉ fan                        begins left, right, at most 1 at a time
   +0.050s  ✓ fan[left].a  1 of 5  50ms  by worker-1
   +0.050s  ✓ fan                        every branch completed
  +60.000s  ■ slow                       stopped, because recoup.timeout.block: the step did not end in time
  +60.000s  ✗ slow                       recoup.timeout.block: the step did not end in time
",
    );
}

#[test]
fn errors_of_other_branches_follow_the_error_of_the_step() {
    let mut own = error("stock.out", "none left").expect("it is made");
    own.suppressed = vec![suppressed("fan[b].x", "a.b"), suppressed("fan[c].y", "c.d")];
    let line = crate::cli::text::error_line(Some(&own));
    assert_eq!(line, "stock.out: none left (besides a.b in fan[b].x, c.d in fan[c].y)");
}
