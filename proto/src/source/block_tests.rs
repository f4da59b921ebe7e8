//! Steps that contain other steps, and the depth to which they may be nested.

use prost::Message;
use prost_types::FileDescriptorSet;

use super::positions::{ID_FIELD, TEMPLATE_FIELDS};
use super::*;
use crate::v1::{
    Block, Branch, Catch, Compensate, ConstantSchedule, GetWorkflowResponse, MatchOn, OnError,
    ParallelStep, RetryPolicy, RetryRule, ReturnStep, Step, SwitchCase, SwitchStep, TaskStep,
    Template, TryStep, WorkflowVersion, compensate, retry_rule, step,
};
use crate::{Duration, FILE_DESCRIPTOR_SET};

/// How deep blocks may nest; the service checks it.
const BLOCKS_MAX: usize = 20;

const BLOCKS: &str = r#"
name: blocks
steps:
  - id: total
    set: {orderId: "${input.id}", order_id: 7}
  - id: check
    switch:
      cases:
        - when: steps.total.output.order_id > 10
          steps:
            - id: large
              fail:
                type: order.too_large
                message: "${input.id} is too large"
                details: {maxItems: 10}
                nonRetryable: true
          output: [1]
        - when: "true"
      default:
        steps:
          - id: small
            return: {output: "${steps.total.output}"}
        output: {totalPrice: 1}
  - id: guarded
    try:
      steps:
        - id: charge
          task: {type: payment.charge}
          catch: [{}]
      output: charged
    catch:
      - errorTypes: [payment, recoup.timeout]
        matchOn: ANY_CAUSE
        when: error.non_retryable
        steps:
          - id: again
            fail: {rethrow: true}
        output: "${error.type}"
    on_error: IGNORE
"#;

fn read(text: &str) -> WorkflowDefinition {
    parse(text, DefinitionFormat::Yaml).map(|(definition, _)| definition).expect(text)
}

fn text(json: &str) -> Option<Template> {
    Some(Template { json: json.to_owned() })
}

