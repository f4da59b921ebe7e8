//! The types that commands, events and the folded state share: the states of an execution and of its
//! compensation, and the trace context.

use std::fmt;

/// The state of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    Running,
    /// Reserved: no execution is in this state yet.
    Retrying,
    /// Reserved: no execution is in this state yet.
    Paused,
    /// The run has failed or timed out, and the execution has not ended yet.
    Compensating,
    /// A cancel stopped the run, or a termination that takes several transitions is under way.
    Cancelling,
    Succeeded,
    /// Succeeded, but with warnings.
    Warning,
    Failed,
    TimedOut,
    Cancelled,
    Terminated,
}

impl State {
    pub const ALL: [Self; 11] = [
        Self::Running,
        Self::Retrying,
        Self::Paused,
        Self::Compensating,
        Self::Cancelling,
        Self::Succeeded,
        Self::Warning,
        Self::Failed,
        Self::TimedOut,
        Self::Cancelled,
        Self::Terminated,
    ];

    pub fn is_ended(self) -> bool {
        self >= Self::Succeeded
    }

    /// Every end state except SUCCEEDED and WARNING.
    pub fn is_failure(self) -> bool {
        self >= Self::Failed
    }

    /// The name that is used everywhere: in the protocol, in SQL and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Retrying => "RETRYING",
            Self::Paused => "PAUSED",
            Self::Compensating => "COMPENSATING",
            Self::Cancelling => "CANCELLING",
            Self::Succeeded => "SUCCEEDED",
            Self::Warning => "WARNING",
            Self::Failed => "FAILED",
            Self::TimedOut => "TIMED_OUT",
            Self::Cancelled => "CANCELLED",
            Self::Terminated => "TERMINATED",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// The progress of the compensation of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CompensationState {
    /// Nothing has to be compensated so far.
    None,
    /// The run has stopped with something to compensate, and compensation has not begun.
    Pending,
    Running,
    Done,
    /// A compensation failed for good or never ran: an operator must act.
    Parked,
}

impl CompensationState {
    pub const ALL: [Self; 5] = [Self::None, Self::Pending, Self::Running, Self::Done, Self::Parked];

    /// The name in the API, in expressions and in stores.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Done => "DONE",
            Self::Parked => "PARKED",
        }
    }
}

/// What is known about the step that is to be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompensationOutcome {
    /// The step completed.
    Completed,
    /// An attempt of the step ended with an unknown outcome, so the step may have taken effect.
    Unknown,
}

/// One of the lists of steps inside a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The steps of a `try`.
    Body,
    /// A case of a `switch`, by its index.
    Case(u32),
    /// The `default` of a `switch`.
    Default,
    /// A branch of a `parallel`. Several of them run at a time; the key of the scope says which one is meant.
    Branch,
    /// An item of a `for_each`. The key of the scope says which one is meant.
    Item,
    /// A handler, by its index in the step's `catch`.
    Handler(u32),
}

impl Part {
    /// Whether several scopes of a step are this part of it, each with a key of its own.
    pub fn is_keyed(self) -> bool {
        match self {
            Self::Branch | Self::Item => true,
            Self::Body | Self::Case(_) | Self::Default | Self::Handler(_) => false,
        }
    }
}

/// W3C trace context of the call that started the execution; empty if the call had none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    pub traceparent: String,
    pub tracestate: String,
}
