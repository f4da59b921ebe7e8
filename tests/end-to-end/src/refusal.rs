//! The reason for which a call was refused, as clients read it.

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The gRPC code, the reason of `google.rpc.ErrorInfo` and the fields of `google.rpc.BadRequest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedCall {
    pub code: Code,
    pub reason: String,
    pub fields: Vec<String>,
}

impl RefusedCall {
    pub fn of(status: &Status) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
        let violations = details.bad_request().map(|bad| bad.field_violations.clone());
        let fields = violations.unwrap_or_default().into_iter().map(|violation| violation.field);
        Self { code: status.code(), reason, fields: fields.collect() }
    }
}

/// # Panics
///
/// If the call was not refused with exactly this code, this reason and these fields.
#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(
    answer: Result<T, Status>,
    code: Code,
    reason: &str,
    fields: &[&str],
) {
    let status = answer.expect_err("it is refused");
    let fields = fields.iter().map(|&field| field.to_owned()).collect();
    let wanted = RefusedCall { code, reason: reason.to_owned(), fields };
    assert_eq!(RefusedCall::of(&status), wanted, "{}", status.message());
}
