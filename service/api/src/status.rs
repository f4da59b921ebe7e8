//! Why a call is refused, and how that is reported: a canonical code, a `google.rpc.ErrorInfo` with a
//! reason of [`ErrorReason`], a `BadRequest` for fields, and a `RetryInfo` for overload. gRPC clients that
//! retry by a service config do not read these details, so the delay is in the trailer
//! `grpc-retry-pushback-ms` as well.

use std::collections::HashMap;
use std::time::Duration;

use recoup_core::command::Rejection;
use recoup_core::plan::{Issue, IssueCode};
use recoup_engine::Refusal;
use recoup_proto::source::SourceError;
use recoup_proto::v1::{DefinitionIssue, ErrorReason};
use recoup_store::format::NotFinalized;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "recoup";
/// The trailer with the milliseconds after which a client may retry (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";
const PREFIX: &str = "ERROR_REASON_";
/// The longest message of a status. It travels in headers, whose size transports limit.
const MESSAGE_BYTES_MAX: usize = 1024;
/// When to retry a call for which the store gave no answer.
const STORE_RETRY: Duration = Duration::from_secs(1);
/// The most violations that are listed. The others are only counted.
const VIOLATIONS_MAX: usize = 20;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refused call. It has had no effect, unless the reason says otherwise.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub reason: ErrorReason,
    pub message: String,
    pub violations: Vec<Violation>,
    pub metadata: Vec<(&'static str, String)>,
    pub retry_after: Option<Duration>,
}

/// A problem with one field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field in the request, such as `execution.input`.
    pub field: String,
    pub message: String,
}

impl Error {
    pub fn new(reason: ErrorReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            violations: Vec::new(),
            metadata: Vec::new(),
            retry_after: None,
        }
    }

    /// An error that concerns one field of the request.
    pub fn field(
        reason: ErrorReason,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let violation = Violation { field: field.into(), message: message.into() };
        let text = format!("{}: {}", violation.field, violation.message);
        Self { violations: vec![violation], ..Self::new(reason, text) }
    }

    /// The error for a field that is missing, malformed or over its limit.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::field(ErrorReason::FieldInvalid, field, message)
    }

    pub fn required(field: &str) -> Self {
        Self::invalid(field, "it is required")
    }

    /// The error for a defect of the server. Its details are logged here and not sent to the caller.
    pub fn internal(what: &str, error: &dyn std::fmt::Display) -> Self {
        tracing::error!(what, %error, "a call failed with an internal error");
        Self::new(ErrorReason::Internal, format!("internal error: {what}"))
    }

    /// The error for a stored row that cannot be read. A row that a newer server wrote is not damaged: a
    /// newer server can read it.
    pub fn unreadable(what: &str, error: &recoup_store::format::Error) -> Self {
        match error {
            recoup_store::format::Error::Newer(_) => Self::new(
                ErrorReason::ExecutionTooNew,
                format!("{what} cannot be read by this server: {error}"),
            ),
            damaged => Self::internal(what, damaged),
        }
    }

    pub fn store_unavailable(message: &str) -> Self {
        Self::of_store(ErrorReason::StoreUnavailable, message.to_owned())
    }

    /// The store did not accept the call, or did not report whether it did.
    fn of_store(reason: ErrorReason, message: String) -> Self {
        Self { retry_after: Some(STORE_RETRY), ..Self::new(reason, message) }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.metadata.push((name, value.into()));
        self
    }

    /// The error for a limit on existing objects that has been reached.
    pub fn limit_reached(limit: &str, max: usize) -> Self {
        Self::new(ErrorReason::LimitReached, format!("at most {max} {limit} are allowed"))
            .with("limit", limit)
    }

    /// The error for a definition that is refused. `issues` must not be empty.
    pub fn definition(issues: &[DefinitionIssue]) -> Self {
        let worst = issues.first();
        let reason = worst.map_or(ErrorReason::DefinitionInvalid, DefinitionIssue::reason);
        let first = worst.map(describe).unwrap_or_default();
        let message = match issues.len() {
            0 | 1 => first,
            count => format!("{first} (and {} more)", count - 1),
        };
        let violations = issues
            .iter()
            .map(|issue| Violation { field: issue.field_path.clone(), message: described(issue) });
        let mut error = Self { violations: violations.collect(), ..Self::new(reason, message) };
        if let Some(issue) = worst.filter(|issue| issue.line > 0) {
            error =
                error.with("line", issue.line.to_string()).with("column", issue.column.to_string());
        }
        error
    }
}

