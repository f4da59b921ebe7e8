//! The names that columns use for values.
//!
//! A newer binary may write names that this binary does not know. Such a row is still read, because otherwise
//! one row would make every page and listing that contains it fail. [`Named::Unknown`] keeps the name. Decision
//! 14 says how each reader treats it.

use recoup_core::execution::{CompensationState, Phase, State};
use recoup_core::failure_event::FailureKind;

/// A type whose values have names in columns.
pub trait Name: Copy + PartialEq + 'static {
    const VALUES: &'static [Self];

    fn name(self) -> &'static str;

    fn from_name(name: &str) -> Option<Self> {
        Self::VALUES.iter().copied().find(|value| value.name() == name)
    }
}

/// The value that a column holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named<T> {
    Known(T),
    /// A name that only a newer binary knows.
    Unknown(String),
}

impl<T: Name> Named<T> {
    /// The value with this name, or [`Named::Unknown`].
    pub fn of(name: &str) -> Self {
        T::from_name(name).map_or_else(|| Self::Unknown(name.to_owned()), Self::Known)
    }

    /// The name as it stands in the column.
    pub fn name(&self) -> &str {
        match self {
            Self::Known(value) => value.name(),
            Self::Unknown(name) => name,
        }
    }

    /// The value, or none if only a newer binary knows the name.
    pub fn known(&self) -> Option<T> {
        match self {
            Self::Known(value) => Some(*value),
            Self::Unknown(_) => None,
        }
    }
}

impl<T> From<T> for Named<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl<T: PartialEq> PartialEq<T> for Named<T> {
    fn eq(&self, other: &T) -> bool {
        matches!(self, Self::Known(value) if value == other)
    }
}

macro_rules! names {
    ($type:ty { $($variant:ident => $name:literal,)* }) => {
        impl Name for $type {
            const VALUES: &'static [Self] = &[$(Self::$variant,)*];

            fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

impl Name for State {
    const VALUES: &'static [Self] = &Self::ALL;

    fn name(self) -> &'static str {
        self.name()
    }
}

names!(Phase {
    Steps => "STEPS",
    Compensation => "COMPENSATION",
    OnFailure => "ON_FAILURE",
    Finally => "FINALLY",
});

impl Name for CompensationState {
    const VALUES: &'static [Self] = &Self::ALL;

    fn name(self) -> &'static str {
        self.name()
    }
}

names!(FailureKind {
    AttemptFailed => "attempt_failed",
    StepFailed => "step_failed",
    StepIgnored => "step_ignored",
    StepCaught => "step_caught",
    ExecutionFailed => "execution_failed",
    ExecutionTimedOut => "execution_timed_out",
    ExecutionWarning => "execution_warning",
    ExecutionCancelled => "execution_cancelled",
    ExecutionTerminated => "execution_terminated",
    CompensationStarted => "compensation_started",
    CompensationDone => "compensation_done",
    CompensationParked => "compensation_parked",
    HandlerFailed => "handler_failed",
    WorkerLost => "worker_lost",
    QueueUnserved => "queue_unserved",
    DeliveryFailed => "delivery_failed",
    Recovered => "recovered",
    FeedGap => "feed_gap",
    ExecutionQuarantined => "execution_quarantined",
});

#[cfg(test)]
mod tests {
    use super::*;

    fn check_round_trip<T: Name + std::fmt::Debug>() {
        for value in T::VALUES {
            assert_eq!(Named::<T>::of(value.name()), *value);
        }
        let unknown = Named::<T>::of("HIBERNATING");
        assert_eq!((unknown.known(), unknown.name()), (None, "HIBERNATING"));
    }

    #[test]
    fn names_round_trip_and_unknown_names_are_kept() {
        check_round_trip::<State>();
        check_round_trip::<Phase>();
        check_round_trip::<CompensationState>();
        check_round_trip::<FailureKind>();
    }
}
