//! Reads names and texts of requests: checks their limits and replaces NUL.

use recoup_core::id::{ExecutionId, Namespace, StepPath, WorkflowName};
use recoup_core::limits::{self, clean};
use recoup_core::plan::check_error_type_pattern;

use crate::status::{Error, Result};

/// The namespace of a request that does not give one.
pub const DEFAULT_NAMESPACE: &str = "default";
pub const NAMESPACE_SEGMENTS_MAX: usize = 8;
/// The longest name of a worker, a consumer or anything else that is named for people, in bytes.
pub const LABEL_BYTES_MAX: usize = 255;
/// The longest session id, in bytes.
pub const SESSION_BYTES_MAX: usize = 64;

fn is_segment(segment: &str) -> bool {
    segment.starts_with(|first: char| first.is_ascii_lowercase())
        && segment
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte))
}

fn is_namespace(name: &str) -> bool {
    name.len() <= limits::NAMESPACE_BYTES_MAX
        && name.split('.').count() <= NAMESPACE_SEGMENTS_MAX
        && name.split('.').all(is_segment)
}

/// Reads the namespace of a request. An empty one is `default`.
pub fn namespace(name: &str, field: &str) -> Result<Namespace> {
    let name = if name.is_empty() { DEFAULT_NAMESPACE } else { name };
    if is_namespace(name) {
        return Ok(name.into());
    }
    let message = "must consist of segments `[a-z][a-z0-9_-]*` separated by dots, such as \
                   `company.billing`, with at most 8 segments and 128 bytes";
    Err(Error::invalid(field, message))
}

/// Reads a pattern of namespaces: a name, `company.*` or `*`. An empty one is `default`.
pub fn namespace_pattern(pattern: &str, field: &str) -> Result<String> {
    let pattern = if pattern.is_empty() { DEFAULT_NAMESPACE } else { pattern };
    if pattern == "*" || is_namespace(pattern.strip_suffix(".*").unwrap_or(pattern)) {
        return Ok(pattern.to_owned());
    }
    let message = "must be a namespace, a pattern such as `company.*` for the namespaces below it, \
                   or `*` for all";
    Err(Error::invalid(field, message))
}

/// Checks a pattern of error types, in the form that retry policies use.
pub fn error_type_pattern(pattern: &str, field: &str) -> Result<()> {
    check_error_type_pattern(pattern).map_err(|error| Error::invalid(field, error.to_string()))
}

/// Cleans a text that may be empty.
pub fn optional(text: String, field: &str, bytes_max: usize) -> Result<String> {
    if text.len() > bytes_max {
        let message = format!("must have at most {bytes_max} bytes, not {}", text.len());
        return Err(Error::invalid(field, message));
    }
    Ok(match clean(&text) {
        std::borrow::Cow::Borrowed(_) => text,
        std::borrow::Cow::Owned(cleaned) => cleaned,
    })
}

/// Cleans a text that must not be empty.
pub fn required(text: String, field: &str, bytes_max: usize) -> Result<String> {
    if text.is_empty() {
        return Err(Error::required(field));
    }
    optional(text, field, bytes_max)
}

pub fn workflow(name: &str, field: &str) -> Result<WorkflowName> {
    if name.is_empty() {
        return Err(Error::required(field));
    }
    if name.len() > limits::NAME_BYTES_MAX || name.contains('\0') {
        let max = limits::NAME_BYTES_MAX;
        return Err(Error::invalid(field, format!("must have at most {max} bytes and no NUL")));
    }
    Ok(name.into())
}

pub fn execution_id(text: &str, field: &str) -> Result<ExecutionId> {
    if text.is_empty() {
        return Err(Error::required(field));
    }
    let message = "must be a UUID such as `01890a5d-ac96-774b-bcce-b302099a8057`";
    text.parse().map_err(|_| Error::invalid(field, message))
}

pub fn step_path(text: String, field: &str) -> Result<StepPath> {
    required(text, field, limits::STEP_PATH_BYTES_MAX).map(StepPath::from)
}

pub fn request_id(text: String) -> Result<String> {
    optional(text, "request_id", limits::REQUEST_ID_BYTES_MAX)
}

/// Reads the reason that a person gives.
pub fn reason(text: String) -> Result<String> {
    optional(text, "reason", limits::DESCRIPTION_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_is_validated_and_has_a_default() {
        assert_eq!(namespace("", "namespace").expect("the default").as_str(), "default");
        for good in ["a", "company.team-1", "a.b.c.d.e.f.g.h"] {
            assert_eq!(namespace(good, "namespace").expect(good).as_str(), good);
        }
        let long = "a".repeat(129);
        for bad in ["A", "1a", "a..b", ".a", "a.", "a b", "a.*", "a.b.c.d.e.f.g.h.i", "a\0", &long]
        {
            let error = namespace(bad, "spec.namespace").expect_err(bad);
            assert_eq!(error.violations[0].field, "spec.namespace");
        }
    }

    #[test]
    fn namespace_pattern_accepts_a_star_only_as_its_last_segment() {
        for good in ["a", "a.*", "a.b.*", "*"] {
            assert_eq!(namespace_pattern(good, "f").expect(good), good);
        }
        for bad in ["a*", "*.a", "a.*.b", ".*", "**"] {
            assert!(namespace_pattern(bad, "f").is_err(), "{bad}");
        }
    }

    #[test]
    fn text_is_bounded_and_free_of_nul() {
        assert_eq!(optional("a\0b".into(), "f", 3).expect("short enough"), "a\u{fffd}b");
        assert!(optional("abcd".into(), "f", 3).is_err());
        assert!(required(String::new(), "f", 3).is_err());
    }
}
