//! The error that a worker reports for an attempt of a task.

use std::fmt;
use std::time::Duration;

use prost::Message;
use recoup_proto::v1;
use serde::Serialize;

pub use recoup_proto::v1::ErrorCategory;

use crate::payload::to_payload;

/// The largest size of an error in the protocol, causes included: 64 KiB.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// The most errors in a chain of causes, the outermost included.
const CHAIN_MAX: usize = 20;
/// The length to which each text is cut when an error is over its limit, in bytes.
const SHORT_TEXT_BYTES_MAX: usize = 512;

/// The error that a handler returns when an attempt of a task does not succeed. The workflow's retry policy
/// decides whether the attempt is retried, mostly by the type of the error. If it is not retried, the step
/// fails.
///
/// The `?` operator turns any [`std::error::Error`] into a `TaskError` of the type `rust.<path of the
/// type>`, with its sources as causes. Wrapping loses nothing: a `TaskError` that is given as a cause,
/// directly or inside other errors by [`TaskError::into_source`], is kept whole. Its `non_retryable` flag
/// also holds for the outer error, unless the outer error sets the flag itself.
///
/// ```
/// use recoup_sdk::TaskError;
///
/// let declined = TaskError::new("payment.card_declined")
///     .message("the bank said no")
///     .details(&serde_json::json!({"code": 51}))
///     .non_retryable();
/// let wrapped = TaskError::new("order.unpaid").cause(declined);
/// assert!(wrapped.is_non_retryable());
/// ```
#[derive(Clone, PartialEq)]
pub struct TaskError {
    error: Box<v1::Error>,
}

impl TaskError {
    /// An error of the given type. A type is dotted and does not depend on the language of the worker, such
    /// as `payment.card_declined`: segments of `[A-Za-z0-9_-]`, 255 bytes at most. Types that begin with
    /// `recoup.` are reserved for the service.
    pub fn new(error_type: impl Into<String>) -> Self {
        let error = v1::Error {
            r#type: error_type.into(),
            source: "sdk-rust".to_owned(),
            ..v1::Error::default()
        };
        Self { error: Box::new(error) }
    }

