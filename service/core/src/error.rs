//! The errors that attempts report. An attempt that ends with an error may be retried; an error that is
//! neither retried, caught nor ignored becomes a failure.

use std::time::Duration;

use crate::id::StepPath;
use crate::limits::{
    CAUSE_DEPTH_MAX, ERROR_BYTES_MAX, SUPPRESSED_MAX, SUPPRESSED_MESSAGE_BYTES_MAX,
};
use crate::payload::Payload;

/// The types of errors that the service itself produces: all of them start with `recoup.`.
pub mod builtin {
    pub const PREFIX: &str = "recoup";
    pub const START_TO_CLOSE: &str = "recoup.timeout.start_to_close";
    pub const SCHEDULE_TO_START: &str = "recoup.timeout.schedule_to_start";
    pub const SCHEDULE_TO_CLOSE: &str = "recoup.timeout.schedule_to_close";
    pub const HEARTBEAT: &str = "recoup.timeout.heartbeat";
    pub const BLOCK_TIMEOUT: &str = "recoup.timeout.block";
    pub const EXECUTION_TIMEOUT: &str = "recoup.timeout.execution";
    pub const CLEANUP_TIMEOUT: &str = "recoup.timeout.cleanup";
    pub const WORKER_LOST: &str = "recoup.worker_lost";
    pub const OUTCOME_UNKNOWN: &str = "recoup.outcome_unknown";
    pub const CANCELLED: &str = "recoup.cancelled";
    pub const TERMINATED: &str = "recoup.terminated";
    pub const EXPRESSION: &str = "recoup.expression";
    pub const INPUT_INVALID: &str = "recoup.input_invalid";
    pub const PAYLOAD_TOO_LARGE: &str = "recoup.payload_too_large";
    pub const ITEMS_INVALID: &str = "recoup.items_invalid";
    pub const TOO_MANY_FAILURES: &str = "recoup.too_many_failures";
    pub const NO_SUCH_TASK: &str = "recoup.no_such_task";
    pub const HISTORY_TOO_LONG: &str = "recoup.history_too_long";
    pub const QUARANTINED: &str = "recoup.quarantined";

    /// Every built-in type. A policy that names a type under `recoup` is checked against this list.
    pub const ALL: &[&str] = &[
        START_TO_CLOSE,
        SCHEDULE_TO_START,
        SCHEDULE_TO_CLOSE,
        HEARTBEAT,
        BLOCK_TIMEOUT,
        EXECUTION_TIMEOUT,
        CLEANUP_TIMEOUT,
        WORKER_LOST,
        OUTCOME_UNKNOWN,
        CANCELLED,
        TERMINATED,
        EXPRESSION,
        INPUT_INVALID,
        PAYLOAD_TOO_LARGE,
        ITEMS_INVALID,
        TOO_MANY_FAILURES,
        NO_SUCH_TASK,
        HISTORY_TOO_LONG,
        QUARANTINED,
    ];

    /// The types of errors that another attempt cannot fix.
    pub const NON_RETRYABLE: &[&str] = &[
        EXPRESSION,
        INPUT_INVALID,
        PAYLOAD_TOO_LARGE,
        ITEMS_INVALID,
        OUTCOME_UNKNOWN,
        HISTORY_TOO_LONG,
        QUARANTINED,
    ];
}

/// The error of an attempt or an execution, as data. It is `Error` in the protocol and `TaskError` in the
/// SDKs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskError {
    /// Dotted and independent of the programming language, such as `payment.card_declined`.
    pub error_type: String,
    pub message: String,
    pub details: Option<Payload>,
    pub stack_trace: String,
    pub cause: Option<Box<TaskError>>,
    /// If unset, the value of the nearest cause that sets it applies.
    pub non_retryable: Option<bool>,
    pub category: Category,
    /// The delay before the next attempt that the worker asks for.
    pub next_retry_delay: Option<Duration>,
    /// The SDK or worker that reported the error.
    pub source: String,
    /// Errors of other branches of a `parallel`, in the order of the branches' ids, at most
    /// [`SUPPRESSED_MAX`]. Only the service sets it, on the error of the branch that failed first. No policy
    /// and no handler matches on it.
    pub suppressed: Vec<Suppressed>,
}

/// What is kept of an error beside which another one counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Suppressed {
    /// The step in which the error arose.
    pub step: String,
    pub error_type: String,
    /// Cut to [`SUPPRESSED_MESSAGE_BYTES_MAX`] bytes, with `…` at its end if it was longer.
    pub message: String,
}

/// How the author of an error expects it to behave. It chooses the backoff if no rule of the retry policy
/// matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Category {
    #[default]
    Unspecified,
    /// Expected to pass within moments: retried with a short backoff.
    Transient,
    /// Expected to last for a while: retried with a long backoff.
    Intermittent,
    /// Not retried unless a rule matches the error.
    Permanent,
    /// An expected error. The category only affects reporting.
    Benign,
}

impl TaskError {
    pub fn new(error_type: impl Into<String>, message: impl Into<String>) -> Self {
        Self { error_type: error_type.into(), message: message.into(), ..Self::default() }
    }

    /// An error of the service itself. It is marked as non-retryable if its type is in
    /// [`builtin::NON_RETRYABLE`].
    pub fn builtin(error_type: &'static str, message: impl Into<String>) -> Self {
        let non_retryable = builtin::NON_RETRYABLE.contains(&error_type).then_some(true);
        Self { non_retryable, source: "recoup".into(), ..Self::new(error_type, message) }
    }

