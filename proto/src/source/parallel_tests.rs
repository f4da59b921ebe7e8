//! Branches of a `parallel`: their ids are the author's own, and everything inside them has a place.

use super::*;
use crate::Duration;
use crate::v1::{Branch, FailureMode, ParallelStep, Step, step};

const BRANCHES: &str = r#"
name: branches
steps:
  - id: fan
    timeout: 90s
    parallel:
      branches:
        left:
          steps:
            - id: a
              task: {type: t, scheduleToStart: 1s}
        input:
          after: [left]
          steps:
            - id: b
              onError: IGNORE
              task: {type: t, input: {maxItems: 1}}
          output: {totalPrice: 2}
        branches:
          after: [input, left]
          steps:
            - id: c
              task: {type: t, priority: 5}
      mode: WAIT_ALL
      concurrency: 2
"#;

fn read(text: &str) -> WorkflowDefinition {
    parse(text, DefinitionFormat::Yaml).map(|(definition, _)| definition).expect(text)
}

fn parallel(step: &Step) -> &ParallelStep {
    let Some(step::Kind::Parallel(parallel)) = &step.kind else { panic!("{step:?}") };
    parallel
}

#[test]
fn branches_are_read_by_their_ids_in_any_order() {
    let definition = read(BRANCHES);
    let [fan] = definition.steps.as_slice() else { panic!("{definition:?}") };
    assert_eq!(fan.timeout, Some(Duration { seconds: 90, nanos: 0 }));
    let own = parallel(fan);
    assert_eq!((own.mode(), own.concurrency), (FailureMode::WaitAll, 2));
    assert_eq!(own.branches.keys().collect::<Vec<_>>(), ["branches", "input", "left"]);
    let Branch { steps, output, after } = &own.branches["input"];
    assert_eq!((steps[0].id.as_str(), after.as_slice()), ("b", &["left".to_owned()][..]));
    assert_eq!(output.as_ref().map(|output| output.json.as_str()), Some(r#"{"totalPrice":2}"#));

    // The last branch of the text comes first.
    let (head, last) =
        BRANCHES.split_at(BRANCHES.find("        branches:\n").expect("it is there"));
    let (last, tail) = last.split_at(last.find("      mode:").expect("it is there"));
    let (head, first) = head.split_at(head.find("        left:\n").expect("it is there"));
    assert_eq!(read(&[head, last, first, tail].concat()), definition);
}

#[test]
fn branches_are_written_and_read_back_as_the_same_definition() {
    let definition = read(BRANCHES);
    let written = write(&definition);
    assert_eq!(read(&written), definition, "{written}");
    let json = serde_json::to_string(&definition).expect("it has a JSON form");
    assert_eq!(parse(&json, DefinitionFormat::Json).expect(&json).0, definition);
}

#[test]
fn fields_inside_branches_are_found_whatever_the_branches_are_called() {
    let (_, positions) = parse(BRANCHES, DefinitionFormat::Yaml).expect("it is right");
    for (path, line, column) in [
        ("left", 8, 9),
        ("left.steps[0].task.schedule_to_start", 11, 31),
        ("input.after[0]", 13, 19),
        ("input.steps[0].on_error", 16, 15),
        ("input.steps[0].task.input.maxItems", 17, 39),
        ("input.output.totalPrice", 18, 20),
        ("branches.after[1]", 20, 26),
        ("branches.steps[0].task.priority", 23, 31),
    ] {
        let path = format!("steps[0].parallel.branches.{path}");
        assert_eq!(positions.find(&path), Place { line, column }, "{path}");
    }

    // An id that is not valid keeps its spelling, so that its issue has a place.
    let text = BRANCHES.replace("        left:\n", "        leftSide:\n");
    let (_, positions) = parse(&text, DefinitionFormat::Yaml).expect("it is well formed");
    let place = positions.find("steps[0].parallel.branches.leftSide.steps[0].id");
    assert_eq!(place, Place { line: 10, column: 15 });
}

#[test]
fn bad_value_inside_branches_is_named_with_its_place() {
    for (right, wrong, place, path, part) in [
        ("WAIT_ALL", "WAIT", (24, 7), ".mode", "one of FAIL_FAST, WAIT_ALL"),
        ("concurrency: 2", "concurrency: -1", (25, 7), ".concurrency", "number"),
        ("after: [left]", "after: left", (13, 11), ".branches.input.after", "sequence"),
        (
            "priority: 5",
            "prio: 5",
            (23, 31),
            ".branches.branches.steps[0].task.prio",
            "unknown field",
        ),
        ("        input:", "        left:", (12, 9), ".branches.left", "duplicate field `left`"),
    ] {
        assert_eq!(BRANCHES.matches(right).count(), 1, "{right}");
        let error = parse(&BRANCHES.replace(right, wrong), DefinitionFormat::Yaml);
        let SourceError { place: Place { line, column }, field_path, message, .. } =
            error.expect_err(wrong);
        let expected = format!("steps[0].parallel{path}");
        assert_eq!(((line, column), field_path), (place, expected), "{message}");
        assert!(message.contains(part), "{wrong}: {message}");
    }
}