fn described(issue: &DefinitionIssue) -> String {
    match issue.line {
        0 => issue.message.clone(),
        line => format!("{line}:{}: {}", issue.column, issue.message),
    }
}

fn describe(issue: &DefinitionIssue) -> String {
    match issue.field_path.as_str() {
        "" => described(issue),
        path => format!("{path}: {}", described(issue)),
    }
}

/// The name of a reason as clients see it.
pub fn name(reason: ErrorReason) -> &'static str {
    reason.as_str_name().trim_start_matches(PREFIX)
}

/// The canonical code of each reason. Must match the table in `error_reason.proto`.
pub fn code(reason: ErrorReason) -> Code {
    use ErrorReason as R;
    match reason {
        R::FieldInvalid
        | R::DefinitionInvalid
        | R::DefinitionTooLarge
        | R::RetryPolicyInvalid
        | R::ExpressionInvalid
        | R::PayloadInvalid
        | R::PayloadTooLarge
        | R::ErrorTooLarge
        | R::PageTokenInvalid
        | R::TaskTokenInvalid
        | R::CursorInvalid
        | R::AckTokenInvalid => Code::InvalidArgument,
        R::RequestIdReused | R::NamespaceExists | R::ExecutionKeyTaken | R::SubscriptionExists => {
            Code::AlreadyExists
        }
        R::NamespaceNotFound
        | R::WorkflowNotFound
        | R::WorkflowVersionNotFound
        | R::ExecutionNotFound
        | R::StepNotFound
        | R::SubscriptionNotFound
        | R::FailureNotFound
        | R::PayloadNotFound => Code::NotFound,
        R::WorkflowRetired
        | R::ExecutionEnded
        | R::ExecutionQuarantined
        | R::ExecutionNotQuarantined
        | R::CompensationNotParked
        | R::AttemptClosed
        | R::SessionNotOpen
        | R::SubscriptionInUse
        | R::CursorForeign
        | R::AckExpired
        | R::FormatNotFinalized => Code::FailedPrecondition,
        R::SessionSuperseded | R::SubscriptionTaken => Code::Aborted,
        R::StoreUnavailable | R::ShuttingDown | R::OutcomeUnknown | R::ExecutionTooNew => {
            Code::Unavailable
        }
        R::Overloaded | R::LimitReached => Code::ResourceExhausted,
        R::Unspecified | R::Internal => Code::Internal,
    }
}

fn bounded(mut text: String) -> String {
    if text.len() > MESSAGE_BYTES_MAX {
        let mut end = MESSAGE_BYTES_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let metadata: HashMap<String, String> = error
            .metadata
            .into_iter()
            .map(|(name, value)| (name.to_owned(), bounded(value)))
            .collect();
        let mut details = ErrorDetails::with_error_info(name(error.reason), DOMAIN, metadata);
        if !error.violations.is_empty() {
            let listed = error.violations.into_iter().take(VIOLATIONS_MAX);
            let violations: Vec<_> = listed
                .map(|violation| {
                    FieldViolation::new(bounded(violation.field), bounded(violation.message))
                })
                .collect();
            details.set_bad_request(violations);
        }
        let mut trailers = MetadataMap::new();
        if let Some(delay) = error.retry_after {
            details.set_retry_info(Some(delay));
            let millis = delay.as_nanos().div_ceil(1_000_000);
            trailers.insert(PUSHBACK, u64::try_from(millis).unwrap_or(u64::MAX).into());
        }
        let message = bounded(error.message);
        Status::with_error_details_and_metadata(code(error.reason), message, details, trailers)
    }
}