    /// A message for people. Default: empty.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.error.message = message.into();
        self
    }

    /// Forbids a retry, whatever the policy says. Default: the setting of the nearest cause that has one;
    /// if no cause has one, the policy decides.
    #[must_use]
    pub fn non_retryable(mut self) -> Self {
        self.error.non_retryable = Some(true);
        self
    }

    /// Lets the policy decide, even if a cause forbids a retry.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.error.non_retryable = Some(false);
        self
    }

    /// Structured details, for the handlers of the failure. If the value cannot be written as JSON, the
    /// details become a text that says so, so that an error is never lost because of its details. Default:
    /// none.
    #[must_use]
    pub fn details<T: Serialize + ?Sized>(mut self, details: &T) -> Self {
        let payload = to_payload(details)
            .or_else(|error| to_payload(&format!("details that cannot be written: {error}")));
        self.error.details = payload.ok();
        self
    }

    /// The category of the error. It selects a named retry schedule if no rule of the policy matches.
    /// Default: unspecified.
    #[must_use]
    pub fn category(mut self, category: ErrorCategory) -> Self {
        self.error.set_category(category);
        self
    }

    /// The error that this one wraps. Default: none.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<TaskError>) -> Self {
        self.error.cause = Some(cause.into().error);
        self
    }

    /// The delay before the next attempt, instead of the one that the policy computes. The service cuts it
    /// to at most 30 days. Default: unset, the policy computes the delay.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.error.next_retry_delay = Some(delay.into());
        self
    }

    /// A stack trace, as the language prints it. Default: empty.
    #[must_use]
    pub fn stack_trace(mut self, trace: impl fmt::Display) -> Self {
        self.error.stack_trace = trace.to_string();
        self
    }

    /// Converts `error` and its sources. Use it for errors that `?` cannot convert, such as
    /// `&*anyhow_error`. The type of the result is `rust.error`. A `TaskError` among the sources is kept
    /// whole.
    pub fn from_std(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::from_chain("rust.error".to_owned(), error)
    }

    fn from_chain(error_type: String, error: &(dyn std::error::Error + 'static)) -> Self {
        if let Some(AsSource(inner)) = error.downcast_ref::<AsSource>() {
            return inner.clone();
        }
        let mut wrapped = Self::new(error_type).message(error.to_string());
        if let Some(source) = error.source() {
            wrapped.error.cause = Some(Self::from_std(source).error);
        }
        wrapped
    }

    /// Returns this error in a form that implements [`std::error::Error`], so that it can be the source of
    /// your own error type. When that error is converted to a `TaskError`, this one becomes its cause,
    /// whole.
    pub fn into_source(self) -> impl std::error::Error + Send + Sync + 'static {
        AsSource(self)
    }

    /// The type of the error, such as `payment.card_declined`.
    pub fn error_type(&self) -> &str {
        &self.error.r#type
    }

    /// Whether the error forbids a retry: its own flag decides, else the flag of the nearest cause that has
    /// one. False if none has one.
    pub fn is_non_retryable(&self) -> bool {
        let mut error = Some(&self.error);
        while let Some(current) = error {
            if let Some(said) = current.non_retryable {
                return said;
            }
            error = current.cause.as_ref();
        }
        false
    }

    /// Takes an error in the form of the protocol.
    pub(crate) fn from_proto(error: v1::Error) -> Self {
        Self { error: Box::new(error) }
    }

    /// Converts the error to the message of the protocol, within its limits of 64 KiB and 20 causes. An
    /// error over a limit loses its least important parts (causes that are too deep, stack traces, details,
    /// the ends of long texts), and its message says which.
    pub fn into_proto(self) -> v1::Error {
        let mut error = *self.error;
        let mut dropped = Vec::new();
        if cut_causes(&mut error) {
            dropped.push("causes beyond 20 errors");
        }
        for (part, drop_part) in SHRINKING {
            // The 256 bytes leave room for the note that is added below.
            if error.encoded_len() + 256 <= ERROR_BYTES_MAX {
                break;
            }
            let mut current = Some(&mut error);
            while let Some(link) = current {
                drop_part(link);
                current = link.cause.as_deref_mut();
            }
            dropped.push(part);
        }
        if !dropped.is_empty() {
            let note = format!(" [over the limits of an error; dropped: {}]", dropped.join(", "));
            error.message.push_str(&note);
        }
        error
    }
}

type DropPart = fn(&mut v1::Error);

/// The parts to drop from an error that is too large, least important first.
const SHRINKING: [(&str, DropPart); 3] = [
    ("stack traces", |error| error.stack_trace.clear()),
    ("details", |error| error.details = None),
    ("ends of texts", |error| {
        shorten(&mut error.message, SHORT_TEXT_BYTES_MAX);
        shorten(&mut error.r#type, 255);
        shorten(&mut error.source, 255);
    }),
];

pub(crate) fn shorten(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let mut end = bytes_max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

/// Drops the causes beyond the limit. If they forbid a retry, that moves to the last cause that stays.
fn cut_causes(error: &mut v1::Error) -> bool {
    let mut last = error;
    for _ in 1..CHAIN_MAX {
        match last.cause {
            Some(ref mut cause) => last = cause,
            None => return false,
        }
    }
    let Some(deeper) = last.cause.take() else { return false };
    if last.non_retryable.is_none() && (TaskError { error: deeper }).is_non_retryable() {
        last.non_retryable = Some(true);
    }
    true
}

impl fmt::Debug for TaskError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(formatter)
    }
}

impl fmt::Display for TaskError {
    /// `type: message`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.error.r#type, self.error.message)
    }
}

/// This conversion is why `TaskError` does not implement [`std::error::Error`] itself; the same is true of
/// `anyhow::Error`.
impl<E: std::error::Error + Send + Sync + 'static> From<E> for TaskError {
    fn from(error: E) -> Self {
        Self::from_chain(format!("rust.{}", dotted(std::any::type_name::<E>())), &error)
    }
}

