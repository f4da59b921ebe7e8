//! The errors of calls to the service.

use std::collections::BTreeMap;
use std::time::Duration;

use recoup_proto::v1::{ErrorReason, ExecutionState, Outcome};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Why a call of this crate did not succeed.
///
/// The error that a handler reports for an attempt of a task is a [`TaskError`](crate::TaskError) instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The service refused the call and gave a reason.
    #[error("{message}")]
    Service {
        /// The canonical gRPC code.
        code: Code,
        /// The reason. `Unspecified` if this version of the SDK does not know the reason: decide by `code`
        /// then.
        reason: ErrorReason,
        /// A message for people.
        message: String,
        /// The fields that are wrong. Set for `InvalidArgument`.
        field_violations: Vec<FieldViolation>,
        /// How long to wait before the call is repeated, if the service said so.
        retry_after: Option<Duration>,
        /// Further facts, such as the `execution_id` that comes with `ExecutionKeyTaken`.
        metadata: BTreeMap<String, String>,
    },
    /// The service could not be reached, or the connection broke, and the retry timeout ran out. Whether
    /// the call took effect is not known. It carried a request id, so repeating the call with the same id
    /// is safe.
    #[error("the service cannot be reached: {message}")]
    Unavailable {
        /// The canonical gRPC code that the transport reported.
        code: Code,
        /// A message for people.
        message: String,
    },
    /// The address cannot be used: it must be host and port, like `127.0.0.1:7430` or `[::1]:7430`, or a
    /// URL, like `http://127.0.0.1:7430`.
    #[error("`{address}` is not a valid address: {message}")]
    Address {
        /// The address that was given.
        address: String,
        /// The problem with the address.
        message: String,
    },
    /// A value cannot be written as JSON, or a payload does not hold the JSON that was expected.
    #[error("the payload does not have the expected form: {0}")]
    Payload(#[source] serde_json::Error),
    /// A payload is over 2 MiB.
    #[error("the payload has {size} bytes, the limit is 2097152")]
    PayloadTooLarge {
        /// The size of the payload in bytes.
        size: usize,
    },
    /// A request is over 4 MiB in total. It was not sent.
    #[error("the message has {size} bytes, the limit is 4194304")]
    MessageTooLarge {
        /// The size of the request in bytes.
        size: usize,
    },
    /// The payload was too large for the answer, which holds a reference in its place. Read the content
    /// with [`Client::read_payload`](crate::Client::read_payload).
    #[error(
        "the payload was too large for the answer; read it with ReadPayload and the id {payload_id}"
    )]
    PayloadReference {
        /// Id of the payload.
        payload_id: String,
    },
    /// The wait limit that the caller set has expired. The execution is still running.
    #[error("execution {execution_id} has not ended")]
    StillRunning {
        /// Id of the execution.
        execution_id: String,
        /// The state of the execution when the wait ended.
        state: ExecutionState,
    },
    /// The execution did not end successfully. Returned only if the caller asked for its output.
    #[error("execution {execution_id} ended as {}", outcome.state().as_str_name().trim_start_matches("EXECUTION_STATE_"))]
    Ended {
        /// Id of the execution.
        execution_id: String,
        /// The outcome of the execution.
        outcome: Box<Outcome>,
    },
    /// A worker or subscriber was configured in a way that cannot work. The text says what is wrong.
    #[error("{0}")]
    Setup(String),
    /// The service sent an answer without the named part. This version of the SDK cannot interpret it.
    #[error("the service sent an answer without {0}")]
    Incomplete(&'static str),
}

/// A field of a request whose value is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field, such as `steps[2].retry.max_attempts`.
    pub field: String,
    /// The problem with the field.
    pub description: String,
}

impl Error {
    /// The reason why the service refused the call. A payload over the limit is not sent, and has the
    /// reason that the service would give. `Unspecified` for all other errors.
    pub fn reason(&self) -> ErrorReason {
        match self {
            Self::Service { reason, .. } => *reason,
            Self::PayloadTooLarge { .. } => ErrorReason::PayloadTooLarge,
            _ => ErrorReason::Unspecified,
        }
    }