/// The reason for a command that does not fit the state of the execution.
pub fn rejection_reason(rejection: &Rejection) -> ErrorReason {
    match rejection {
        Rejection::NoSuchExecution => ErrorReason::ExecutionNotFound,
        Rejection::AlreadyStarted => ErrorReason::ExecutionKeyTaken,
        Rejection::ExecutionEnded(_) => ErrorReason::ExecutionEnded,
        Rejection::AttemptClosed => ErrorReason::AttemptClosed,
        Rejection::NoSuchAttempt => ErrorReason::TaskTokenInvalid,
        Rejection::NotParked => ErrorReason::CompensationNotParked,
        Rejection::FormatTooOld { .. } => ErrorReason::FormatNotFinalized,
        Rejection::RequestIdReused => ErrorReason::RequestIdReused,
        Rejection::NothingDue => ErrorReason::Internal,
        Rejection::HistoryFull { .. } => ErrorReason::LimitReached,
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Rejected(Rejection::RequestIdReused) | Refusal::RequestIdReused => {
                Self::field(ErrorReason::RequestIdReused, "request_id", message)
            }
            Refusal::Rejected(Rejection::HistoryFull { .. }) => {
                Self::new(ErrorReason::LimitReached, message).with("limit", "history events")
            }
            Refusal::Rejected(rejection) => Self::new(rejection_reason(&rejection), message),
            Refusal::KeyHeld { execution, .. } => {
                Self::new(ErrorReason::ExecutionKeyTaken, message)
                    .with("execution_id", execution.to_string())
            }
            Refusal::Overloaded { retry_after } => Self {
                retry_after: Some(retry_after),
                ..Self::new(ErrorReason::Overloaded, message)
            },
            Refusal::Refused(_) => Self::new(ErrorReason::FieldInvalid, message),
            Refusal::Quarantined(_) => Self::new(ErrorReason::ExecutionQuarantined, message),
            Refusal::NotQuarantined => Self::new(ErrorReason::ExecutionNotQuarantined, message),
            Refusal::NotFinalized(refused) => refused.into(),
            Refusal::TooNew(_) => Self::new(ErrorReason::ExecutionTooNew, message),
            Refusal::Failed => Self::new(ErrorReason::Internal, message),
            Refusal::Unavailable(_) => Self::of_store(ErrorReason::StoreUnavailable, message),
            Refusal::OutcomeUnknown => Self::of_store(ErrorReason::OutcomeUnknown, message),
            Refusal::Stopping => Self::new(ErrorReason::ShuttingDown, message),
        }
    }
}

impl From<NotFinalized> for Error {
    fn from(refused: NotFinalized) -> Self {
        let NotFinalized { row, needed, writable } = refused;
        Self::new(ErrorReason::FormatNotFinalized, refused.to_string())
            .with("row", row.name())
            .with("needed", needed.to_string())
            .with("writable", writable.to_string())
    }
}

impl From<recoup_store::Error> for Error {
    /// Callers for which `NotFound`, `AlreadyExists` or `Conflict` has a meaning have checked for it
    /// before.
    fn from(error: recoup_store::Error) -> Self {
        use recoup_store::Error as Store;
        let message = error.to_string();
        match error {
            Store::Unavailable(_) | Store::LeaseLost | Store::Conflict | Store::InUse => {
                Self::of_store(ErrorReason::StoreUnavailable, message)
            }
            Store::OutcomeUnknown(_) => Self::of_store(ErrorReason::OutcomeUnknown, message),
            Store::ForeignCursor => Self::new(ErrorReason::CursorForeign, message),
            Store::MalformedCursor => Self::new(ErrorReason::CursorInvalid, message),
            Store::Data(_) => Self::new(ErrorReason::FieldInvalid, message),
            Store::RequestIdReused => {
                Self::field(ErrorReason::RequestIdReused, "request_id", message)
            }
            Store::NotFound | Store::AlreadyExists | Store::Incompatible(_) => {
                Self::internal("the store gave an unexpected answer", &message)
            }
        }
    }
}

/// The reason for an issue of a definition.
pub fn issue_reason(issue: &Issue) -> ErrorReason {
    match issue.code {
        IssueCode::RetryPolicyInvalid => ErrorReason::RetryPolicyInvalid,
        IssueCode::ExpressionInvalid => ErrorReason::ExpressionInvalid,
        IssueCode::TooMany if issue.field_path == "steps" => ErrorReason::DefinitionTooLarge,
        _ => ErrorReason::DefinitionInvalid,
    }
}

