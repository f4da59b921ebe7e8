//! What one attempt reports. Errors are retried; what no retry, catch or tolerance takes becomes a
//! failure.

use std::time::Duration;

use crate::payload::Payload;

/// Types of the service's own errors: everything under `recoup.`.
pub mod builtin {
    pub const PREFIX: &str = "recoup";
    pub const START_TO_CLOSE: &str = "recoup.timeout.start_to_close";
    pub const SCHEDULE_TO_START: &str = "recoup.timeout.schedule_to_start";
    pub const SCHEDULE_TO_CLOSE: &str = "recoup.timeout.schedule_to_close";
    pub const HEARTBEAT: &str = "recoup.timeout.heartbeat";
    pub const EXECUTION_TIMEOUT: &str = "recoup.timeout.execution";
    pub const CLEANUP_TIMEOUT: &str = "recoup.timeout.cleanup";
    pub const WORKER_LOST: &str = "recoup.worker_lost";
    pub const OUTCOME_UNKNOWN: &str = "recoup.outcome_unknown";
    pub const CANCELLED: &str = "recoup.cancelled";
    pub const TERMINATED: &str = "recoup.terminated";
    pub const EXPRESSION: &str = "recoup.expression";
    pub const INPUT_INVALID: &str = "recoup.input_invalid";
    pub const PAYLOAD_TOO_LARGE: &str = "recoup.payload_too_large";
    pub const NO_SUCH_TASK: &str = "recoup.no_such_task";
    pub const HISTORY_TOO_LONG: &str = "recoup.history_too_long";
    pub const QUARANTINED: &str = "recoup.quarantined";

    /// Every built-in type, for the check of policies that name one.
    pub const ALL: &[&str] = &[
        START_TO_CLOSE,
        SCHEDULE_TO_START,
        SCHEDULE_TO_CLOSE,
        HEARTBEAT,
        EXECUTION_TIMEOUT,
        CLEANUP_TIMEOUT,
        WORKER_LOST,
        OUTCOME_UNKNOWN,
        CANCELLED,
        TERMINATED,
        EXPRESSION,
        INPUT_INVALID,
        PAYLOAD_TOO_LARGE,
        NO_SUCH_TASK,
        HISTORY_TOO_LONG,
        QUARANTINED,
    ];

    /// Those that no further attempt can mend.
    pub const NON_RETRYABLE: &[&str] = &[
        EXPRESSION,
        INPUT_INVALID,
        PAYLOAD_TOO_LARGE,
        OUTCOME_UNKNOWN,
        HISTORY_TOO_LONG,
        QUARANTINED,
    ];
}

/// The error of an attempt or an execution, as data: the protocol's `Error`, the SDKs' `TaskError`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskError {
    /// Dotted and language-neutral: `payment.card_declined`.
    pub error_type: String,
    pub message: String,
    pub details: Option<Payload>,
    pub stack_trace: String,
    pub cause: Option<Box<TaskError>>,
    /// Unset inherits from the nearest cause that set it.
    pub non_retryable: Option<bool>,
    pub category: Category,
    /// The worker's own wish for the delay before the next attempt.
    pub next_retry_delay: Option<Duration>,
    /// Which SDK or worker reported it.
    pub source: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Category {
    #[default]
    Unspecified,
    Transient,
    Intermittent,
    Permanent,
    /// An expected error: it changes reporting only.
    Benign,
}

impl TaskError {
    pub fn new(error_type: impl Into<String>, message: impl Into<String>) -> Self {
        Self { error_type: error_type.into(), message: message.into(), ..Self::default() }
    }

    /// An error of the service itself, with the flag that its type carries.
    pub fn builtin(error_type: &'static str, message: impl Into<String>) -> Self {
        let non_retryable = builtin::NON_RETRYABLE.contains(&error_type).then_some(true);
        Self { non_retryable, source: "recoup".into(), ..Self::new(error_type, message) }
    }

    /// This error, then its causes from the outside in.
    pub fn chain(&self) -> impl Iterator<Item = &TaskError> {
        std::iter::successors(Some(self), |error| error.cause.as_deref())
    }

