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
