use super::*;
use crate::Duration;
use crate::v1::{Delivery, OnError, Template, compensate, retry_policy, retry_rule, step};

const ORDER: &str = r#"
name: order
description: Takes an order
defaults:
  queue: shop
  retry: {exponential: {initial_interval: 250ms, backoff_coefficient: 1.5, max_interval: 1m}, jitter: 0, max_attempts: 4}
timeout: 1h30m
cancelGrace: 0s
steps:
  - id: reserve
    task:
      type: stock.reserve
      input: {items: "${input.items}", note: "pays $${x}"}
    compensate:
      task: {type: stock.release, input: {reservation: "${steps.reserve.output.id}"}}
      retry: {constant: {interval: 5s}, max_duration: 1h}
      only_completed: true
  - id: charge
    when: input.amount > 0
    on_error: IGNORE
    allowWarning: true
    retry:
      linear: {initial: 1s, increment: 2s, max: 10s}
      match_on: MATCH_ON_ROOT_CAUSE
      non_retryable_error_types: [payment.declined, "*"]
      rules:
        - error_types: [payment.rate_limited]
          random: {min: 1s, max: 3s}
          max_attempts: 3
    task:
      type: payment.charge
      startToClose: 20s
      heartbeat: 1.5s
      priority: -3
      delivery: AT_MOST_ONCE
finally:
  - id: notify
    task: {type: mail.send}
output: {total: "${steps.charge.output.total}", big: 9007199254740993, list: [1, 2.5, null, true]}
"#;

fn yaml(text: &str) -> Result<WorkflowDefinition, SourceError> {
    parse(text, DefinitionFormat::Yaml).map(|(definition, _)| definition)
}

/// What is wrong: line, column, path, message.
fn fault(text: &str, format: DefinitionFormat) -> (usize, usize, String, String) {
    let error = parse(text, format).expect_err("the text is wrong");
    (error.place.line, error.place.column, error.field_path, error.message)
}

fn yaml_fault(text: &str) -> (usize, usize, String, String) {
    fault(text, DefinitionFormat::Yaml)
}

fn template(step: &crate::v1::Step) -> serde_json::Value {
    let Some(step::Kind::Task(task)) = &step.kind else { panic!("not a task: {step:?}") };
    task.input.as_ref().expect("it has an input").value().expect("it is JSON")
}

/// A definition of one step whose input is this YAML text.
fn with_input(input: &str) -> String {
    format!("name: a\nsteps:\n- id: b\n  task:\n    type: c\n    input: {input}\n")
}

