//! Values that occur in several messages.

use std::time::Duration;

use recoup_core::error::{Category, Suppressed, TaskError};
use recoup_core::execution::{CompensationOutcome, CompensationState, State, TraceContext};
use recoup_core::id::{ItemKey, Namespace, StepPath, WorkflowName};
use recoup_core::payload::Payload;
use recoup_core::retry::{Decision, Reason, Verdict};
use recoup_core::time::Timestamp;

use super::{Error, wire};

/// The maximum number of links of an error that are written and read. The API refuses errors that are a tenth
/// as deep. The limit keeps code that walks over an error from overflowing the stack.
pub const CHAIN_MAX: usize = 200;

/// A type of core that has its own message, or its own enum number.
pub trait Stored: Sized {
    type Wire;

    fn to_wire(&self) -> Self::Wire;

    fn from_wire(wire: Self::Wire) -> Result<Self, Error>;
}

pub fn malformed<T>(what: &str) -> Result<T, Error> {
    Err(Error::Malformed(what.into()))
}

/// Decodes a message that must be present.
pub fn required<T: Stored>(wire: Option<T::Wire>, what: &str) -> Result<T, Error> {
    match wire {
        Some(wire) => T::from_wire(wire),
        None => malformed(&format!("{what} is missing")),
    }
}

pub fn optional<T: Stored>(wire: Option<T::Wire>) -> Result<Option<T>, Error> {
    wire.map(T::from_wire).transpose()
}

pub fn list<T: Stored>(wire: Vec<T::Wire>) -> Result<Vec<T>, Error> {
    wire.into_iter().map(T::from_wire).collect()
}

pub fn to_list<T: Stored>(values: &[T]) -> Vec<T::Wire> {
    values.iter().map(T::to_wire).collect()
}

/// Enums whose variants have the same names on both sides.
macro_rules! stored_enum {
    ($core:ty, $wire:ty: $($variant:ident)+) => {
        impl $crate::format::value::Stored for $core {
            type Wire = i32;

            fn to_wire(&self) -> i32 {
                let wire = match self {
                    $(Self::$variant => <$wire>::$variant,)+
                };
                wire.into()
            }

            fn from_wire(wire: i32) -> Result<Self, $crate::format::Error> {
                match <$wire>::try_from(wire) {
                    $(Ok(<$wire>::$variant) => Ok(Self::$variant),)+
                    #[allow(unreachable_patterns, reason = "not every enum has a variant for zero")]
                    Ok(_) | Err(_) => $crate::format::value::malformed(
                        concat!("unknown ", stringify!($core)),
                    ),
                }
            }
        }
    };
}
pub(super) use stored_enum;

stored_enum!(Category, wire::Category: Unspecified Transient Intermittent Permanent Benign);
stored_enum!(Reason, wire::Reason:
    Cancelled ScheduleTimeout NonRetryable NonRetryableType NotOnAllowList Permanent
    RuleAttemptsExhausted RuleDurationExhausted AttemptsExhausted DurationExhausted Deadline
    Rule Category Policy);
stored_enum!(State, wire::State:
    Running Retrying Paused Compensating Cancelling
    Succeeded Warning Failed TimedOut Cancelled Terminated);
stored_enum!(CompensationState, wire::CompensationState: None Pending Running Done Parked);
stored_enum!(CompensationOutcome, wire::CompensationOutcome: Completed Unknown);

/// Names are never empty, so an empty name is a missing one.
macro_rules! stored_name {
    ($($name:ty),+) => {$(
        impl Stored for $name {
            type Wire = String;

            fn to_wire(&self) -> String {
                self.as_str().to_owned()
            }

            fn from_wire(wire: String) -> Result<Self, Error> {
                if wire.is_empty() {
                    return malformed(concat!(stringify!($name), " is missing"));
                }
                Ok(wire.into())
            }
        }
    )+};
}
stored_name!(Namespace, WorkflowName, StepPath, ItemKey, recoup_core::id::StepId);

impl Stored for Timestamp {
    type Wire = i64;

    fn to_wire(&self) -> i64 {
        self.as_micros()
    }

    fn from_wire(wire: i64) -> Result<Self, Error> {
        Ok(Self::from_micros(wire))
    }
}

impl Stored for Duration {
    type Wire = wire::Duration;

    fn to_wire(&self) -> wire::Duration {
        wire::Duration { seconds: self.as_secs(), nanoseconds: self.subsec_nanos() }
    }

