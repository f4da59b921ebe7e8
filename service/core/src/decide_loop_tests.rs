//! Tests of the items of a `for_each`.

use super::parallel::{branch, fan, parallel};
use super::*;
use crate::definition::{FailureMode, ForEach};
use crate::limits::{ATTEMPTS_OPEN_MAX, HISTORY_EVENTS_MAX, ITEMS_MAX};

fn each(items: &str, steps: Vec<Step>) -> ForEach {
    ForEach { items: items.into(), block: steps.into(), ..ForEach::default() }
}

fn lines(each: ForEach) -> Step {
    block("lines", StepKind::ForEach(each))
}

/// A task whose input is this template.
fn reading(id: &str, input: &str) -> Step {
    let mut step = step(id, 1);
    step.kind.task_mut().expect("it is a task").input = Some(input.into());
    step
}

fn of(steps: Vec<Step>, input: &str) -> Rig {
    Rig::of(&workflow(steps), Payload::json(input.to_owned()))
}

fn input_of(rig: &Rig, path: &str) -> String {
    let task = rig.state().task(&path.into()).expect("it has begun");
    String::from_utf8(task.input.data.to_vec()).expect("it is JSON")
}

#[test]
fn items_run_in_their_order_as_many_at_a_time_as_the_step_allows() {
    let body = || vec![reading("pack", r#"["${index}", "${key}", "${item.sku}"]"#)];
    let input = r#"{"lines": [{"sku": "a"}, {"sku": "b"}, {"sku": "c"}]}"#;
    let mut rig = of(vec![lines(each("input.lines", body()))], input);
    for (index, sku) in ["a", "b", "c"].iter().enumerate() {
        let path = format!("lines[{index}].pack");
        assert_eq!(rig.open_paths(), [&*path], "one at a time by default");
        assert_eq!(input_of(&rig, &path), format!(r#"[{index},"{index}","{sku}"]"#));
        rig.complete_one(&path);
    }
    assert_eq!(rig.ended().0, State::Succeeded);
    assert_eq!(output(&rig), r#"["lines[0].pack","lines[1].pack","lines[2].pack"]"#);

    let two = ForEach { concurrency: Some(2), ..each("input.lines", body()) };
    let mut rig = of(vec![lines(two)], input);
    assert_eq!(rig.open_paths(), ["lines[0].pack", "lines[1].pack"]);
    rig.complete_one("lines[1].pack");
    assert_eq!(rig.open_paths(), ["lines[0].pack", "lines[2].pack"]);
    rig.complete_all();
    // The outputs are in the order of the items, not in that of their ends.
    assert_eq!(output(&rig), r#"["lines[0].pack","lines[1].pack","lines[2].pack"]"#);
}

#[test]
fn key_of_an_item_stands_in_paths_and_idempotency_keys() {
    let body = || vec![reading("pack", r#"["${index}", "${key}", "${item.n}"]"#)];
    let by_sku = ForEach { item_key: Some("item.sku".into()), ..each("input.lines", body()) };
    let input = r#"{"lines": [{"sku": "x/1", "n": 7}, {"sku": 25, "n": 8}]}"#;
    let mut rig = of(vec![lines(by_sku)], input);
    assert_eq!(rig.open_paths(), ["lines[x%2F1].pack"]);
    assert_eq!(input_of(&rig, "lines[x%2F1].pack"), r#"[0,"x/1",7]"#);
    let key = rig.state().idempotency_key(&"lines[x%2F1].pack".into());
    assert!(key.ends_with("/lines[x%2F1].pack/0"), "{key}");
    rig.complete_one("lines[x%2F1].pack");
    assert_eq!(rig.open_paths(), ["lines[25].pack"]);

    let map = r#"{"lines": {"b": {"n": 2}, "a": {"n": 1}}}"#;
    let mut rig = of(vec![lines(each("input.lines", body()))], map);
    assert_eq!(input_of(&rig, "lines[a].pack"), r#"[0,"a",1]"#);
    rig.complete_all();
    assert_eq!(output(&rig), r#"["lines[a].pack","lines[b].pack"]"#, "in the order of the keys");
}

#[test]
fn no_item_at_all_completes_the_step_with_an_empty_list() {
    let rig = of(vec![lines(each("input.lines", vec![step("pack", 1)]))], r#"{"lines": []}"#);
    assert_eq!((rig.ended().0, output(&rig)), (State::Succeeded, "[]"));
}

#[test]
fn items_that_cannot_run_fail_the_step_before_the_first_of_them() {
    let keyed = |key: &str| ForEach {
        item_key: Some(key.into()),
        ..each("input.lines", vec![step("pack", 1)])
    };
    let plain = || each("input.lines", vec![step("pack", 1)]);
    let many = |count: usize| format!(r#"{{"lines": [{}]}}"#, vec!["1"; count].join(","));
    let long = format!(r#"{{"lines": [{{"id": "{}"}}]}}"#, "x".repeat(65));
    for (each, input, error_type, says) in [
        (plain(), r#"{"lines": 5}"#.into(), builtin::ITEMS_INVALID, "neither a list nor a map"),
        (plain(), r#"{}"#.into(), builtin::EXPRESSION, "no such key"),
        (plain(), many(ITEMS_MAX + 1), builtin::ITEMS_INVALID, "10001 items"),
        (
            keyed("item.id"),
            r#"{"lines": [{}]}"#.into(),
            builtin::ITEMS_INVALID,
            "the key of item 0",
        ),
        (keyed("item"), r#"{"lines": [1, 1]}"#.into(), builtin::ITEMS_INVALID, "have the key `1`"),
        (keyed("item"), r#"{"lines": [""]}"#.into(), builtin::ITEMS_INVALID, "is empty"),
        (keyed("item"), r#"{"lines": [1.5]}"#.into(), builtin::ITEMS_INVALID, "the key of item 0"),
        (keyed("item.id"), long, builtin::ITEMS_INVALID, "more than 64 bytes"),
    ] {
        let rig = of(vec![lines(each)], &input);
        assert_eq!(rig.ended(), (State::Failed, CompensationState::None));
        let error = error(&rig);
        assert_eq!(error.error_type, error_type, "{}", error.message);
        assert!(error.message.contains(says), "{}", error.message);
        assert!(rig.started().is_empty());
    }
}

#[test]
fn loop_for_which_the_history_has_no_room_fails_before_its_first_item() {
    let all = || lines(each("input.lines", vec![set("pack", "1")]));
    let rig = of(vec![all()], r#"{"lines": [1]}"#);
    let mut state = rig.folded.clone().expect("it was started");
    assert_eq!(rig.ended().0, State::Succeeded);
    let steps = vec![step("first", 1), all()];
    let mut rig = of(steps, &format!(r#"{{"lines": [{}]}}"#, vec!["1"; 1_000].join(",")));
    state = rig.folded.clone().unwrap_or(state);
    state.event_count = u32::try_from(HISTORY_EVENTS_MAX - 1_000).expect("it is small");
    rig.state = Some(Box::new(state.clone()));
    rig.folded = Some(state);
    rig.terse = None;
    rig.complete_one("first");
    rig.complete_all();
    assert_eq!(error(&rig).error_type, builtin::HISTORY_TOO_LONG);
    assert!(!rig.events.iter().any(|event| matches!(event, Event::LoopStarted { .. })));
}

#[test]
fn first_item_that_fails_stops_the_others() {
    let body = vec![step("pack", 1), step("ship", 1)];
    let two = ForEach { concurrency: Some(2), ..each("[1, 2, 3]", body) };
    let told = r#"["${error.type}", "${error.cause.type}", "${error.message}", "${error.step}"]"#;
    let caught = catching(lines(two), vec![handler("", vec![], Some(told))]);
    let mut rig = Rig::new(&workflow(vec![caught]));
    rig.start("lines[0].pack");
    rig.fail_one("lines[1].pack", "stock.out");
    assert!(rig.state().is_ending(&"lines[0].pack".into()));
    rig.complete_one("lines[0].pack");
    assert_eq!(rig.ended().0, State::Succeeded);
    let expected = r#"["recoup.too_many_failures","stock.out","1 of 3 items failed","lines"]"#;
    assert_eq!(output(&rig), expected);
    assert!(rig.state().node(&"lines[0].ship".into()).is_none());
    assert!(rig.state().node(&"lines[2].pack".into()).is_none());
}

#[test]
fn waiting_for_all_items_fails_afterwards_and_compensates_what_completed() {
    let body = vec![step("pack", 1)];
    let all = ForEach { mode: FailureMode::WaitAll, ..each("[1, 2, 3, 4]", body) };
    let mut rig = Rig::new(&workflow(vec![lines(all)]));
    rig.complete_one("lines[0].pack");
    rig.fail_one("lines[1].pack", "stock.out");
    rig.fail_one("lines[2].pack", "stock.gone");
    rig.complete_one("lines[3].pack");
    assert_eq!(rig.undone(), ["lines[3].pack", "lines[0].pack"]);
    rig.complete_all();
    assert_eq!(rig.ended(), (State::Failed, CompensationState::Done));
    let error = error(&rig);
    assert_eq!(error.message, "2 of 4 items failed");
    assert_eq!(error.cause.as_ref().map(|cause| &*cause.error_type), Some("stock.out"));
    assert_eq!(error.suppressed.len(), 1);
    assert_eq!(
        (&*error.suppressed[0].step, &*error.suppressed[0].error_type),
        ("lines[2].pack", "stock.gone")
    );
    let failed = rig.kinds.iter().filter(|kind| **kind == FailureKind::StepFailed).count();
    assert_eq!(failed, 3, "one for each item that failed, and one for the loop");
}

#[test]
fn items_of_nested_loops_read_those_around_them_and_their_own_earlier_steps() {
    let inner = vec![
        set(
            "sum",
            r#"["${loops.rows.item}", "${item}", "${loops.cells.index}", "${loops.rows.key}"]"#,
        ),
        set("copy", r#"{"of": "${steps.sum.output}", "row": "${steps.row.output}"}"#),
    ];
    let cells = block("cells", StepKind::ForEach(each("item.cells", inner)));
    let rows = vec![set("row", r#""row ${index}""#), cells];
    let rig = of(
        vec![block("rows", StepKind::ForEach(each("input.rows", rows)))],
        r#"{"rows": [{"cells": [1, 2]}, {"cells": [3]}]}"#,
    );
    assert_eq!(rig.ended().0, State::Succeeded);
    let output: serde_json::Value = serde_json::from_str(output(&rig)).expect("it is JSON");
    assert_eq!(output[0][1]["of"], serde_json::json!([{"cells": [1, 2]}, 2, 1, "0"]));
    assert_eq!(output[1][0]["row"], "row 1", "each item reads the steps around itself");
    assert_eq!(output[1][0]["of"][3], "1");
    assert!(rig.state().node(&"rows[1].cells[0].copy".into()).is_some());
}

#[test]
fn compensation_and_handler_of_an_item_read_that_item() {
    let mut pack = step("pack", 1);
    let undo = pack.compensate.as_mut().expect("it has one");
    undo.task.input = Some(r#"["${item}", "${steps.pack.output}", "${error.type}"]"#.into());
    let risky =
        catching(raise("risky", "stock.out"), vec![handler("", vec![], Some(r#""${item}""#))]);
    let body = vec![pack, risky];
    let mut rig = Rig::new(&workflow(vec![lines(each("[5, 6]", body)), raise("end", "order.bad")]));
    rig.complete_one("lines[0].pack");
    rig.complete_one("lines[1].pack");
    let caught = |path: &str| rig.state().node(&path.into()).and_then(Node::output).cloned();
    assert_eq!(caught("lines[1].risky"), Some(Payload::json("6")));
    assert_eq!(input_of(&rig, "lines[1].pack/compensate"), r#"[6,"lines[1].pack","order.bad"]"#);
    rig.complete_all();
    assert_eq!(input_of(&rig, "lines[0].pack/compensate"), r#"[5,"lines[0].pack","order.bad"]"#);
}

#[test]
fn branches_inside_an_item_read_each_other_within_the_item() {
    let branches = parallel(&[
        ("a", branch(vec![set("one", r#""${item}""#)], &[])),
        ("b", branch(vec![set("two", r#""${branches.a.output * 2}""#)], &["a"])),
    ]);
    let rig = at_once(vec![lines(each("[3, 4]", vec![fan(branches)]))]);
    assert_eq!(output(&rig), r#"[{"a":3,"b":6},{"a":4,"b":8}]"#);
}

#[test]
fn no_item_begins_while_an_execution_has_as_many_open_attempts_as_it_may() {
    let all = |id: &str, items: u32, steps| {
        let items = format!("{:?}", (0..items).collect::<Vec<_>>());
        let each = ForEach { concurrency: Some(1_000), ..each(&items, steps) };
        block(id, StepKind::ForEach(each))
    };
    let cells = all("cells", 60, vec![step("pack", 1)]);
    let mut rig = Rig::new(&workflow(vec![all("rows", 20, vec![cells])]));
    // The first transition was full before the limit was reached.
    rig.wake();
    assert_eq!(rig.state().open_attempt_count(), ATTEMPTS_OPEN_MAX);
    let (mut completed, mut most) = (0, 0);
    while rig.state().is_active() {
        let open: Vec<_> =
            rig.state().open_attempts().map(|open| rig.state().task_id(&open)).collect();
        most = most.max(open.len());
        completed += open.len();
        let commands = open.into_iter().map(|task| {
            let (output, worker) = (Payload::json("1"), "w".to_owned());
            (Command::CompleteTask { task, output, worker }, None)
        });
        let mut commands: Vec<_> = commands.collect();
        while !commands.is_empty() {
            let rest = commands.split_off(commands.len().min(100));
            assert!(rig.submit_together(commands).iter().all(Result::is_ok));
            commands = rest;
        }
    }
    assert_eq!(rig.ended().0, State::Succeeded);
    assert_eq!((completed, most), (1_200, ATTEMPTS_OPEN_MAX));
}

#[test]
fn loop_times_out_and_its_items_are_stopped() {
    let slow = Step { timeout: Some(5 * SECOND), ..lines(each("[1, 2]", vec![step("pack", 1)])) };
    let slow = catching(slow, vec![handler("recoup.timeout.block", vec![], Some("9"))]);
    let mut rig = Rig::new(&workflow(vec![slow]));
    rig.start("lines[0].pack");
    rig.wake();
    assert!(rig.state().is_ending(&"lines[0].pack".into()));
    rig.wake();
    assert_eq!((rig.ended().0, output(&rig)), (State::Succeeded, "9"));
}

#[test]
fn wrong_loops_are_refused_with_their_places() {
    use crate::plan::IssueCode as C;
    let issues = |each: ForEach| {
        let issues = Plan::compile(&workflow(vec![lines(each)]), 1).expect_err("it is refused");
        issues.into_iter().map(|issue| (issue.field_path, issue.code)).collect::<Vec<_>>()
    };
    let path = |rest: &str| format!("steps[0].for_each{rest}");
    let body = || vec![set("a", "1")];
    assert_eq!(issues(each("input", vec![])), [(path(".steps"), C::Required)]);
    assert_eq!(issues(each(" ", body())), [(path(".items"), C::Required)]);
    assert_eq!(issues(each("input.", body())), [(path(".items"), C::ExpressionInvalid)]);
    assert_eq!(issues(each("item", body())), [(path(".items"), C::ExpressionInvalid)]);
    for key in ["sku", "item.", "item[0]", "item.a + 1"] {
        let keyed = ForEach { item_key: Some(key.into()), ..each("input", body()) };
        assert_eq!(issues(keyed), [(path(".item_key"), C::ItemKeyInvalid)], "{key}");
    }
    for (template, says) in [
        (r#""${loops.other.item}""#, "no `for_each` with the id `other`"),
        (r#""${loops.lines}""#, "only `loops.<id>.item`"),
    ] {
        let issues =
            Plan::compile(&workflow(vec![lines(each("input", vec![set("a", template)]))]), 1);
        let message = issues.expect_err("it is refused")[0].message.clone();
        assert!(message.contains(says), "{message}");
    }
    let outside = Plan::compile(&workflow(vec![set("a", r#""${index}""#)]), 1);
    let message = outside.expect_err("it is refused")[0].message.clone();
    assert!(message.contains("only inside a `for_each`"), "{message}");
    // A variable of a comprehension may have the same name.
    let hides = Plan::compile(&workflow(vec![set("a", r#""${[1].map(item, item + 1)}""#)]), 1);
    assert!(hides.is_ok());
}

#[test]
fn history_with_items_that_do_not_fit_does_not_fold() {
    let rig = Rig::new(&workflow(vec![step("a", 1)]));
    let begins = |items: &str, keys: Option<Vec<crate::id::ItemKey>>| Event::LoopStarted {
        path: "lines".into(),
        generation: 0,
        items: PayloadSource::Inline(Payload::json(items.to_owned())),
        keys,
        concurrency: 1,
        deadline: None,
    };
    for (event, what) in [
        (begins("5", None), "the items are no list"),
        (begins("[1, 2]", Some(vec!["a".into()])), "there is not a key for each item"),
    ] {
        let misfit = bounds::followed_by(rig.folded.clone(), rig.now, vec![event]);
        assert_eq!(misfit.expect_err("it does not fold").what, what);
    }
    let skipped = Event::StepSkipped { path: "lines[1].pack".into() };
    let events = vec![begins("[1, 2]", None), skipped];
    let misfit = bounds::followed_by(rig.folded.clone(), rig.now, events);
    assert_eq!(misfit.expect_err("items begin in order").what, "the branch or item is not running");
}
