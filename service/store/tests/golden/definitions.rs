//! Workflow definitions of format 2.

use super::*;

/// Format 2: a workflow with a step of each kind that it added.
fn blocks_workflow() -> def::Workflow {
    let mut workflow = workflow();
    let task = workflow.steps.steps.remove(0);
    let step = |id: &str, kind| def::Step { id: def_id(id), kind, ..task.clone() };
    let raise = def::Raise {
        error_type: "order.rejected".into(),
        message: "${input.reason}".into(),
        details: Some(r#"{"id":"${input.id}"}"#.into()),
        non_retryable: true,
    };
    let block = |steps| def::Block { steps, output: Some("1".into()) };
    let switch = def::Switch {
        cases: vec![def::Case {
            when: "input.amount > 1".into(),
            block: block(vec![step("value", def::StepKind::Set(r#""${input.amount}""#.into()))]),
        }],
        default: Some(block(vec![step("refuse", def::StepKind::Fail(def::Fail::Raise(raise)))])),
    };
    let catch = def::Catch {
        error_types: vec!["order".into()],
        match_on: MatchOn::AnyCause,
        when: Some("error.attempts > 1".into()),
        block: block(vec![step("again", def::StepKind::Fail(def::Fail::Rethrow))]),
    };
    let body = block(vec![step("choose", def::StepKind::Switch(switch))]);
    workflow.steps.steps = vec![
        def::Step { catch: vec![catch], ..step("guarded", def::StepKind::Try(body)) },
        step("done", def::StepKind::Return { output: Some("2".into()) }),
    ];
    workflow.on_failure = vec![step("report", def::StepKind::Set("3".into()))];
    workflow
}

#[test]
fn definition_of_format_2_matches_its_golden_file() {
    let workflow = blocks_workflow();
    let encoded = format::encode_workflow(&workflow);
    assert_eq!(encoded.format, 2);
    let golden = golden_of(2, "workflow", &encoded.data);
    assert_eq!(format::decode_workflow(2, &golden), Ok(workflow));
    assert_eq!(encoded.data, golden);
}

/// Format 2: a workflow with branches, and with a step that has a timeout.
fn branches_workflow() -> def::Workflow {
    let mut workflow = workflow();
    let task = workflow.steps.steps.remove(0);
    let step = |id: &str, kind| def::Step { id: def_id(id), kind, ..task.clone() };
    let value = |id: &str| step(id, def::StepKind::Set("1".into()));
    let branch = |id: &str, after: &[&str]| {
        let block = def::Block { steps: vec![value(id)], output: Some("2".into()) };
        def::Branch { block, after: after.iter().map(|id| def_id(id)).collect() }
    };
    let parallel = def::Parallel {
        branches: [
            (def_id("left"), branch("a", &[])),
            (def_id("right"), branch("b", &[])),
            (def_id("last"), branch("c", &["left", "right"])),
        ]
        .into(),
        mode: def::FailureMode::WaitAll,
        concurrency: Some(2),
    };
    workflow.steps.steps = vec![def::Step {
        timeout: Some(Duration::new(90, 5)),
        ..step("fan", def::StepKind::Parallel(parallel))
    }];
    workflow
}

#[test]
fn definition_with_branches_matches_its_golden_file() {
    let workflow = branches_workflow();
    let encoded = format::encode_workflow(&workflow);
    assert_eq!(encoded.format, 2);
    let golden = golden_of(2, "workflow_with_branches", &encoded.data);
    assert_eq!(format::decode_workflow(2, &golden), Ok(workflow));
    assert_eq!(encoded.data, golden);
}

#[test]
fn definition_with_items_matches_its_golden_file() {
    let mut workflow = workflow();
    let task = workflow.steps.steps.remove(0);
    let each = |item_key: Option<&str>, concurrency, mode| def::ForEach {
        items: "input.lines".into(),
        item_key: item_key.map(Into::into),
        concurrency,
        mode,
        block: def::Block {
            steps: vec![def::Step { kind: def::StepKind::Set("1".into()), ..task.clone() }],
            output: Some("2".into()),
        },
    };
    let step = |id: &str, each| def::Step {
        id: def_id(id),
        kind: def::StepKind::ForEach(each),
        ..task.clone()
    };
    workflow.steps.steps = vec![
        step("lines", each(Some("item.sku"), Some(4), def::FailureMode::WaitAll)),
        step("plain", each(None, None, def::FailureMode::FailFast)),
    ];
    let encoded = format::encode_workflow(&workflow);
    assert_eq!(encoded.format, 2);
    let golden = golden_of(2, "workflow_with_items", &encoded.data);
    assert_eq!(format::decode_workflow(2, &golden), Ok(workflow));
    assert_eq!(encoded.data, golden);
}