    fn from_wire(wire: wire::Duration) -> Result<Self, Error> {
        if wire.nanoseconds >= 1_000_000_000 {
            return malformed("a duration of more than a second of nanoseconds");
        }
        Ok(Self::new(wire.seconds, wire.nanoseconds))
    }
}

impl Stored for Payload {
    type Wire = wire::Payload;

    fn to_wire(&self) -> wire::Payload {
        wire::Payload {
            data: self.data.clone(),
            content_type: self.content_type.clone(),
            metadata: self.metadata.clone(),
        }
    }

    fn from_wire(wire: wire::Payload) -> Result<Self, Error> {
        let wire::Payload { data, content_type, metadata } = wire;
        Ok(Self { data, content_type, metadata })
    }
}

impl Stored for TaskError {
    type Wire = wire::Error;

    fn to_wire(&self) -> wire::Error {
        wire::Error { chain: self.chain().take(CHAIN_MAX).map(link_to_wire).collect() }
    }

    fn from_wire(wire: wire::Error) -> Result<Self, Error> {
        if wire.chain.len() > CHAIN_MAX {
            return malformed("an error with too many causes");
        }
        let mut inner = None;
        for link in wire.chain.into_iter().rev() {
            inner = Some(Box::new(link_from_wire(link, inner)?));
        }
        match inner {
            Some(outermost) => Ok(*outermost),
            None => malformed("an error without a link"),
        }
    }
}

fn link_to_wire(error: &TaskError) -> wire::ErrorLink {
    wire::ErrorLink {
        r#type: error.error_type.clone(),
        message: error.message.clone(),
        details: error.details.as_ref().map(Payload::to_wire),
        stack_trace: error.stack_trace.clone(),
        non_retryable: error.non_retryable,
        category: error.category.to_wire(),
        next_retry_delay: error.next_retry_delay.as_ref().map(Duration::to_wire),
        source: error.source.clone(),
        suppressed: to_list(&error.suppressed),
    }
}

fn link_from_wire(
    link: wire::ErrorLink,
    cause: Option<Box<TaskError>>,
) -> Result<TaskError, Error> {
    Ok(TaskError {
        error_type: link.r#type,
        message: link.message,
        details: optional(link.details)?,
        stack_trace: link.stack_trace,
        cause,
        non_retryable: link.non_retryable,
        category: Category::from_wire(link.category)?,
        next_retry_delay: optional(link.next_retry_delay)?,
        source: link.source,
        suppressed: list(link.suppressed)?,
    })
}

impl Stored for Suppressed {
    type Wire = wire::Suppressed;

    fn to_wire(&self) -> wire::Suppressed {
        let Self { step, error_type, message } = self.clone();
        wire::Suppressed { step, r#type: error_type, message }
    }

    fn from_wire(wire: wire::Suppressed) -> Result<Self, Error> {
        let wire::Suppressed { step, r#type: error_type, message } = wire;
        Ok(Self { step, error_type, message })
    }
}

impl Stored for Decision {
    type Wire = wire::Decision;

    fn to_wire(&self) -> wire::Decision {
        let (delay, next_at) = match self.verdict {
            Verdict::Retry { delay, next_at } => (Some(delay.to_wire()), Some(next_at.to_wire())),
            Verdict::Stop => (None, None),
        };
        wire::Decision {
            reason: self.reason.to_wire(),
            delay,
            next_at,
            rule: self.rule,
            delay_from_error: self.delay_from_error,
        }
    }

    fn from_wire(wire: wire::Decision) -> Result<Self, Error> {
        let verdict = match (wire.delay, wire.next_at) {
            (Some(delay), Some(next_at)) => Verdict::Retry {
                delay: Duration::from_wire(delay)?,
                next_at: Timestamp::from_wire(next_at)?,
            },
            (None, None) => Verdict::Stop,
            _ => return malformed("a decision with half a retry"),
        };
        Ok(Self {
            verdict,
            reason: Reason::from_wire(wire.reason)?,
            rule: wire.rule,
            delay_from_error: wire.delay_from_error,
        })
    }
}

/// None if the context is empty, because most executions have no trace.
pub fn trace_to_wire(trace: &TraceContext) -> Option<wire::TraceContext> {
    let TraceContext { traceparent, tracestate } = trace;
    if traceparent.is_empty() && tracestate.is_empty() {
        return None;
    }
    Some(wire::TraceContext { traceparent: traceparent.clone(), tracestate: tracestate.clone() })
}

pub fn trace_from_wire(wire: Option<wire::TraceContext>) -> TraceContext {
    wire.map_or_else(TraceContext::default, |wire| TraceContext {
        traceparent: wire.traceparent,
        tracestate: wire.tracestate,
    })
}