/// The issue for a definition file that cannot be read.
pub fn source_issue(error: &SourceError) -> DefinitionIssue {
    DefinitionIssue {
        severity: recoup_proto::v1::IssueSeverity::Error.into(),
        field_path: error.field_path.clone(),
        line: u32::try_from(error.place.line).unwrap_or(u32::MAX),
        column: u32::try_from(error.place.column).unwrap_or(u32::MAX),
        message: error.message.clone(),
        reason: error.reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use recoup_core::id::ExecutionId;
    use uuid::Uuid;

    use super::*;

    fn every_reason() -> impl Iterator<Item = ErrorReason> {
        (1..).map_while(|number| ErrorReason::try_from(number).ok())
    }

    #[test]
    fn status_codes_match_those_documented_in_the_proto_file() {
        let proto = include_str!("../../../proto/recoup/v1/error_reason.proto");
        let mut seen = 0;
        for reason in every_reason() {
            let place = proto
                .find(&format!("  {} =", reason.as_str_name()))
                .unwrap_or_else(|| panic!("{reason:?} is in the file"));
            let comment: Vec<_> = proto[..place]
                .lines()
                .rev()
                .take_while(|line| line.trim_start().starts_with("//"))
                .collect();
            let first = comment.last().expect("each reason has a comment").trim_start();
            let code = format!("{:?}", code(reason)).to_lowercase();
            let documented = first.trim_start_matches("// ").split(':').next().expect("a code");
            assert_eq!(documented.replace('_', "").to_lowercase(), code, "{reason:?}");
            seen += 1;
        }
        assert!(seen >= 42, "{seen} reasons");
    }

    #[test]
    fn status_carries_its_reason_domain_and_field_violations() {
        let error = Error::invalid("execution.workflow", "it is required");
        let status = Status::from(error);
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        let info = details.error_info().expect("always there");
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("FIELD_INVALID", "recoup"));
        let violations = &details.bad_request().expect("a field is wrong").field_violations;
        assert_eq!(violations[0].field, "execution.workflow");
    }

    #[test]
    fn error_for_a_taken_key_names_the_execution_that_holds_it() {
        let execution = ExecutionId(Uuid::from_u128(5));
        let state = recoup_core::execution::State::Running;
        let status = Status::from(Error::from(Refusal::KeyHeld { execution, state }));
        assert_eq!(status.code(), Code::AlreadyExists);
        // The state appears under the name that it has everywhere.
        assert!(status.message().ends_with(", which is RUNNING"), "{}", status.message());
        let details = status.get_error_details();
        let info = details.error_info().expect("always there");
        assert_eq!(info.metadata.get("execution_id"), Some(&execution.to_string()));
    }

    #[test]
    fn overload_status_carries_a_retry_delay() {
        let retry_after = Duration::from_millis(250);
        let status = Status::from(Error::from(Refusal::Overloaded { retry_after }));
        assert_eq!(status.code(), Code::ResourceExhausted);
        let details = status.get_error_details();
        let retry = details.retry_info().expect("overload is retryable");
        assert_eq!(retry.retry_delay, Some(retry_after));
        assert_eq!(
            status.metadata().get(PUSHBACK).map(|value| value.as_bytes()),
            Some(&b"250"[..])
        );
    }

    #[test]
    fn only_retryable_refusals_carry_a_pushback_and_it_is_rounded_up() {
        let status = Status::from(Error::required("name"));
        assert!(status.metadata().get(PUSHBACK).is_none());
        // Rounded up, because a client that retries a moment too early is refused again.
        let retry_after = Duration::from_micros(1_001);
        let status = Status::from(Error::from(Refusal::Overloaded { retry_after }));
        assert_eq!(status.metadata().get(PUSHBACK).map(|value| value.as_bytes()), Some(&b"2"[..]));
    }

    #[test]
    fn status_with_long_texts_is_cut_to_fit_the_transport() {
        let error = Error::invalid("ä".repeat(5_000), "ö".repeat(5_000));
        let status =
            Status::from(Error { violations: vec![error.violations[0].clone(); 1_000], ..error });
        assert!(status.message().len() <= MESSAGE_BYTES_MAX + 3);
        assert!(status.details().len() < 64 * 1024, "{}", status.details().len());
    }
}
