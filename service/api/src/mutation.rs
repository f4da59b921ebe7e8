//! Mutations: the identity that makes it safe to repeat a call, and the fields that all calls share that
//! change one execution.

use recoup_core::command::RequestId;
use recoup_core::id::{ExecutionId, Namespace};
use recoup_store::RegistryRequest;

use crate::convert::text;
use crate::digest;
use crate::status::{Error, Result};

/// The identity of a mutation of an execution, if its caller gave a request id. `digest` is computed from
/// the call without the id; the same id with a different digest is refused.
pub fn request(request_id: String, digest: impl FnOnce() -> u64) -> Result<Option<RequestId>> {
    let id = text::request_id(request_id)?;
    let is_given = !id.is_empty();
    Ok(is_given.then(|| RequestId { id, digest: digest() }))
}

/// The identity of a mutation of the registry, if its caller gave a request id. `digest` is computed from
/// the body of the request without the id.
pub fn registry_request(
    namespace: Namespace,
    request_id: String,
    digest: impl FnOnce() -> u64,
) -> Result<Option<RegistryRequest>> {
    let request = request(request_id, digest)?;
    let keyed = |RequestId { id, digest }| RegistryRequest { namespace, request_id: id, digest };
    Ok(request.map(keyed))
}

/// The fields that all requests share that change one execution, as the caller sent them.
pub struct Given<'a> {
    /// Distinguishes the digests of different calls. Digests are stored, so this must never change.
    pub call: &'static str,
    pub execution_id: &'a str,
    /// For calls that concern a step, or may concern one.
    pub step_path: Option<&'a str>,
    pub reason: Reason,
    pub request_id: String,
}

/// The reason for the call, given by a person.
pub enum Reason {
    Optional(String),
    Required(String),
}

/// A mutation of one execution after all checks.
#[derive(Debug)]
pub struct Mutation {
    pub execution: ExecutionId,
    pub reason: String,
    pub request: Option<RequestId>,
}

impl Mutation {
    pub fn read(given: Given<'_>) -> Result<Self> {
        let Given { call, execution_id, step_path, reason, request_id } = given;
        let execution = text::execution_id(execution_id, "execution_id")?;
        let reason = match reason {
            Reason::Required(reason) if reason.is_empty() => {
                return Err(Error::required("reason"));
            }
            Reason::Required(reason) | Reason::Optional(reason) => reason,
        };
        // The digest is taken before texts are cleaned, so equal messages have equal digests.
        let request = request(request_id, || {
            let step = step_path.map(|path| format!("\0{path}")).unwrap_or_default();
            digest::of(format!("{call}\0{execution}{step}\0{reason}").as_bytes())
        })?;
        Ok(Self { execution, reason: text::reason(reason)?, request })
    }
}

#[cfg(test)]
mod tests {
    use recoup_core::limits::{DESCRIPTION_BYTES_MAX, REQUEST_ID_BYTES_MAX};

    use super::*;

    const EXECUTION: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    fn given(call: &'static str, step_path: Option<&'static str>, reason: &str) -> Given<'static> {
        let reason = Reason::Required(reason.to_owned());
        Given { call, execution_id: EXECUTION, step_path, reason, request_id: "r1".into() }
    }

    fn digest_of(given: Given<'_>) -> u64 {
        let mutation = Mutation::read(given).expect("the mutation is valid");
        mutation.request.expect("a request id was given").digest
    }

    #[test]
    fn a_digest_covers_call_execution_step_and_reason() {
        let expected = |text: &str| digest::of(text.as_bytes());
        assert_eq!(
            digest_of(given("cancel", None, "why")),
            expected(&format!("cancel\0{EXECUTION}\0why"))
        );
        assert_eq!(
            digest_of(given("skip", Some("pay"), "why")),
            expected(&format!("skip\0{EXECUTION}\0pay\0why"))
        );
        // The digest covers the reason as it was sent, not as it is stored.
        let nul = Mutation::read(given("cancel", None, "a\0b")).expect("it is cleaned");
        assert_eq!(nul.reason, "a\u{fffd}b");
        assert_ne!(
            digest_of(given("cancel", None, "a\0b")),
            digest_of(given("cancel", None, "a\u{fffd}b"))
        );
    }

    #[test]
    fn invalid_mutation_names_the_bad_field() {
        let whole = || given("cancel", None, "why");
        let long = |bytes: usize| "x".repeat(bytes + 1);
        let reason = |text: String| Reason::Required(text);
        for (field, bad) in [
            ("execution_id", Given { execution_id: "7", ..whole() }),
            ("reason", Given { reason: reason(String::new()), ..whole() }),
            ("reason", Given { reason: reason(long(DESCRIPTION_BYTES_MAX)), ..whole() }),
            ("request_id", Given { request_id: long(REQUEST_ID_BYTES_MAX), ..whole() }),
        ] {
            let refused = Mutation::read(bad).expect_err(field);
            assert_eq!(refused.violations[0].field, field);
        }
        let optional = Given { reason: Reason::Optional(String::new()), ..whole() };
        assert_eq!(Mutation::read(optional).expect("a reason is optional").reason, "");
    }

    #[test]
    fn mutation_without_a_request_id_has_no_digest() {
        let anonymous = Given { request_id: String::new(), ..given("cancel", None, "why") };
        assert_eq!(Mutation::read(anonymous).expect("valid").request, None);
        let digest = || panic!("no digest is needed without a request id");
        assert!(
            registry_request("default".into(), String::new(), digest).expect("valid").is_none()
        );
    }
}
