//! The error to report in place of a result that the service refused. The attempt is still open and needs a
//! result.

use recoup_proto::v1::{self, ErrorReason, task_result};

use crate::TaskError;
use crate::task_error::shorten;

/// The error type of an attempt whose result was refused.
const REFUSED: &str = "rust.result_refused";
/// Replaces an error type that is not valid.
const INVALID_TYPE: &str = "rust.invalid_error_type";
const TYPE_BYTES_MAX: usize = 255;
/// How many bytes of the original message the replacement repeats. Its cause has the whole message.
const EXCERPT_BYTES_MAX: usize = 1024;

/// The error to report in place of `result`. `said` is the service's description of the problem.
///
/// An output that was refused would be refused again, so the error in its place is not retryable. A refused
/// error is kept as far as the service accepts it, because policies decide by its type and its flags.
pub(super) fn in_place_of(
    result: Option<task_result::Result>,
    reason: ErrorReason,
    said: &str,
) -> v1::Error {
    if let Some(task_result::Result::Failed(error)) = result {
        return in_place_of_error(error, said);
    }
    let error_type = match reason {
        ErrorReason::PayloadTooLarge => "recoup.payload_too_large",
        _ => REFUSED,
    };
    TaskError::new(error_type).message(said).non_retryable().into_proto()
}

fn in_place_of_error(mut error: v1::Error, said: &str) -> v1::Error {
    let causes_changed = relabel_causes(&mut error);
    if !is_type(&error.r#type) {
        let mut told = std::mem::replace(&mut error.r#type, INVALID_TYPE.to_owned());
        shorten(&mut told, TYPE_BYTES_MAX);
        let mut excerpt = error.message.clone();
        shorten(&mut excerpt, EXCERPT_BYTES_MAX);
        let message = format!("`{told}`: {excerpt} [refused: {said}]");
        let outer = v1::Error {
            non_retryable: error.non_retryable,
            category: error.category,
            next_retry_delay: error.next_retry_delay.take(),
            source: error.source.clone(),
            ..TaskError::new(REFUSED).message(message).into_proto()
        };
        let outer = v1::Error { cause: Some(Box::new(error)), ..outer };
        return TaskError::from_proto(outer).into_proto();
    }
    error.message.push_str(&format!(" [refused as it was: {said}]"));
    if !causes_changed {
        // The types are valid, so one of the optional parts must be the problem: drop them all.
        let mut link = Some(&mut error);
        while let Some(current) = link {
            current.details = None;
            current.next_retry_delay = None;
            shorten(&mut current.source, TYPE_BYTES_MAX);
            link = current.cause.as_deref_mut();
        }
    }
    TaskError::from_proto(error).into_proto()
}

/// Replaces the types of causes that are not valid, and puts the original type into the message of the
/// cause.
fn relabel_causes(error: &mut v1::Error) -> bool {
    let mut changed = false;
    let mut link = error.cause.as_deref_mut();
    while let Some(current) = link {
        if !is_type(&current.r#type) {
            let mut told = std::mem::replace(&mut current.r#type, INVALID_TYPE.to_owned());
            shorten(&mut told, TYPE_BYTES_MAX);
            current.message = format!("`{told}`: {}", current.message);
            changed = true;
        }
        link = current.cause.as_deref_mut();
    }
    changed
}

/// Whether any worker may report this type. A few types of the service that a worker may report are not
/// accepted here either: a replacement that names such a type in its message is better than another
/// refusal.
fn is_type(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let is_segment = |segment: &str| !segment.is_empty() && segment.bytes().all(is_letter);
    let is_dotted = text.len() <= TYPE_BYTES_MAX && text.split('.').all(is_segment);
    // An error without a type is accepted; its type is unknown.
    text.is_empty() || (is_dotted && text.split('.').next() != Some("recoup"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn replacement(error: TaskError) -> v1::Error {
        let failed = task_result::Result::Failed(error.into_proto());
        in_place_of(Some(failed), ErrorReason::FieldInvalid, "no such type")
    }

    #[test]
    fn replacing_a_refused_error_type_keeps_the_rest_of_the_error() {
        for error_type in ["has space!", "recoup.foo", "recoup", "a..b", &"x".repeat(256)] {
            let original = TaskError::new(error_type)
                .message("the bank said no")
                .details(&51)
                .retry_after(Duration::from_secs(7))
                .category(crate::ErrorCategory::Transient);
            let error = replacement(original.clone());
            assert_eq!(error.r#type, "rust.result_refused");
            let told = &error_type[..error_type.len().min(255)];
            assert!(error.message.starts_with(&format!("`{told}`: the bank said no")), "{error:?}");
            assert!(error.message.contains("no such type"), "{error:?}");
            assert_eq!(error.non_retryable, None, "the retry policy decides");
            assert_eq!(error.category(), crate::ErrorCategory::Transient);
            assert_eq!(error.next_retry_delay, Some(Duration::from_secs(7).into()));
            let cause = error.cause.expect("the original");
            assert_eq!(
                (cause.r#type.as_str(), cause.message.as_str()),
                (INVALID_TYPE, "the bank said no")
            );
            assert_eq!(cause.details, original.into_proto().details);
        }
    }

    #[test]
    fn the_replacement_keeps_the_retryability_of_the_original() {
        let original = TaskError::new("has space!");
        assert_eq!(replacement(original.clone().non_retryable()).non_retryable, Some(true));
        assert_eq!(replacement(original.clone().retryable()).non_retryable, Some(false));
        let inherited = replacement(original.cause(TaskError::new("bank.closed").non_retryable()));
        assert!(TaskError::from_proto(inherited).is_non_retryable());
    }

    #[test]
    fn a_refused_cause_type_leaves_the_outer_type_and_details_alone() {
        let original = TaskError::new("payment.failed").message("no").details(&1);
        let kept = original.clone().into_proto().details;
        let error = replacement(original.cause(TaskError::new("a b").message("deep")));
        assert_eq!((error.r#type.as_str(), error.details), ("payment.failed", kept));
        let cause = error.cause.expect("the cause is kept");
        assert_eq!((cause.r#type.as_str(), cause.message.as_str()), (INVALID_TYPE, "`a b`: deep"));
    }

    #[test]
    fn with_valid_types_the_details_and_the_retry_delay_are_dropped() {
        let original = TaskError::new("payment.failed").message("no").details(&1);
        let error = replacement(original.retry_after(Duration::MAX));
        assert_eq!(error.r#type, "payment.failed");
        assert!(error.message.starts_with("no [refused as it was: "), "{}", error.message);
        assert_eq!((error.details, error.next_retry_delay), (None, None));
    }

    #[test]
    fn a_refused_output_becomes_a_non_retryable_error() {
        for (reason, error_type) in [
            (ErrorReason::PayloadInvalid, REFUSED),
            (ErrorReason::PayloadTooLarge, "recoup.payload_too_large"),
        ] {
            let output = task_result::Result::Completed(v1::Payload::default());
            let error = in_place_of(Some(output), reason, "no JSON");
            assert_eq!((error.r#type.as_str(), error.message.as_str()), (error_type, "no JSON"));
            assert_eq!(error.non_retryable, Some(true));
        }
    }
}
