//! Converts the errors of attempts.

use recoup_core::error::{Category, Suppressed, TaskError, builtin, is_error_type, type_matches};
use recoup_core::limits::{CAUSE_DEPTH_MAX, ERROR_BYTES_MAX, ERROR_TYPE_BYTES_MAX, clean};
use recoup_proto::v1::{self, ErrorReason};

use super::{payload, time};
use crate::status;

/// The type of an error that was reported without one.
pub const UNKNOWN: &str = "unknown";
/// The built-in types that a worker may report itself.
const OF_WORKERS: &[&str] = &[
    builtin::NO_SUCH_TASK,
    builtin::PAYLOAD_TOO_LARGE,
    builtin::INPUT_INVALID,
    builtin::CANCELLED,
];
const SOURCE_BYTES_MAX: usize = 255;
/// How many bytes of the message of an error that is too large are recorded.
const EXCERPT_BYTES_MAX: usize = 1024;

super::to_proto!(category: Category => v1::ErrorCategory:
    Unspecified Transient Intermittent Permanent Benign);
super::from_proto!(category_from: v1::ErrorCategory => Category:
    Unspecified Transient Intermittent Permanent Benign);

pub fn to_proto(error: &TaskError) -> v1::Error {
    v1::Error {
        details: error.details.as_ref().map(payload::to_proto),
        cause: error.cause.as_deref().map(|cause| Box::new(to_proto(cause))),
        ..shell(error)
    }
}

/// Converts an error without its details and its cause.
pub fn shell(error: &TaskError) -> v1::Error {
    v1::Error {
        r#type: error.error_type.clone(),
        message: error.message.clone(),
        details: None,
        stack_trace: error.stack_trace.clone(),
        cause: None,
        non_retryable: error.non_retryable,
        category: category(error.category).into(),
        next_retry_delay: error.next_retry_delay.map(time::duration),
        source: error.source.clone(),
        abridged: false,
        suppressed: error.suppressed.iter().map(suppressed).collect(),
    }
}

