//! Collects issues while a definition is read, for values that core's types cannot hold.

use std::time::Duration;

use recoup_core::plan::{Issue, IssueCode};
use recoup_proto as proto;

use super::enumeration;

#[derive(Default)]
pub struct Reader {
    issues: Vec<Issue>,
}

impl Reader {
    pub fn into_issues(self) -> Vec<Issue> {
        self.issues
    }

    pub fn issue(&mut self, field_path: String, code: IssueCode, message: &str) {
        self.issues.push(Issue { field_path, code, message: message.to_owned() });
    }

    /// Reads the duration at `path.field`, or at `field` if the path is empty.
    pub fn duration(
        &mut self,
        given: Option<proto::Duration>,
        path: &str,
        field: &str,
    ) -> Option<Duration> {
        let read = Duration::try_from(given?);
        if let Err(error) = &read {
            let dot = if path.is_empty() { "" } else { "." };
            let path = format!("{path}{dot}{field}");
            self.issue(path, IssueCode::DurationInvalid, &error.to_string());
        }
        read.ok()
    }

    /// Reads the enum value at `path.field`. Returns `None` if it is unspecified, or if this server does
    /// not know it, which is an issue.
    pub fn known<P: TryFrom<i32>, C>(
        &mut self,
        number: i32,
        path: &str,
        field: &str,
        from: impl Fn(P) -> Option<C>,
    ) -> Option<C> {
        let known = P::try_from(number).ok().and_then(from);
        if known.is_none() && number != 0 {
            let message = enumeration::unknown(number);
            self.issue(format!("{path}.{field}"), IssueCode::ValueUnknown, &message);
        }
        known
    }
}