    /// This error and its causes, outermost first.
    pub fn chain(&self) -> impl Iterator<Item = &TaskError> {
        std::iter::successors(Some(self), |error| error.cause.as_deref())
    }

    /// The flag of the nearest error in the chain that sets it. An error also counts as setting it if its
    /// type is in [`builtin::NON_RETRYABLE`], no matter who reported it. Without a flag an error is
    /// retryable.
    pub fn is_non_retryable(&self) -> bool {
        let of_type = |error: &TaskError| {
            builtin::NON_RETRYABLE.contains(&error.error_type.as_str()).then_some(true)
        };
        self.chain()
            .find_map(|error| error.non_retryable.or_else(|| of_type(error)))
            .unwrap_or(false)
    }

    /// The number of errors in the chain: this error and its causes.
    pub fn depth(&self) -> usize {
        self.chain().count()
    }

    /// The bytes of all texts and details in the chain, which count against the limit of an error.
    pub fn size(&self) -> usize {
        let one = |error: &TaskError| {
            let texts = [&error.error_type, &error.message, &error.stack_trace, &error.source];
            texts.map(String::len).iter().sum::<usize>()
                + error.details.as_ref().map_or(0, Payload::size)
                + error.suppressed.iter().map(Suppressed::size).sum::<usize>()
        };
        self.chain().map(one).sum()
    }

    /// This error with another one as its innermost cause. If it is the same error, or has it as a cause
    /// already, it stays as it is. A cause for which the chain or the limit of an error has no room is
    /// reduced to its type, and left out if there is no room for that either.
    pub fn caused_by(mut self, cause: &TaskError) -> Self {
        if self.chain().any(|error| error == cause) {
            return self;
        }
        let fits = |error: &TaskError, cause: &TaskError| {
            error.depth() + cause.depth() <= CAUSE_DEPTH_MAX
                && error.size() + cause.size() <= ERROR_BYTES_MAX
        };
        let bare = TaskError::new(&cause.error_type, "(the error was too large to be kept whole)");
        let Some(kept) = [cause, &bare].into_iter().find(|kept| fits(&self, kept)) else {
            return self;
        };
        let mut innermost = &mut self;
        while innermost.cause.is_some() {
            innermost = innermost.cause.as_mut().expect("it was checked");
        }
        innermost.cause = Some(Box::new(kept.clone()));
        self
    }

    /// This error with the errors of other branches beside it, each with the step in which it arose. Those
    /// for which the limits have no room are left out.
    pub fn suppressing<'a>(
        mut self,
        others: impl Iterator<Item = (&'a StepPath, &'a TaskError)>,
    ) -> Self {
        self.suppressed.clear();
        for (step, other) in others.take(SUPPRESSED_MAX) {
            let kept = Suppressed {
                step: step.as_str().to_owned(),
                error_type: other.error_type.clone(),
                message: cut(&other.message, SUPPRESSED_MESSAGE_BYTES_MAX),
            };
            if self.size() + kept.size() > ERROR_BYTES_MAX {
                break;
            }
            self.suppressed.push(kept);
        }
        self
    }

    /// Whether the error was produced by the service rather than by a user's code. Only its type is
    /// considered.
    pub fn is_builtin(&self) -> bool {
        type_matches(builtin::PREFIX, &self.error_type)
    }
}

impl Suppressed {
    pub fn size(&self) -> usize {
        self.step.len() + self.error_type.len() + self.message.len()
    }
}

/// The text, cut to this many bytes if it is longer.
fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let room = max - '…'.len_utf8();
    format!("{}…", &text[..text.floor_char_boundary(room)])
}

/// Whether a text can be the type of an error: segments of ASCII letters, digits, `_` and `-`, separated by
/// dots. There is a pattern for each such type.
pub fn is_error_type(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    text.split('.').all(|segment| !segment.is_empty() && segment.bytes().all(is_letter))
}

/// Whether a pattern matches an error type. A pattern matches whole dotted segments from the left:
/// `payment` matches `payment` and `payment.card_declined`. `*` matches every error of users; errors under
/// `recoup` are matched only by patterns that name that prefix.
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
    fn error_type_pattern_matches_whole_segments_from_the_left() {
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
    fn outermost_error_that_sets_non_retryable_decides() {
        let root = TaskError { non_retryable: Some(true), ..TaskError::new("a", "") };
        let wrapped = TaskError { cause: Some(Box::new(root)), ..TaskError::new("b", "") };
        assert!(wrapped.is_non_retryable());
        let overridden = TaskError { non_retryable: Some(false), ..wrapped };
        assert!(!overridden.is_non_retryable());
    }

    #[test]
    fn built_in_error_type_keeps_its_retryability_when_a_worker_reports_it() {
        for error_type in builtin::ALL {
            let reported = TaskError::new(*error_type, "by a worker");
            let own = TaskError::builtin(error_type, "by the service");
            assert_eq!(reported.is_non_retryable(), own.is_non_retryable(), "{error_type}");
            let wrapped =
                TaskError { cause: Some(Box::new(reported.clone())), ..TaskError::new("a", "") };
            assert_eq!(wrapped.is_non_retryable(), reported.is_non_retryable(), "{error_type}");
            let denied = TaskError { non_retryable: Some(false), ..reported };
            assert!(!denied.is_non_retryable(), "the flag overrides the type: {error_type}");
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