    /// The flag of the nearest error that set it, as some built-in types do whoever reports them;
    /// retryable if none did.
    pub fn is_non_retryable(&self) -> bool {
        let of_type = |error: &TaskError| {
            builtin::NON_RETRYABLE.contains(&error.error_type.as_str()).then_some(true)
        };
        self.chain()
            .find_map(|error| error.non_retryable.or_else(|| of_type(error)))
            .unwrap_or(false)
    }

    /// Errors in the chain: this one and its causes.
    pub fn depth(&self) -> usize {
        self.chain().count()
    }

    /// Bytes of texts and details of the whole chain, which count against the limit of an error.
    pub fn size(&self) -> usize {
        let one = |error: &TaskError| {
            let texts = [&error.error_type, &error.message, &error.stack_trace, &error.source];
            texts.map(String::len).iter().sum::<usize>()
                + error.details.as_ref().map_or(0, Payload::size)
        };
        self.chain().map(one).sum()
    }

    /// Whether the service made it, not a user's code.
    pub fn is_builtin(&self) -> bool {
        type_matches(builtin::PREFIX, &self.error_type)
    }
}

/// Whether a type pattern takes an error type. Whole dotted segments from the left: `payment` takes
/// `payment` and `payment.card_declined`. `*` takes all errors of users; those under `recoup` are
/// taken only by patterns that name it.
pub fn type_matches(pattern: &str, error_type: &str) -> bool {
    let pattern = pattern.strip_suffix(".*").unwrap_or(pattern);
    let below = |prefix: &str| {
        error_type.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    if pattern == "*" { !below(builtin::PREFIX) } else { below(pattern) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_pattern_takes_whole_segments_from_the_left() {
        for (pattern, error_type, taken) in [
            ("payment", "payment", true),
            ("payment", "payment.card_declined", true),
            ("payment.*", "payment.card_declined", true),
            ("payment", "payments.late", false),
            ("payment.card", "payment.card_declined", false),
            ("*", "anything.at.all", true),
            ("*", "recoup.worker_lost", false),
            ("recoup", "recoup.worker_lost", true),
            ("recoup.*", "recoup.timeout.heartbeat", true),
            ("recoup.timeout", "recoup.timeout.heartbeat", true),
        ] {
            assert_eq!(type_matches(pattern, error_type), taken, "{pattern} on {error_type}");
        }
    }

    #[test]
    fn the_nearest_cause_that_set_the_flag_decides() {
        let root = TaskError { non_retryable: Some(true), ..TaskError::new("a", "") };
        let wrapped = TaskError { cause: Some(Box::new(root)), ..TaskError::new("b", "") };
        assert!(wrapped.is_non_retryable());
        let overridden = TaskError { non_retryable: Some(false), ..wrapped };
        assert!(!overridden.is_non_retryable());
    }

    #[test]
    fn a_built_in_type_carries_its_flag_whoever_reports_it() {
        for error_type in builtin::ALL {
            let reported = TaskError::new(*error_type, "by a worker");
            let own = TaskError::builtin(error_type, "by the service");
            assert_eq!(reported.is_non_retryable(), own.is_non_retryable(), "{error_type}");
            let wrapped =
                TaskError { cause: Some(Box::new(reported.clone())), ..TaskError::new("a", "") };
            assert_eq!(wrapped.is_non_retryable(), reported.is_non_retryable(), "{error_type}");
            let denied = TaskError { non_retryable: Some(false), ..reported };
            assert!(!denied.is_non_retryable(), "its author says so: {error_type}");
        }
        assert!(TaskError::new(builtin::INPUT_INVALID, "").is_non_retryable());
    }

    #[test]
    fn size_and_depth_count_the_whole_chain() {
        let root = TaskError { details: Some(Payload::json("1234")), ..TaskError::new("a", "bc") };
        let wrapped = TaskError {
            stack_trace: "12345".into(),
            source: "go".into(),
            cause: Some(Box::new(root)),
            ..TaskError::new("type", "é")
        };
        assert_eq!((wrapped.size(), wrapped.depth()), (7 + 4 + 2 + 5 + 2, 2));
    }
}
