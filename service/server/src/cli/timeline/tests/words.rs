use std::collections::HashSet;

use super::super::model::Attempt;
use super::super::words::attempt_text;
use super::*;

#[test]
fn stopped_attempt_names_how_the_execution_ended() {
    let told = |error_type| {
        let error = error(error_type, "");
        decision_text(&stop(RetryReason::Cancelled), "", error.as_ref())
    };
    assert_eq!(told("recoup.terminated"), "stopped: the execution was terminated");
    assert_eq!(told("recoup.timeout.execution"), "stopped: the execution timed out");
    assert_eq!(told("recoup.cancelled"), "stopped: the execution is being cancelled");
}

#[test]
fn every_stop_reason_has_its_own_text() {
    let mut seen = HashSet::new();
    for reason in 1..=11 {
        let reason = RetryReason::try_from(reason).expect("a reason to stop");
        let text = decision_text(&stop(reason), "", None);
        assert!(!text.contains("no reason given"), "{reason:?}");
        assert!(seen.insert(text), "{reason:?} has the same text as another reason");
    }
}

#[test]
fn attempt_without_a_limit_shows_only_its_number() {
    assert_eq!(attempt_text(Attempt { number: 2, max: Some(3) }), "2 of 3");
    assert_eq!(attempt_text(Attempt { number: 2, max: None }), "2");
}

#[test]
fn multi_line_reason_is_printed_on_one_line() {
    let cancel = v1::CancelRequested { reason: "one\ntwo".to_owned() };
    let words = super::super::words::words(&super::super::model::What::CancelRequested(&cancel));
    assert_eq!(words.text, "one two");
}

#[test]
fn every_symbol_is_explained_in_the_documentation() {
    let source = include_str!("../words.rs");
    let page = include_str!("../../../../../../docs/executions.md");
    // Every symbol stands in the source as a character of its own.
    let quoted = source.split('\'').filter(|text| text.chars().count() == 1);
    let symbols: HashSet<&str> = quoted.filter(|text| !text.trim().is_empty()).collect();
    assert!(symbols.len() >= 15, "{symbols:?}");
    for symbol in symbols {
        assert!(page.contains(&format!("| `{symbol}` | ")), "{symbol} is not explained");
    }
}

#[test]
fn ignored_error_is_called_ignored() {
    let ignored = |warning| {
        let event = v1::StepIgnored { warning, ..v1::StepIgnored::default() };
        super::super::words::words(&super::super::model::What::StepIgnored(&event)).text
    };
    assert_eq!(ignored(false), "error ignored, the run continues");
    assert_eq!(ignored(true), "error ignored, the run continues with a warning");
}
