//! Identifiers. Each one has its own type, so that it cannot be passed in place of another.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use crate::time::Timestamp;

/// Identifies one job of one workflow version. It is a UUID v7, so a range of ids corresponds to a range of
/// start times.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecutionId(pub Uuid);

impl ExecutionId {
    /// Builds the id of an execution that starts at `now`; `random` makes it unique.
    pub fn new(now: Timestamp, random: [u8; 10]) -> Self {
        let millis = u64::try_from(now.as_micros() / 1000).unwrap_or(0);
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }
}

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for ExecutionId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A random id of one attempt to append a transition. After a commit with unknown outcome it shows whether
/// the transition in the database is one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransitionId(pub Uuid);

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

text_id! {
    /// A dotted, hierarchical unit of isolation, such as `company.team`.
    Namespace
}
text_id! {
    /// The name of a workflow within its namespace.
    WorkflowName
}
text_id! {
    /// The name of a step within its workflow: `[a-z][a-z0-9_]*`.
    StepId
}
text_id! {
    /// Names an item of a loop: its index, or the key that the definition chooses.
    ItemKey
}
text_id! {
    /// Names a step within a run, such as `charge` or `lines[3].reserve`. The compensation of a step has a
    /// path as well, such as `charge/compensate`, so every task of an execution has its own path.
    StepPath
}

impl StepPath {
    const COMPENSATE: &str = "/compensate";

    /// The path of the task that undoes this step.
    pub fn compensation(&self) -> Self {
        format!("{}{}", self.0, Self::COMPENSATE).into()
    }

    /// The path of the step that is undone, if this is the path of a compensation.
    pub fn compensated(&self) -> Option<Self> {
        self.0.strip_suffix(Self::COMPENSATE).map(Self::from)
    }
}

impl From<&StepId> for StepPath {
    fn from(id: &StepId) -> Self {
        Self(id.0.clone())
    }
}

/// Whether a pattern of namespaces covers a namespace: `company.team` covers only itself, `company.*`
/// covers everything below `company`, and `*` covers every namespace.
pub fn namespace_matches(pattern: &str, namespace: &str) -> bool {
    match pattern.strip_suffix('*') {
        None => pattern == namespace,
        Some("") => true,
        // The dot is part of the prefix, so `company.*` covers neither `company` nor `companyx`.
        Some(prefix) => namespace.len() > prefix.len() && namespace.starts_with(prefix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_pattern_with_star_covers_whole_segments_below_it() {
        for (pattern, namespace, covered) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", true),
            ("a.*", "a", false),
            ("a.*", "ab", false),
            ("*", "default", true),
        ] {
            assert_eq!(namespace_matches(pattern, namespace), covered, "{pattern} {namespace}");
        }
    }

    #[test]
    fn a_compensation_path_names_the_step_it_undoes() {
        let step = StepPath::from("lines[3].reserve");
        assert_eq!(step.compensation().compensated(), Some(step.clone()));
        assert_eq!(step.compensated(), None);
    }

    #[test]
    fn execution_ids_sort_by_the_millisecond_of_their_creation() {
        let earlier = ExecutionId::new(Timestamp::from_micros(1_000_000), [0xff; 10]);
        let later = ExecutionId::new(Timestamp::from_micros(1_001_000), [0; 10]);
        assert!(earlier < later);
    }
}