#[test]
fn steps_of_every_kind_are_read() {
    use step::Kind;
    let definition = read(BLOCKS);
    let [total, check, guarded] = definition.steps.as_slice() else { panic!("{definition:?}") };
    let value = r#"{"orderId":"${input.id}","order_id":7}"#;
    assert_eq!(total.kind, text(value).map(Kind::Set));

    let Some(Kind::Switch(SwitchStep { cases, default })) = &check.kind else {
        panic!("{check:?}")
    };
    let [large, other] = cases.as_slice() else { panic!("{cases:?}") };
    assert_eq!(large.when, "steps.total.output.order_id > 10");
    assert_eq!(large.output, text("[1]"));
    let Some(Kind::Fail(fail)) = &large.steps[0].kind else { panic!("{large:?}") };
    assert_eq!((fail.r#type.as_str(), fail.non_retryable), ("order.too_large", true));
    assert_eq!((fail.message.as_str(), fail.rethrow), ("${input.id} is too large", false));
    assert_eq!(fail.details, text(r#"{"maxItems":10}"#));
    assert_eq!(*other, SwitchCase { when: "true".to_owned(), ..SwitchCase::default() });
    let Some(Block { steps, output }) = default else { panic!("{check:?}") };
    assert_eq!(*output, text(r#"{"totalPrice":1}"#));
    let end = ReturnStep { output: text(r#""${steps.total.output}""#) };
    assert_eq!(steps[0].kind, Some(Kind::Return(end)));

    let Some(Kind::Try(body)) = &guarded.kind else { panic!("{guarded:?}") };
    assert_eq!(body.output, text(r#""charged""#));
    assert_eq!(body.steps[0].catch, [Catch::default()]);
    assert_eq!(guarded.on_error(), OnError::Ignore);
    let [handler] = guarded.catch.as_slice() else { panic!("{guarded:?}") };
    assert_eq!(handler.error_types, ["payment", "recoup.timeout"]);
    assert_eq!(handler.match_on(), MatchOn::AnyCause);
    assert_eq!(handler.when, "error.non_retryable");
    assert_eq!(handler.output, text(r#""${error.type}""#));
    let Some(Kind::Fail(again)) = &handler.steps[0].kind else { panic!("{handler:?}") };
    assert!(again.rethrow);
}

#[test]
fn blocks_are_written_and_read_back_as_the_same_definition() {
    let definition = read(BLOCKS);
    assert_eq!(read(&write(&definition)), definition);
    let json = serde_json::to_string(&definition).expect("it has a JSON form");
    let again = parse(&json, DefinitionFormat::Json).expect("it is JSON").0;
    assert_eq!(again, definition);
    assert_eq!(serde_json::from_str::<WorkflowDefinition>(&json).ok(), Some(definition));
}

#[test]
fn bad_value_inside_blocks_is_named_with_its_place() {
    for (right, wrong, place, path, part) in [
        (
            "nonRetryable: true",
            "nonRetryable: 1",
            (16, 17),
            "[1].switch.cases[0].steps[0].fail.non_retryable",
            "boolean",
        ),
        (
            "type: payment.charge",
            "typo: a",
            (28, 18),
            "[2].try.steps[0].task.typo",
            "unknown field `typo`",
        ),
        (
            "matchOn: ANY_CAUSE",
            "matchOn: ALL",
            (33, 9),
            "[2].catch[0].match_on",
            "one of OUTERMOST",
        ),
        ("rethrow: true", "rethrow: x", (37, 20), "[2].catch[0].steps[0].fail.rethrow", "boolean"),
        (
            "steps:\n          - id: small",
            "step:\n          - id: small",
            (20, 9),
            "[1].switch.default.step",
            "unknown field `step`, expected one of steps, output",
        ),
        ("catch: [{}]", "catch: {}", (29, 11), "[2].try.steps[0].catch", "sequence"),
        (
            "{maxItems: 10}",
            "{maxItems: 10, maxItems: 9}",
            (15, 41),
            "[1].switch.cases[0].steps[0].fail.details.maxItems",
            "duplicate",
        ),
        ("try:", "set: 1\n    try:", (26, 5), "[2].try", "combined"),
        ("order_id: 7", "order_id: 18446744073709551616", (5, 45), "[0].set.order_id", "64 bits"),
    ] {
        assert_eq!(BLOCKS.matches(right).count(), 1, "{right}");
        let error = parse(&BLOCKS.replace(right, wrong), DefinitionFormat::Yaml);
        let SourceError { place: Place { line, column }, field_path, message, .. } =
            error.expect_err(wrong);
        assert_eq!(((line, column), field_path), (place, format!("steps{path}")), "{message}");
        assert!(message.contains(part), "{wrong}: {message}");
    }
}

#[test]
fn keys_keep_their_spelling_in_exactly_those_fields_that_hold_templates() {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the build wrote it");
    let is_read =
        |name: &str| name.ends_with("/definition.proto") || name.ends_with("/retry.proto");
    let files = set.file.iter().filter(|file| is_read(file.name()));
    let fields: Vec<_> =
        files.flat_map(|file| &file.message_type).flat_map(|message| &message.field).collect();
    for field in &fields {
        let is_template = field.type_name() == ".recoup.v1.Template";
        assert_eq!(TEMPLATE_FIELDS.contains(&field.name()), is_template, "{}", field.name());
        // The entries of a map are messages of their own.
        let has_ids = field.type_name().ends_with("Entry");
        assert_eq!(field.name() == ID_FIELD, has_ids, "{}", field.name());
    }
    assert!(fields.len() > 50, "{} fields", fields.len());

    let (_, positions) = parse(BLOCKS, DefinitionFormat::Yaml).expect("it is right");
    for (path, line) in [
        ("steps[0].set.orderId", 5),
        ("steps[1].switch.cases[0].steps[0].fail.details.maxItems", 15),
        ("steps[1].switch.default.output.totalPrice", 23),
        ("steps[2].catch[0].error_types[1]", 32),
    ] {
        assert_eq!(positions.find(path).line, line, "{path}");
    }
    assert!(positions.find("steps[0].set.orderId") < positions.find("steps[0].set.order_id"));
}

/// Puts a step into a block of another step.
type Wrap = fn(Step) -> Step;

fn step(kind: step::Kind) -> Step {
    Step { id: "outer".to_owned(), kind: Some(kind), ..Step::default() }
}

const WRAPS: [Wrap; 5] = [
    |inner| step(step::Kind::Try(TryStep { steps: vec![inner], output: None })),
    |inner| {
        let case = SwitchCase { steps: vec![inner], ..SwitchCase::default() };
        step(step::Kind::Switch(SwitchStep { cases: vec![case], default: None }))
    },
    |inner| {
        let default = Some(Block { steps: vec![inner], output: None });
        step(step::Kind::Switch(SwitchStep { cases: Vec::new(), default }))
    },
    |inner| {
        let handler = Catch { steps: vec![inner], ..Catch::default() };
        Step { catch: vec![handler], ..step(step::Kind::Set(Template::new(&1.into()))) }
    },
    |inner| {
        let branch = Branch { steps: vec![inner], ..Branch::default() };
        let branches = [("left".to_owned(), branch)].into();
        step(step::Kind::Parallel(ParallelStep { branches, ..ParallelStep::default() }))
    },
];

/// A definition whose innermost step stands in these blocks. The step has the fields that nest
/// deepest, and a template of the given depth.
fn nested(wraps: impl Iterator<Item = Wrap>, template_depth: usize) -> WorkflowDefinition {
    let interval = Some(Duration { seconds: 1, nanos: 0 });
    let rule = RetryRule {
        error_types: vec!["a".to_owned()],
        schedule: Some(retry_rule::Schedule::Constant(ConstantSchedule { interval })),
        ..RetryRule::default()
    };
    let retry = Some(RetryPolicy { rules: vec![rule], ..RetryPolicy::default() });
    let task = TaskStep { r#type: "t".to_owned(), ..TaskStep::default() };
    let value = "[".repeat(template_depth) + &"]".repeat(template_depth);
    let own = TaskStep { input: text(&value), ..task.clone() };
    let compensate =
        Compensate { retry, kind: Some(compensate::Kind::Task(task)), only_completed: false };
    let innermost = Step { compensate: Some(compensate), ..step(step::Kind::Task(own)) };
    let steps = vec![wraps.fold(innermost, |inner, wrap| wrap(inner))];
    WorkflowDefinition { name: "deep".to_owned(), steps, ..WorkflowDefinition::default() }
}

#[test]
fn twenty_nested_blocks_of_any_kind_are_written_read_and_decoded() {
    let alike = WRAPS.map(|wrap| nested(std::iter::repeat_n(wrap, BLOCKS_MAX), 16));
    let mixed = nested(WRAPS.into_iter().cycle().take(BLOCKS_MAX), 16);
    for definition in alike.into_iter().chain([mixed]) {
        let written = write(&definition);
        assert_eq!(read(&written), definition, "{written}");
        let json = serde_json::to_string(&definition).expect("it has a JSON form");
        let again = parse(&json, DefinitionFormat::Json).expect(&json).0;
        assert_eq!(again, definition);
        assert_eq!(
            serde_json::from_str::<WorkflowDefinition>(&json).ok().as_ref(),
            Some(&definition)
        );

        // The message in which a definition stands deepest. Decoders read 100 nested messages.
        let version =
            WorkflowVersion { definition: Some(definition), ..WorkflowVersion::default() };
        let response = GetWorkflowResponse { workflow: Some(version) };
        let bytes = response.encode_to_vec();
        assert_eq!(GetWorkflowResponse::decode(bytes.as_slice()).ok(), Some(response));
    }
}

#[test]
fn text_may_nest_as_deep_as_the_deepest_blocks_and_no_deeper() {
    let cases = || std::iter::repeat_n(WRAPS[1], BLOCKS_MAX);
    // The workflow, its list and the innermost step take three levels, each case five, the task one.
    let room = DEPTH_MAX - (3 + 5 * BLOCKS_MAX + 1);
    assert!(parse(&write(&nested(cases(), room)), DefinitionFormat::Yaml).is_ok());
    let error = parse(&write(&nested(cases(), room + 1)), DefinitionFormat::Yaml);
    let SourceError { field_path, message, .. } = error.expect_err("too deep");
    assert!(field_path.contains(".task.input[0]"), "{field_path}");
    assert_eq!(message, "nested deeper than 120 levels");

    // What is read can also be read by `serde_json`, whose own limit is close.
    let depth = DEPTH_MAX - 1;
    let deepest = format!("name: a\noutput: {}{}\n", "[".repeat(depth), "]".repeat(depth));
    let definition = read(&deepest);
    assert!(definition.output.as_ref().is_some_and(|output| output.value().is_ok()));
    let json = serde_json::to_string(&definition).expect("it has a JSON form");
    assert_eq!(serde_json::from_str::<WorkflowDefinition>(&json).ok().as_ref(), Some(&definition));
    assert_eq!(read(&write(&definition)), definition);

    // An alias counts with the depth of the value that it stands for.
    let aliased = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        format!("name: a\noutput: [&x {}{}, {open}*x{close}]\n", "[".repeat(50), "]".repeat(50))
    };
    assert!(parse(&aliased(DEPTH_MAX - 52), DefinitionFormat::Yaml).is_ok());
    assert!(parse(&aliased(DEPTH_MAX - 51), DefinitionFormat::Yaml).is_err());
}