    /// The canonical gRPC code of an error that came from the service or the transport; `None` for other
    /// errors.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Service { code, .. } | Self::Unavailable { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the same call, unchanged, may succeed a little later: the service is away, stopping or
    /// overloaded, or it said when there may be room again. Every call of this crate is idempotent, so it
    /// is safe to repeat.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Service { code, reason, retry_after, .. } => match code {
                Code::Unavailable => true,
                Code::ResourceExhausted => {
                    *reason == ErrorReason::Overloaded || retry_after.is_some()
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// How long the service asked the caller to wait before the next try.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Service { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        // Only the service attaches a reason. Without one, these codes are how tonic reports a connection
        // that failed or broke. Any other code came from a server, though perhaps not from ours.
        let from_transport = info.is_none()
            && (std::error::Error::source(&status).is_some()
                || matches!(
                    status.code(),
                    Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded
                ));
        if from_transport {
            return Self::Unavailable { code: status.code(), message: root_message(&status) };
        }
        let reason = info
            .and_then(|info| ErrorReason::from_str_name(&format!("ERROR_REASON_{}", info.reason)))
            .unwrap_or_default();
        let field_violations = details.bad_request().map_or_else(Vec::new, |request| {
            let violations = request.field_violations.iter();
            violations
                .map(|violation| FieldViolation {
                    field: violation.field.clone(),
                    description: violation.description.clone(),
                })
                .collect()
        });
        Self::Service {
            code: status.code(),
            reason,
            message: status.message().to_owned(),
            field_violations,
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            metadata: info
                .map(|info| info.metadata.clone().into_iter().collect())
                .unwrap_or_default(),
        }
    }
}

/// The text of the innermost cause. tonic's own text says only `transport error`.
fn root_message(status: &Status) -> String {
    let mut message = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        message = error.to_string();
        source = error.source();
    }
    if message.is_empty() { status.code().description().to_owned() } else { message }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn because(reason: &str) -> ErrorDetails {
        ErrorDetails::with_error_info(reason, "recoup", HashMap::new())
    }

    #[test]
    fn an_error_keeps_the_reason_violations_metadata_and_retry_delay() {
        let mut details = ErrorDetails::with_error_info(
            "EXECUTION_KEY_TAKEN",
            "recoup",
            HashMap::from([("execution_id".to_owned(), "e1".to_owned())]),
        );
        details.add_bad_request_violation("execution.execution_key", "taken");
        details.set_retry_info(Some(Duration::from_millis(250)));
        let status = Status::with_error_details(Code::AlreadyExists, "the key is taken", details);

        let error = Error::from(status);
        assert_eq!(error.to_string(), "the key is taken");
        assert_eq!(error.reason(), ErrorReason::ExecutionKeyTaken);
        assert_eq!(error.retry_after(), Some(Duration::from_millis(250)));
        assert!(!error.is_transient());
        let Error::Service { code, field_violations, metadata, .. } = error else {
            panic!("not an error of the service: {error}");
        };
        assert_eq!(code, Code::AlreadyExists);
        assert_eq!(field_violations.len(), 1);
        assert_eq!(field_violations[0].field, "execution.execution_key");
        assert_eq!(metadata["execution_id"], "e1");
    }

    #[test]
    fn a_locally_rejected_payload_has_the_reason_payload_too_large() {
        let error = Error::PayloadTooLarge { size: 3 << 20 };
        assert_eq!(error.reason(), ErrorReason::PayloadTooLarge);
    }

    #[test]
    fn an_unknown_reason_is_unspecified_but_keeps_the_code() {
        let details = because("FROM_A_LATER_VERSION");
        let error = Error::from(Status::with_error_details(Code::NotFound, "gone", details));
        assert_eq!(error.reason(), ErrorReason::Unspecified);
        assert_eq!(error.code(), Some(Code::NotFound));
    }

    #[test]
    fn only_unavailability_and_overload_are_transient() {
        let refused =
            |code, reason| Error::from(Status::with_error_details(code, "", because(reason)));
        assert!(refused(Code::Unavailable, "STORE_UNAVAILABLE").is_transient());
        assert!(refused(Code::Unavailable, "FROM_A_LATER_VERSION").is_transient());
        assert!(refused(Code::ResourceExhausted, "OVERLOADED").is_transient());
        assert!(!refused(Code::ResourceExhausted, "LIMIT_REACHED").is_transient());
        assert!(!refused(Code::Internal, "INTERNAL").is_transient());
        assert!(Error::from(Status::unavailable("connection refused")).is_transient());
        assert!(!Error::from(Status::unimplemented("no such method")).is_transient());
    }

    #[test]
    fn a_broken_connection_error_names_its_cause() {
        let broken = std::io::Error::other("connection reset by peer");
        let error = Error::from(Status::from_error(Box::new(broken)));
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        assert_eq!(error.to_string(), "the service cannot be reached: connection reset by peer");
    }
}