/// Turns a Rust path into a dotted type: type arguments are dropped, and characters that a segment may not
/// have become `_`.
fn dotted(path: &str) -> String {
    let path = path.split('<').next().unwrap_or(path);
    let segments = path.split("::").map(|segment| {
        let clean = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        segment.chars().map(clean).collect::<String>()
    });
    let mut dotted = segments.filter(|segment| !segment.is_empty()).collect::<Vec<_>>().join(".");
    shorten(&mut dotted, 240);
    dotted
}

#[derive(Debug)]
struct AsSource(TaskError);

impl fmt::Display for AsSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl std::error::Error for AsSource {}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("charging order 7 failed")]
    struct Charging(#[source] Box<dyn std::error::Error + Send + Sync>);

    fn fails() -> Result<(), TaskError> {
        std::fs::read("/nonexistent/file")?;
        Ok(())
    }

    #[test]
    fn the_question_mark_operator_converts_any_error() {
        let error = fails().expect_err("there is no such file").into_proto();
        assert_eq!(error.r#type, "rust.std.io.error.Error");
        assert!(error.message.contains("No such file"), "{}", error.message);
        assert_eq!(error.non_retryable, None);
        assert_eq!(error.source, "sdk-rust");
    }

    #[test]
    fn error_sources_become_causes() {
        let error = TaskError::from(Charging("the line is dead".into())).into_proto();
        assert!(error.r#type.ends_with("tests.Charging"), "{}", error.r#type);
        assert_eq!(error.message, "charging order 7 failed");
        let cause = error.cause.expect("the source");
        assert_eq!(cause.message, "the line is dead");
    }

    #[test]
    fn a_wrapped_task_error_is_kept_whole_among_the_causes() {
        let inner = TaskError::new("payment.card_declined")
            .message("no")
            .details(&[51])
            .category(ErrorCategory::Permanent)
            .retry_after(Duration::from_millis(1_500))
            .non_retryable()
            .cause(TaskError::new("bank.refused"));
        let kept = inner.clone().into_proto();
        let wrapped = TaskError::from(Charging(Box::new(inner.into_source())));
        assert!(wrapped.is_non_retryable());
        let wrapped = TaskError::new("order.unpaid").cause(wrapped).into_proto();
        assert_eq!(wrapped.non_retryable, None, "inherited from its cause, not set again");
        let charging = wrapped.cause.expect("the first cause");
        assert_eq!(*charging.cause.expect("the second cause"), kept);
    }

    #[test]
    fn a_non_retryable_cause_is_inherited_until_retryable_is_called() {
        let inner = TaskError::new("a").non_retryable();
        assert!(TaskError::new("b").cause(inner.clone()).is_non_retryable());
        assert!(!TaskError::new("b").cause(inner).retryable().is_non_retryable());
    }

    #[test]
    fn an_oversized_error_is_trimmed_and_names_what_was_removed() {
        let mut error = TaskError::new("deep").non_retryable();
        for depth in 0..30 {
            error =
                TaskError::new(format!("level{depth}")).cause(error).stack_trace("x".repeat(4_000));
        }
        let error = error.details(&"y".repeat(60_000)).message("z".repeat(70_000)).into_proto();
        assert!(error.encoded_len() <= ERROR_BYTES_MAX, "{} bytes", error.encoded_len());
        for part in ["causes beyond 20 errors", "stack traces", "details", "ends of texts"] {
            assert!(error.message.contains(part), "{part} is not named");
        }
        let mut chain = 1;
        let mut last = &error;
        while let Some(cause) = &last.cause {
            last = cause;
            chain += 1;
        }
        assert_eq!(chain, 20, "the server accepts no longer chain");
        assert!(
            TaskError { error: Box::new(error) }.is_non_retryable(),
            "the flag of a removed cause was lost"
        );
    }

    #[test]
    fn an_error_within_the_limits_is_unchanged() {
        let error = TaskError::new("a.b").message("m").details(&1).stack_trace("at line 1");
        assert_eq!(error.clone().into_proto(), *error.error);
    }

    #[test]
    fn rust_type_names_become_dotted_error_types() {
        assert_eq!(dotted("alloc::boxed::Box<dyn core::error::Error>"), "alloc.boxed.Box");
        assert_eq!(dotted("a::{{closure}}::B"), "a.__closure__.B");
    }
}