fn suppressed(error: &Suppressed) -> v1::SuppressedError {
    let Suppressed { step, error_type, message } = error.clone();
    v1::SuppressedError { step_path: step, r#type: error_type, message }
}

/// Converts an error without its details, stack trace and causes, for lists.
pub fn summary(error: &TaskError) -> v1::Error {
    v1::Error {
        r#type: error.error_type.clone(),
        message: error.message.clone(),
        non_retryable: error.non_retryable,
        category: category(error.category).into(),
        source: error.source.clone(),
        ..v1::Error::default()
    }
}

/// Reads an error that a worker reported. `field` is the path of the error in the request. Fields that only
/// the service sets are ignored.
pub fn from_proto(error: v1::Error, field: &str) -> status::Result<TaskError> {
    let read = link(error, field, 1)?;
    if read.size() > ERROR_BYTES_MAX {
        let message = format!("must have at most {ERROR_BYTES_MAX} bytes, not {}", read.size());
        return Err(status::Error::field(ErrorReason::ErrorTooLarge, field, message));
    }
    Ok(read)
}

fn link(error: v1::Error, field: &str, depth: usize) -> status::Result<TaskError> {
    if depth > CAUSE_DEPTH_MAX {
        let message = format!("causes must not nest deeper than {CAUSE_DEPTH_MAX}");
        return Err(status::Error::field(ErrorReason::ErrorTooLarge, field, message));
    }
    let category = category_from(error.category()).unwrap_or_default();
    let error_type = match error.r#type.as_str() {
        "" => UNKNOWN.to_owned(),
        _ => checked_type(error.r#type, field)?,
    };
    let is_short = error.source.len() <= SOURCE_BYTES_MAX;
    if !is_short {
        let message =
            format!("must have at most {SOURCE_BYTES_MAX} bytes, not {}", error.source.len());
        return Err(status::Error::invalid(format!("{field}.source"), message));
    }
    let details = error.details.map(|details| payload::from_proto(details, field));
    let details = details.transpose().map_err(|refused| status::Error {
        reason: match refused.reason {
            ErrorReason::PayloadTooLarge => ErrorReason::ErrorTooLarge,
            other => other,
        },
        ..refused
    })?;
    let cause = error.cause.map(|cause| link(*cause, field, depth + 1)).transpose()?;
    let wish = time::duration_from(error.next_retry_delay, &format!("{field}.next_retry_delay"))?;
    Ok(TaskError {
        error_type,
        message: clean(&error.message).into_owned(),
        details,
        stack_trace: clean(&error.stack_trace).into_owned(),
        cause: cause.map(Box::new),
        non_retryable: error.non_retryable,
        category,
        next_retry_delay: wish,
        source: clean(&error.source).into_owned(),
        suppressed: Vec::new(),
    })
}

fn checked_type(text: String, field: &str) -> status::Result<String> {
    if text.len() > ERROR_TYPE_BYTES_MAX || !is_error_type(&text) {
        let message = "must consist of segments `[A-Za-z0-9_-]+` separated by dots, such as \
                       `payment.declined`, with at most 255 bytes";
        return Err(status::Error::invalid(format!("{field}.type"), message));
    }
    if type_matches(builtin::PREFIX, &text) && !OF_WORKERS.contains(&text.as_str()) {
        let message = "types under `recoup.` are reserved for the service";
        return Err(status::Error::invalid(format!("{field}.type"), message));
    }
    Ok(text)
}

/// The error to record in place of one that is too large, so that the result of finished work is not
/// dropped.
pub fn too_large(error_type: &str, message: &str) -> TaskError {
    let mut excerpt: String = clean(error_type).chars().take(ERROR_TYPE_BYTES_MAX).collect();
    if !message.is_empty() {
        excerpt.push_str(": ");
        let mut end = message.len().min(EXCERPT_BYTES_MAX);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        excerpt.push_str(&clean(&message[..end]));
    }
    let text = format!("the error that the worker reported is over a limit; it was {excerpt}");
    TaskError::builtin(builtin::PAYLOAD_TOO_LARGE, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize) -> v1::Error {
        let mut error = v1::Error { r#type: "root".into(), ..v1::Error::default() };
        for _ in 1..depth {
            let cause = Some(Box::new(error));
            error = v1::Error { r#type: "wrap".into(), cause, ..v1::Error::default() };
        }
        error
    }

    #[test]
    fn error_round_trips_unchanged() {
        let mut error = nested(3);
        error.message = "declined".into();
        error.non_retryable = Some(false);
        error.category = v1::ErrorCategory::Transient.into();
        error.next_retry_delay = Some(std::time::Duration::from_millis(1500).into());
        error.source = "sdk-rust".into();
        error.stack_trace = "at pay".into();
        let mut core = from_proto(error.clone(), "error").expect("within the limits");
        assert_eq!(core.depth(), 3);
        assert_eq!(to_proto(&core), error);

        let (step_path, message) = ("fan[left].a".to_owned(), "none".to_owned());
        let other = v1::SuppressedError { step_path, r#type: "stock.out".into(), message };
        error.suppressed = vec![other];
        let read = from_proto(error.clone(), "error").expect("within the limits");
        assert_eq!(read, core, "a worker cannot set suppressed errors");
        core.suppressed = vec![Suppressed {
            step: "fan[left].a".into(),
            error_type: "stock.out".into(),
            message: "none".into(),
        }];
        assert_eq!(to_proto(&core), error);
    }

    #[test]
    fn error_is_rejected_above_20_levels_or_error_bytes_max() {
        assert!(from_proto(nested(20), "error").is_ok());
        let error = from_proto(nested(21), "error").expect_err("too deep");
        assert_eq!(error.reason, ErrorReason::ErrorTooLarge);
        let sized = |bytes| v1::Error { message: "m".repeat(bytes), ..v1::Error::default() };
        let most = ERROR_BYTES_MAX - UNKNOWN.len();
        assert!(from_proto(sized(most), "error").is_ok());
        let error = from_proto(sized(most + 1), "error").expect_err("too large");
        assert_eq!(error.reason, ErrorReason::ErrorTooLarge);
    }

    #[test]
    fn reserved_error_types_are_rejected_except_those_workers_may_report() {
        for (error_type, accepted) in [
            ("payment.card-declined_2", true),
            ("recoup.no_such_task", true),
            ("recoup.timeout.heartbeat", false),
            ("recoup", false),
            ("a..b", false),
            ("a b", false),
            ("a.", false),
        ] {
            let error = v1::Error { r#type: error_type.into(), ..v1::Error::default() };
            let read = from_proto(error, "results[3].failed");
            assert_eq!(read.is_ok(), accepted, "{error_type}");
            if let Err(error) = read {
                assert_eq!(error.violations[0].field, "results[3].failed.type");
            }
        }
        let untyped = from_proto(v1::Error::default(), "error").expect("a default");
        assert_eq!(untyped.error_type, UNKNOWN);
    }

    #[test]
    fn replacement_for_an_oversized_error_is_small_and_names_its_type() {
        let error = too_large("payment.declined", &"ü".repeat(100_000));
        assert_eq!(error.error_type, builtin::PAYLOAD_TOO_LARGE);
        assert!(error.message.contains("payment.declined: ü"));
        assert!(error.size() < 4096 && error.is_non_retryable());
    }
}