#[test]
fn reads_a_whole_definition() {
    let order = yaml(ORDER).expect("it is right");
    assert_eq!(order.name, "order");
    assert_eq!(order.timeout, Some(Duration { seconds: 5400, nanos: 0 }));
    assert_eq!(order.cancel_grace, Some(Duration { seconds: 0, nanos: 0 }));
    assert_eq!(order.cleanup_timeout, None);

    let retry = order.defaults.as_ref().and_then(|defaults| defaults.retry.as_ref());
    let retry = retry.expect("defaults have a policy");
    assert_eq!((retry.jitter, retry.max_attempts), (Some(0.0), Some(4)));
    let Some(retry_policy::Schedule::Exponential(schedule)) = &retry.schedule else {
        panic!("not exponential: {retry:?}")
    };
    assert_eq!(schedule.initial_interval, Some(Duration { seconds: 0, nanos: 250_000_000 }));
    assert_eq!(schedule.backoff_coefficient, Some(1.5));

    let [reserve, charge] = order.steps.as_slice() else { panic!("two steps: {order:?}") };
    assert_eq!(
        template(reserve),
        serde_json::json!({"items": "${input.items}", "note": "pays $${x}"})
    );
    let compensate = reserve.compensate.as_ref().expect("reserve is undone");
    let Some(compensate::Kind::Task(undo)) = &compensate.kind else { panic!("{compensate:?}") };
    assert_eq!(undo.r#type, "stock.release");
    assert!(compensate.only_completed);

    assert_eq!(charge.on_error(), OnError::Ignore);
    assert!(charge.allow_warning);
    assert_eq!(charge.when, "input.amount > 0");
    let policy = charge.retry.as_ref().expect("charge has a policy");
    assert_eq!(policy.match_on(), crate::v1::MatchOn::RootCause);
    assert_eq!(policy.non_retryable_error_types, ["payment.declined", "*"]);
    assert!(matches!(policy.rules[0].schedule, Some(retry_rule::Schedule::Random(_))));
    let Some(step::Kind::Task(task)) = &charge.kind else { panic!("{charge:?}") };
    assert_eq!(task.start_to_close, Some(Duration { seconds: 20, nanos: 0 }));
    assert_eq!(task.heartbeat, Some(Duration { seconds: 1, nanos: 500_000_000 }));
    assert_eq!((task.priority, task.delivery()), (-3, Delivery::AtMostOnce));
    assert_eq!(order.finally[0].id, "notify");
}

#[test]
fn json_form_reads_back_as_the_same_definition() {
    let order = yaml(ORDER).expect("it is right");
    for text in [
        serde_json::to_string(&order).expect("it has a JSON form"),
        serde_json::to_string_pretty(&order).expect("it has a JSON form"),
    ] {
        let (again, _) = parse(&text, DefinitionFormat::Json).expect("it is JSON");
        assert_eq!(again, order);
        assert_eq!(serde_json::from_str::<WorkflowDefinition>(&text).ok(), Some(order.clone()));
    }
    let json = serde_json::to_value(&order).expect("it has a JSON form");
    assert_eq!(json["cancelGrace"], "0s");
    assert_eq!(json["steps"][1]["onError"], "ON_ERROR_IGNORE");
    assert_eq!(json["output"]["big"], 9_007_199_254_740_993_i64);
}

#[test]
fn whole_numbers_stay_exact() {
    for number in ["9007199254740993", "-9223372036854775808", "18446744073709551615", "0", "-1"] {
        let definition = yaml(&with_input(number)).expect("it fits into 64 bits");
        assert_eq!(template(&definition.steps[0]).to_string(), number);
    }
    let quoted = yaml(&with_input("'18446744073709551616'")).expect("it is text");
    assert_eq!(template(&quoted.steps[0]), "18446744073709551616");
}

#[test]
fn numbers_that_would_change_are_refused() {
    for number in ["18446744073709551616", "-9223372036854775809", "{a: [123456789012345678901]}"] {
        let (line, _, path, message) = yaml_fault(&with_input(number));
        assert_eq!(line, 6);
        assert!(path.starts_with("steps[0].task.input"), "{path}");
        assert!(message.contains("64 bits"), "{message}");
    }
    for number in [".nan", "-.inf", "1e999"] {
        let (line, _, path, _) = yaml_fault(&with_input(number));
        assert_eq!((line, path.as_str()), (6, "steps[0].task.input"), "{number}");
    }
}

#[test]
fn templates_are_any_value_and_canonical() {
    for (written, canonical) in [
        ("{b: 1, a: [true, null, 2.5]}", r#"{"a":[true,null,2.5],"b":1}"#),
        ("\"${input}\"", r#""${input}""#),
        ("[]", "[]"),
        ("yes", r#""yes""#),
        ("\"\\ud83d\\ude00\"", "\"\u{1f600}\""),
    ] {
        let definition = yaml(&with_input(written)).expect("it is a value");
        let input = template(&definition.steps[0]);
        assert_eq!(Template::new(&input).json, canonical);
        let json = serde_json::to_string(&Template::new(&input)).expect("it has a JSON form");
        assert_eq!(json, canonical);
        assert_eq!(
            serde_json::from_str::<Template>(&json).ok(),
            Some(Template { json: canonical.to_owned() })
        );
    }
    let broken = Template { json: "{".to_owned() };
    assert!(broken.value().is_err());
    assert!(serde_json::to_string(&broken).is_err());
}

#[test]
fn an_unknown_field_is_named_with_its_place() {
    let (line, column, path, message) = yaml_fault("name: a\nsteps:\n  - id: b\n    tsk: {}\n");
    assert_eq!((line, column, path.as_str()), (4, 5, "steps[0].tsk"));
    assert!(message.starts_with("unknown field `tsk`, expected one of id, when, "), "{message}");
    assert!(!message.contains("onError"), "{message}");

    let text = "{\"name\": \"a\",\n \"steps\": [{\"id\": \"b\", \"tsk\": {}}]}";
    let (line, column, path, _) = fault(text, DefinitionFormat::Json);
    assert_eq!((line, column, path.as_str()), (2, 24, "steps[0].tsk"));
}

#[test]
fn bad_values_are_named_with_their_place() {
    let step = |line: &str| format!("name: a\nsteps:\n- id: b\n  {line}\n");
    for (line, column, path, part) in [
        ("task: {type: c, start_to_close: 20}", 19, "steps[0].task.start_to_close", "20s"),
        ("task: {type: c, startToClose: 20 sec}", 19, "steps[0].task.start_to_close", "20 sec"),
        ("on_error: EXPLODE", 3, "steps[0].on_error", "one of FAIL, IGNORE"),
        ("on_error: 7", 3, "steps[0].on_error", "one of FAIL, IGNORE"),
        ("retry: {max_attempts: many}", 11, "steps[0].retry.max_attempts", "range"),
        ("retry: {max_attempts: -1}", 11, "steps[0].retry.max_attempts", "range"),
        ("retry: {max_attempts: 4294967296}", 11, "steps[0].retry.max_attempts", "range"),
        ("allow_warning: yes", 3, "steps[0].allow_warning", "boolean"),
        ("retry: [1]", 3, "steps[0].retry", "mapping"),
        ("retry: {rules: [{error_types: [a]}, 7]}", 39, "steps[0].retry.rules[1]", "mapping"),
        ("task: !!binary x", 3, "steps[0].task", ""),
    ] {
        let (at_line, at_column, at_path, message) = yaml_fault(&step(line));
        assert_eq!((at_line, at_column, at_path.as_str()), (4, column, path), "{line}: {message}");
        assert!(message.contains(part), "{line}: {message}");
    }
}

#[test]
fn one_field_cannot_have_two_values() {
    for (text, line, path) in [
        ("name: a\nname: b\n", 2, "name"),
        ("name: a\ncancel_grace: 1s\ncancelGrace: 2s\n", 3, "cancel_grace"),
        ("name: a\noutput: {b: 1, b: 2}\n", 2, "output.b"),
    ] {
        let (at_line, _, at_path, message) = yaml_fault(text);
        assert_eq!((at_line, at_path.as_str()), (line, path));
        assert!(message.contains("duplicate field"), "{message}");
    }
    let (line, _, path, message) =
        yaml_fault("name: a\nsteps:\n- id: b\n  retry: {constant: {interval: 1s}, linear: {}}\n");
    assert_eq!((line, path.as_str()), (4, "steps[0].retry.linear"));
    assert!(message.starts_with("`linear` cannot be combined"), "{message}");
    for (text, line, path) in [
        ("name: a\nsteps:\n- id: b\n  set: 1\n  try: {}\n", 5, "steps[0].try"),
        ("name: a\nsteps:\n- set: 1\n  fail: {}\n", 4, "steps[0].fail"),
        ("{name: a, steps: [{set: 1,\nfail: {}}]}", 2, "steps[0].fail"),
    ] {
        let (at_line, _, at_path, message) = yaml_fault(text);
        assert_eq!((at_line, at_path.as_str()), (line, path), "{message}");
    }
}

#[test]
fn broken_text_is_named_with_its_place() {
    for (text, line) in [("name: a\nsteps: [\n", 2), ("name: a\nsteps: 'b\n", 3), ("a: *b\n", 1)] {
        assert_eq!(yaml_fault(text).0, line, "{text}");
    }
    for text in
        ["", "# nothing\n", "~\n", "- a\n", "just words", "name: a\n---\nname: b\n", "? [a]\n: b\n"]
    {
        let error = parse(text, DefinitionFormat::Yaml).expect_err(text);
        assert_eq!(error.reason, ErrorReason::DefinitionInvalid);
        assert!(!error.message.is_empty() && error.place >= Place::START, "{error:?}");
    }
}

#[test]
fn json_is_strict() {
    for (text, line, column) in [
        ("'a'", 1, 1),
        ("{\"name\": \"a\",}", 1, 14),
        ("{\"name\":\n 'a'}", 2, 2),
        ("{\"name\": \"a\"} # note", 1, 15),
    ] {
        let (at_line, at_column, _, message) = fault(text, DefinitionFormat::Json);
        assert_eq!((at_line, at_column), (line, column), "{text}: {message}");
        assert!(message.starts_with("not JSON: "), "{message}");
    }
}

#[test]
fn positions_name_fields_elements_and_what_is_around_them() {
    let (_, positions) = parse(ORDER, DefinitionFormat::Yaml).expect("it is right");
    for (path, text) in [
        ("name", "name: order"),
        ("cancel_grace", "cancelGrace: 0s"),
        ("steps[0]", "id: reserve"),
        ("steps[0].task.input.items", "items: "),
        ("steps[1].allow_warning", "allowWarning: true"),
        ("steps[1].task.start_to_close", "startToClose: 20s"),
        ("steps[1].retry.rules[0]", "error_types: [payment.rate_limited]"),
        ("steps[1].retry.rules[0].max_attempts", "max_attempts: 3"),
        ("steps[1].retry.non_retryable_error_types[1]", "\"*\"]"),
        ("output.list[2]", "null, true]"),
        // Not in the text: the nearest field around it.
        ("steps[1].retry.max_attempts", "retry:"),
        ("steps[1].retry.rules[4].error_types[2]", "rules:"),
        ("steps[7].id", "steps:"),
        ("cleanup_timeout", "name: order"),
        ("", "name: order"),
    ] {
        let Place { line, column } = positions.find(path);
        let line: Vec<char> = ORDER.lines().nth(line - 1).unwrap_or_default().chars().collect();
        let found: String = line[column - 1..].iter().collect();
        assert!(found.starts_with(text), "{path}: {found}");
    }
}

#[test]
fn columns_count_characters() {
    let (line, column, path, _) = yaml_fault("{name: \"\u{1f600}\u{e9}\", tsk: 1}\n");
    assert_eq!((line, column, path.as_str()), (1, 14, "tsk"));
}

#[test]
fn keys_of_templates_keep_their_spelling() {
    let text = with_input("{orderId: {Some.key: 1}}");
    let (_, positions) = parse(&text, DefinitionFormat::Yaml).expect("it is right");
    assert_eq!(positions.find("steps[0].task.input.orderId").column, 13);
    assert_eq!(positions.find("steps[0].task.input.orderId[\"Some.key\"]").column, 23);
    assert_eq!(positions.find("steps[0].task.input.order_id").column, 5);
}

#[test]
fn anchors_may_be_used_again() {
    let text = "name: a\nsteps:\n- id: b\n  retry: &gentle {max_attempts: 9}\n  task: {type: c}\n\
                - id: d\n  retry: *gentle\n  task: {type: c}\n";
    let definition = yaml(text).expect("it is right");
    assert_eq!(definition.steps[1].retry, definition.steps[0].retry);
    assert_eq!(definition.steps[1].retry.as_ref().and_then(|retry| retry.max_attempts), Some(9));
}

#[test]
fn aliases_that_explode_are_refused() {
    let mut bomb = "name: a\noutput:\n  l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let alias = vec![format!("*l{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("  l{level}: &l{level} [{alias}]\n"));
    }
    let (line, _, path, message) = yaml_fault(&bomb);
    assert_eq!((line, path.split('[').next()), (9, Some("output.l6")), "{message}");
    assert!(message.contains("too large"), "{message}");

    let wide = format!("name: a\noutput:\n- &x {}\n{}", "y".repeat(100_000), "- *x\n".repeat(50));
    assert!(yaml_fault(&wide).3.contains("too large"));
    assert!(yaml_fault("name: a\noutput: &x [*x]\n").3.contains("inside"));
}

#[test]
fn sizes_are_limited() {
    let padded = |bytes: usize| format!("name: a\n#{}", " ".repeat(bytes - 9));
    assert!(yaml(&padded(SOURCE_BYTES_MAX)).is_ok());
    let error = yaml(&padded(SOURCE_BYTES_MAX + 1)).expect_err("over the limit");
    assert_eq!(error.reason, ErrorReason::DefinitionTooLarge);

    // Small as text, large when its aliases are replaced.
    let text = format!("name: a\noutput:\n- &x {}\n{}", "y".repeat(200_000), "- *x\n".repeat(6));
    let error = yaml(&text).expect_err("over the limit");
    assert_eq!(error.reason, ErrorReason::DefinitionTooLarge);

    let nested =
        |depth: usize| format!("name: a\noutput: {}{}\n", "[".repeat(depth), "]".repeat(depth));
    assert!(yaml(&nested(DEPTH_MAX - 1)).is_ok());
    assert!(yaml_fault(&nested(DEPTH_MAX)).3.contains("deeper"));
    assert!(yaml(&nested(100_000)).is_err());
}

/// Keys of 1,000 characters, one in the other, around a list of 10,000 numbers.
fn long_keys_around_a_list() -> String {
    let mut text = "name: a\noutput:\n".to_owned();
    for level in 1..=60 {
        text.push_str(&format!("{}{}{level}:\n", " ".repeat(level), "k".repeat(1_000)));
    }
    text + &format!("{}[{}]\n", " ".repeat(61), vec!["1"; 10_000].join(","))
}

#[test]
fn positions_take_memory_in_proportion_to_the_text() {
    let keys: Vec<_> = (0..10_000).map(|key| format!("k{key}: 1\n")).collect();
    for text in [
        long_keys_around_a_list(),
        format!("name: a\noutput: [{}]\n", vec!["1"; 100_000].join(",")),
        // Mappings with an empty key: about one entry for each character.
        format!("name: a\noutput: [{}]\n", vec![":"; 100_000].join(",")),
        keys.concat(),
        ORDER.to_owned(),
    ] {
        let held = Positions::of(&text).expect("it is YAML").held_bytes();
        assert!(held <= 64 * text.len(), "{held} bytes for a text of {}", text.len());
    }
}

#[test]
fn long_keys_around_a_list_are_read_with_their_places() {
    let text = long_keys_around_a_list();
    let (definition, positions) = parse(&text, DefinitionFormat::Yaml).expect("it is right");
    assert!(definition.output.is_some());
    let last = positions.path_at(Place { line: 63, column: 20_061 });
    assert!(last.len() > 60_000 && last.ends_with("k60[9999]"), "{} bytes", last.len());
    assert_eq!(positions.find(&last), Place { line: 63, column: 20_061 });

    let text = text.replace("output", "outptu");
    let (line, column, path, message) = yaml_fault(&text);
    assert_eq!((line, column, path.as_str()), (2, 1, "outptu"));
    assert!(message.starts_with("unknown field `outptu`"), "{message}");
}

#[test]
fn every_path_leads_back_to_its_place() {
    let odd = r#"{"": [[1], {"": 2}], a.b: {"[0]": 3, 'c"][d': 4, 'e\': {"f\"]": 5}}, "0": [6], "é ]": {g: 7}}"#;
    for text in [ORDER.to_owned(), with_input(odd)] {
        let (_, positions) = parse(&text, DefinitionFormat::Yaml).expect("it is right");
        let mut paths = std::collections::HashSet::new();
        for (index, line) in text.lines().enumerate() {
            for column in 1..=line.chars().count() {
                let place = Place { line: index + 1, column };
                let path = positions.path_at(place);
                let found = positions.find(&path);
                assert!(found <= place, "{path} is at {found:?}");
                assert_eq!(positions.path_at(found), path);
                paths.insert(path);
            }
        }
        assert!(paths.len() >= 20, "{paths:?}");
    }
}

#[test]
fn a_text_is_not_read_when_no_thread_can_be_started() {
    let error = parse_on(usize::MAX / 2 + 1, ORDER, DefinitionFormat::Yaml);
    let error = error.expect_err("no thread has such a stack");
    assert_eq!(error.reason, ErrorReason::Overloaded);
    assert_eq!((error.place, error.field_path.as_str()), (Place::START, ""));
    assert!(error.message.contains("could not be read now"), "{error}");
    assert!(error.message.contains("try again"), "{error}");
    assert!(yaml(ORDER).is_ok());
}

#[test]
fn a_text_cut_anywhere_is_read_or_refused() {
    let json =
        serde_json::to_string(&yaml(ORDER).expect("it is right")).expect("it has a JSON form");
    let mut refused = 0;
    for end in 0..ORDER.len() {
        refused += usize::from(parse(&ORDER[..end], DefinitionFormat::Yaml).is_err());
    }
    assert!(refused > 100, "{refused}");
    for end in 0..json.len() {
        assert!(parse(&json[..end], DefinitionFormat::Json).is_err(), "{end}");
    }
}

#[test]
fn errors_print_on_one_line() {
    let error = parse("name: a\ntsk: 1\n", DefinitionFormat::Yaml).expect_err("unknown field");
    assert!(error.to_string().starts_with("2:1: tsk: unknown field `tsk`"), "{error}");
}
