use super::*;

fn lines(concurrency: u32) -> Event {
    let step = step("lines", false);
    Event::LoopStarted(v1::LoopStarted { step, concurrency, ..v1::LoopStarted::default() })
}

fn item_failed(item: &str, failed_step: &str) -> Event {
    Event::ItemFailed(v1::ItemFailed {
        step: step("lines", false),
        item: item.to_owned(),
        error: error("stock.out", "none left"),
        failed_step: failed_step.to_owned(),
    })
}

fn of(state: ExecutionState, item_count: u32) -> ExecutionInfo {
    let step_path = "lines".to_owned();
    let own = v1::LoopInfo { step_path, item_count, ..v1::LoopInfo::default() };
    ExecutionInfo { loops: vec![own], ..execution(state) }
}

fn step_failed(path: &str, own: Option<Error>) -> Event {
    Event::StepFailed(v1::StepFailed { step: step(path, false), error: own })
}

#[test]
fn timeline_shows_the_items_of_a_loop_by_their_keys() {
    let out = error("stock.out", "none left");
    let many = error("recoup.too_many_failures", "1 of 2 items failed");
    let stopped = Event::BlockStopped(v1::BlockStopped {
        step: step("lines", false),
        error: None,
        grace_until: at(100),
    });
    let events = vec![
        (0, started()),
        (0, lines(2)),
        (0, scheduled("lines[x%2F1].pack", false, 1, 0)),
        (0, scheduled("lines[2].pack", false, 1, 0)),
        (50, completed("lines[2].pack", false, 1)),
        (100, failed("lines[x%2F1].pack", 1, out.clone(), stop(RetryReason::NonRetryable))),
        (100, step_failed("lines[x%2F1].pack", out)),
        (100, item_failed("x/1", "lines[x%2F1].pack")),
        (100, stopped),
        (100, step_failed("lines", many)),
    ];
    assert_renders(
        &of(ExecutionState::Failed, 2),
        events,
        "
✗ order v3  e1  FAILED
  namespace default · key order-7 · started 2026-09-21T14:13:20Z
  input {\"id\":7}

  +0.000s  ● started                           order v3
  +0.000s  ⟳ lines                             repeats its steps for 2 items, at most 2 at a time
  +0.050s  ✓ lines[2].pack      1 of 5   50ms  by worker-1
  +0.100s  ✗ lines[x%2F1].pack  1 of 5  100ms  stock.out: none left (on worker-1) → stopped: non-retryable (the error says so)
  +0.100s  ✗ lines[x%2F1]                      the item failed with the error of lines[x%2F1].pack
  +0.100s  ■ lines                             stopped, because item `x/1` failed
  +0.100s  ✗ lines                             recoup.too_many_failures: 1 of 2 items failed
",
    );
}

/// The subjects of the lines of a loop whose items complete, except for the last of them.
fn subjects(items: usize, end: &[Event]) -> Vec<String> {
    let mut events = vec![(0, started()), (0, lines(1))];
    for item in 0..items {
        let path = format!("lines[{item}].pack");
        events.push((0, scheduled(&path, false, 1, 0)));
        if item + 1 < items {
            events.push((0, completed(&path, false, 1)));
        } else {
            let out = error("stock.out", "none left");
            events.push((0, failed(&path, 1, out.clone(), stop(RetryReason::NonRetryable))));
            events.push((0, step_failed(&path, out)));
            events.push((0, item_failed(&item.to_string(), &path)));
        }
    }
    events.extend(end.iter().map(|event| (0, event.clone())));
    let execution = of(ExecutionState::Failed, 10_000);
    let shown = render(&execution, &history(events), Style::PLAIN);
    let lines = shown.iter().skip_while(|line| !line.contains("started  "));
    lines.map(|line| line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn loop_of_twenty_items_is_shown_whole() {
    assert_eq!(subjects(20, &[]).iter().filter(|line| line.contains("].pack 1 of 5")).count(), 20);
}

#[test]
fn longer_loop_is_folded_except_for_its_first_items_and_those_that_failed() {
    let many = step_failed("lines", error("recoup.too_many_failures", "1 of 1500 items failed"));
    let shown = subjects(1_500, &[many]);
    assert_eq!(shown[1], "lines repeats its steps for 10,000 items");
    for (index, line) in shown[2..7].iter().enumerate() {
        assert!(line.starts_with(&format!("lines[{index}].pack 1 of 5")), "{line}");
    }
    assert!(shown[7].starts_with("lines[1499].pack 1 of 5"), "{shown:?}");
    assert!(shown[8].starts_with("lines[1499] the item failed"), "{shown:?}");
    assert_eq!(shown[9], "lines 1,494 more items");
    assert!(shown[10].starts_with("lines recoup.too_many_failures"), "{shown:?}");
    assert_eq!(shown.len(), 11, "{shown:?}");
}

#[test]
fn items_of_a_loop_that_runs_are_counted_before_the_pending_attempts() {
    let shown = subjects(30, &[]);
    assert!(shown.last().is_some_and(|line| line.ends_with("24 more items")), "{shown:?}");
}

#[test]
fn title_of_a_long_compensation_names_the_first_steps() {
    let due = (0..1_030).map(|item| DueCompensation {
        step_path: format!("lines[{item}].pack"),
        outcome: StepOutcome::Completed.into(),
    });
    let started =
        v1::CompensationStarted { due: due.collect(), ..v1::CompensationStarted::default() };
    let title = super::super::words::title(&super::super::model::Section::Compensation(&started));
    assert!(title.ends_with("lines[19].pack, and 1,010 more"), "{title}");
}
