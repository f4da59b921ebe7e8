//! The lowest format that can hold a value. A row is stamped with it, so that a server that has not been
//! updated yet can read everything that an updated server writes without using anything new.
//!
//! Every field and every variant is named here, so a new one does not compile until its format is stated. It
//! belongs to the format after the newest one, or to the newest one if that has not been released yet. It
//! requires that format only where it is used: an optional field that is empty does not.
//! `format/compatibility.rs` decodes rows by the descriptors of the format that they are stamped with, and
//! fails on everything that those do not know.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use recoup_core::definition::{
    Block, Branch, Case, Catch, Compensate, Defaults, Delivery, Fail, FailureMode, ForEach,
    OnError, Parallel, Raise, Step, StepKind, Switch, Task, Timeouts, Workflow,
};
use recoup_core::error::{Category, Suppressed, TaskError};
use recoup_core::event::{
    AttemptFailed, AttemptOutcome, DueCompensation, Event, ExecutionStarted, PayloadSource,
    StopCause,
};
use recoup_core::execution::{CompensationOutcome, CompensationState, Part, State, TraceContext};
use recoup_core::failure_event::{CompletedStep, FailureEvent, FailureKind, Subject};
use recoup_core::id::{ExecutionId, ItemKey, Namespace, StepId, StepPath, WorkflowName};
use recoup_core::payload::Payload;
use recoup_core::retry::{Decision, Limits, MatchOn, Reason, RetryPolicy, Rule, Schedule, Verdict};
use recoup_core::subscription::{Consumer, Entry, Filter, Gap, Position, Subscription};
use recoup_core::time::Timestamp;

use super::number::{FIRST, Row};
use super::value::CHAIN_MAX;
use crate::contract::{NamespaceRow, RegistryAnswer, SubscriptionRow};

pub trait Needed {
    /// The lowest format of this kind of row that can hold the value. A value that occurs in several kinds of
    /// rows may need a different format in each.
    fn needed(&self, row: Row) -> u16;
}

/// Values without parts. They belong to the first format.
macro_rules! scalars {
    ($($type:ty)+) => {$(
        impl Needed for $type {
            fn needed(&self, _: Row) -> u16 {
                FIRST
            }
        }
    )+};
}
scalars!(bool i32 u32 i64 u64 f64 String Bytes Duration Timestamp BTreeMap<String, String>);
scalars!(ExecutionId ItemKey Namespace StepId StepPath WorkflowName);

/// Enums without fields, with the variants of the first format.
macro_rules! variants {
    ($($type:ty: $($variant:ident)+;)+) => {$(
        impl Needed for $type {
            fn needed(&self, _: Row) -> u16 {
                match self {
                    $(Self::$variant => FIRST,)+
                }
            }
        }
    )+};
}
variants! {
    AttemptOutcome: Known Unknown NotStarted;
    StopCause: Failed TimedOut Cancelled Terminated;
    Category: Unspecified Transient Intermittent Permanent Benign;
    Reason: Cancelled ScheduleTimeout NonRetryable NonRetryableType NotOnAllowList Permanent
        RuleAttemptsExhausted RuleDurationExhausted AttemptsExhausted DurationExhausted Deadline
        Rule Category Policy;
    State: Running Retrying Paused Compensating Cancelling
        Succeeded Warning Failed TimedOut Cancelled Terminated;
    CompensationState: None Pending Running Done Parked;
    CompensationOutcome: Completed Unknown;
    Delivery: AtLeastOnce AtMostOnce;
    OnError: Fail Ignore;
    FailureMode: FailFast WaitAll;
    MatchOn: Outermost AnyCause RootCause;
}

/// Structs, with the fields of the first format.
macro_rules! fields {
    ($($type:ty { $($field:ident)+ })+) => {$(
        impl Needed for $type {
            fn needed(&self, row: Row) -> u16 {
                let Self { $($field),+ } = self;
                FIRST$(.max($field.needed(row)))+
            }
        }
    )+};
}

/// Enums with fields, with the variants and fields of the first format.
macro_rules! variants_with_fields {
    ($($type:ty: $($variant:ident { $($field:ident)* })+;)+) => {$(
        impl Needed for $type {
            fn needed(&self, row: Row) -> u16 {
                match self {
                    $(Self::$variant { $($field),* } => FIRST$(.max($field.needed(row)))*,)+
                }
            }
        }
    )+};
}

impl Needed for FailureKind {
    fn needed(&self, row: Row) -> u16 {
        match self {
            Self::AttemptFailed
            | Self::StepFailed
            | Self::StepIgnored
            | Self::ExecutionFailed
            | Self::ExecutionTimedOut
            | Self::ExecutionWarning
            | Self::ExecutionCancelled
            | Self::ExecutionTerminated
            | Self::CompensationStarted
            | Self::CompensationDone
            | Self::CompensationParked
            | Self::HandlerFailed
            | Self::WorkerLost
            | Self::QueueUnserved
            | Self::DeliveryFailed
            | Self::Recovered
            | Self::FeedGap
            | Self::ExecutionQuarantined => FIRST,
            // In the rows of failure events and in the filters of subscriptions.
            Self::StepCaught => match row {
                Row::FailureEvent | Row::Subscription => SECOND,
                Row::History | Row::Definition | Row::RegistryAnswer => FIRST,
            },
        }
    }
}

impl Needed for Event {
    fn needed(&self, row: Row) -> u16 {
        macro_rules! most {
            ($($field:ident)*) => { FIRST$(.max($field.needed(row)))* };
        }
        match self {
            Self::ExecutionStarted(started) => started.needed(row),
            Self::RequestRecorded { request_id, digest } => most!(request_id digest),
            Self::StepStarted { path, generation, input, first } => {
                most!(path generation input).max(second(first.is_some()))
            }
            Self::StepSkipped { path } => most!(path),
            Self::AttemptScheduled { path, attempt, at } => most!(path attempt at),
            Self::AttemptStarted { path, attempt, worker, session, at } => {
                most!(path attempt worker session at)
            }
            Self::AttemptFailed(failed) => failed.needed(row),
            Self::AttemptWithdrawn { path, attempt } => most!(path attempt),
            Self::StepCompleted { path, attempt, output, worker } => {
                most!(path attempt output worker)
            }
            Self::StepFailed { path, error } => most!(path error),
            Self::StepIgnored { path, error, warning } => most!(path error warning),
            Self::BlockStarted { path, generation, part, deadline } => {
                most!(path generation part deadline).max(THIRD)
            }
            Self::ParallelStarted { path, generation, ready, concurrency, deadline } => {
                most!(path generation ready concurrency deadline).max(THIRD)
            }
            Self::BranchCompleted { path, branch, output, ready } => {
                most!(path branch output ready).max(THIRD)
            }
            Self::BranchFailed { path, branch, error, origin } => {
                most!(path branch error origin).max(THIRD)
            }
            Self::LoopStarted { path, generation, items, keys, concurrency, deadline } => {
                most!(path generation items keys concurrency deadline).max(THIRD)
            }
            Self::ItemCompleted { path, item, output } => most!(path item output).max(THIRD),
            Self::ItemFailed { path, item, error, origin } => {
                most!(path item error origin).max(THIRD)
            }
            Self::ParallelCompleted { path } | Self::LoopCompleted { path } => {
                most!(path).max(THIRD)
            }
            Self::BlockStopped { path, error, grace_until } => {
                most!(path error grace_until).max(THIRD)
            }
            Self::BlockCompleted { path, output }
            | Self::ScopeReturned { path, output }
            | Self::StepCaught { path, output } => most!(path output).max(THIRD),
            Self::HandlerStarted { path, handler, error, origin } => {
                most!(path handler error origin).max(THIRD)
            }
            Self::RunSucceeded { output } => most!(output),
            Self::RunStopped { cause, error, step, grace_until, compensation_due } => {
                most!(cause error step grace_until compensation_due)
            }
            Self::CancelRequested { reason } => most!(reason),
            Self::CompensationStarted { due, cleanup_deadline } => most!(due cleanup_deadline),
            Self::CompensationParked { path, error } => most!(path error),
            Self::CompensationRetried { path, reason } => most!(path reason),
            Self::CompensationSkipped { path, reason } => most!(path reason),
            Self::CompensationEnded { state } => most!(state),
            Self::OnFailureStarted { cleanup_deadline } => most!(cleanup_deadline).max(THIRD),
            Self::FinallyStarted { cleanup_deadline } => most!(cleanup_deadline),
            Self::HandlerFailed { path, error } => most!(path error),
            Self::ExecutionEnded { state, error } => most!(state error),
        }
    }
}

const SECOND: u16 = 2;
const THIRD: u16 = 3;

/// The second format if something that it added is used, otherwise the first.
fn second(is_used: bool) -> u16 {
    if is_used { SECOND } else { FIRST }
}

impl Needed for PayloadSource {
    fn needed(&self, row: Row) -> u16 {
        match self {
            Self::Inline(payload) => payload.needed(row),
            Self::Input => second(true),
            Self::Output(step) => step.needed(row).max(second(true)),
        }
    }
}

impl Needed for ExecutionStarted {
    fn needed(&self, row: Row) -> u16 {
        let Self { namespace, workflow, version, key, input, deadline, trace, format } = self;
        FIRST
            .max(namespace.needed(row))
            .max(workflow.needed(row))
            .max(version.needed(row))
            .max(key.needed(row))
            .max(input.needed(row))
            .max(deadline.needed(row))
            .max(trace.needed(row))
            .max(second(*format != FIRST))
    }
}

impl Needed for TaskError {
    fn needed(&self, row: Row) -> u16 {
        // Visits only as many links as are written, and in a loop, because a chain may be very deep.
        self.chain().take(CHAIN_MAX).map(|link| link_needed(link, row)).fold(FIRST, u16::max)
    }
}

fn link_needed(link: &TaskError, row: Row) -> u16 {
    let TaskError {
        error_type,
        message,
        details,
        stack_trace,
        cause: _,
        non_retryable,
        category,
        next_retry_delay,
        source,
        suppressed,
    } = link;
    let with_suppressed = match row {
        _ if suppressed.is_empty() => FIRST,
        Row::History => THIRD,
        Row::FailureEvent => SECOND,
        // These rows contain no errors.
        Row::Definition | Row::Subscription | Row::RegistryAnswer => FIRST,
    };
    FIRST
        .max(error_type.needed(row))
        .max(message.needed(row))
        .max(details.needed(row))
        .max(stack_trace.needed(row))
        .max(non_retryable.needed(row))
        .max(category.needed(row))
        .max(next_retry_delay.needed(row))
        .max(source.needed(row))
        .max(suppressed.needed(row))
        .max(with_suppressed)
}

variants_with_fields! {
    Verdict: Retry { delay next_at } Stop {};
    Schedule: Constant { interval }
        Exponential { initial_interval backoff_coefficient max_interval }
        Random { min max }
        Linear { initial increment max };
}

fields! {
    AttemptFailed { path attempt error outcome decision worker warning }
    DueCompensation { step generation outcome }
    Payload { data content_type metadata }
    TraceContext { traceparent tracestate }
    Decision { verdict reason rule delay_from_error }
    Suppressed { step error_type message }

    FailureEvent { id kind at namespace subject worker session error fingerprint }
    Subject {
        execution key workflow version run step attempt max_attempts is_final decision state
        compensation completed sequence trace
    }
    CompletedStep { step outcome output compensated }

    Defaults { queue retry timeouts }
    Block { steps output }
    Raise { error_type message details non_retryable }
    Case { when block }
    Branch { block after }
    ForEach { items item_key concurrency mode block }
    Task { task_type queue input timeouts priority delivery }
    Timeouts { schedule_to_start start_to_close schedule_to_close heartbeat }
    Compensate { task retry only_completed }
    RetryPolicy {
        schedule jitter limits non_retryable_error_types retryable_error_types match_on
        warning_on_retry rules
    }
    Rule { error_types match_on schedule limits }
    Limits { max_attempts max_duration }

    Subscription {
        filter start ack_deadline window watermark read outstanding consumer epoch
    }
    Filter { namespace workflows kinds error_types }
    Entry { event execution position bytes delivery due_at returned stream gap }
    Position { lane number }
    Gap { from to events }
    Consumer { name epoch until }

    NamespaceRow { name description retention created_at }
}

impl Needed for Workflow {
    fn needed(&self, row: Row) -> u16 {
        let Self {
            name,
            description,
            defaults,
            steps,
            on_failure,
            finally,
            timeout,
            cleanup_timeout,
            cancel_grace,
        } = self;
        FIRST
            .max(name.needed(row))
            .max(description.needed(row))
            .max(defaults.needed(row))
            .max(steps.needed(row))
            .max(on_failure.needed(row))
            .max(second(!on_failure.is_empty()))
            .max(finally.needed(row))
            .max(timeout.needed(row))
            .max(cleanup_timeout.needed(row))
            .max(cancel_grace.needed(row))
    }
}

impl Needed for Step {
    fn needed(&self, row: Row) -> u16 {
        let Self {
            id,
            description,
            kind,
            when,
            timeout,
            retry,
            catch,
            on_error,
            allow_warning,
            compensate,
        } = self;
        FIRST
            .max(id.needed(row))
            .max(description.needed(row))
            .max(kind.needed(row))
            .max(when.needed(row))
            .max(timeout.needed(row))
            .max(second(timeout.is_some()))
            .max(retry.needed(row))
            .max(catch.needed(row))
            .max(on_error.needed(row))
            .max(allow_warning.needed(row))
            .max(compensate.needed(row))
    }
}

impl Needed for StepKind {
    fn needed(&self, row: Row) -> u16 {
        match self {
            Self::Task(task) => task.needed(row),
            Self::Set(value) => value.needed(row).max(SECOND),
            Self::Fail(fail) => fail.needed(row).max(SECOND),
            Self::Return { output } => output.needed(row).max(SECOND),
            Self::Switch(Switch { cases, default }) => {
                cases.needed(row).max(default.needed(row)).max(SECOND)
            }
            Self::Try(body) => body.needed(row).max(SECOND),
            Self::ForEach(each) => each.needed(row).max(SECOND),
            Self::Parallel(Parallel { branches, mode, concurrency }) => {
                let parts = branches.iter().map(|(id, own)| id.needed(row).max(own.needed(row)));
                parts.fold(SECOND, u16::max).max(mode.needed(row)).max(concurrency.needed(row))
            }
        }
    }
}

impl Needed for Fail {
    fn needed(&self, row: Row) -> u16 {
        match self {
            Self::Raise(raise) => raise.needed(row),
            Self::Rethrow => FIRST,
        }
    }
}

impl Needed for Catch {
    fn needed(&self, row: Row) -> u16 {
        let Self { error_types, match_on, when, block } = self;
        SECOND
            .max(error_types.needed(row))
            .max(match_on.needed(row))
            .max(when.needed(row))
            .max(block.needed(row))
    }
}

impl Needed for Part {
    fn needed(&self, row: Row) -> u16 {
        match self {
            Self::Body | Self::Default | Self::Branch | Self::Item => FIRST,
            Self::Case(index) | Self::Handler(index) => index.needed(row),
        }
    }
}

impl Needed for RegistryAnswer {
    fn needed(&self, row: Row) -> u16 {
        match self {
            Self::NamespaceCreated(created) => created.needed(row),
            Self::WorkflowRegistered { name, version, is_new } => {
                name.needed(row).max(version.needed(row)).max(is_new.needed(row))
            }
            Self::WorkflowRetired { retired_at } => retired_at.needed(row),
            Self::SubscriptionCreated(created) => created.needed(row),
            Self::SubscriptionDeleted => FIRST,
        }
    }
}

impl Needed for SubscriptionRow {
    fn needed(&self, row: Row) -> u16 {
        // The state in it has its own format number, which is stored beside it.
        let Self { namespace, name, version, format: _, state, created_at } = self;
        FIRST
            .max(namespace.needed(row))
            .max(name.needed(row))
            .max(version.needed(row))
            .max(state.needed(row))
            .max(created_at.needed(row))
    }
}

impl<T: Needed> Needed for Option<T> {
    fn needed(&self, row: Row) -> u16 {
        self.as_ref().map_or(FIRST, |value| value.needed(row))
    }
}

impl<T: Needed> Needed for [T] {
    fn needed(&self, row: Row) -> u16 {
        self.iter().map(|value| value.needed(row)).fold(FIRST, u16::max)
    }
}

impl<T: Needed> Needed for Vec<T> {
    fn needed(&self, row: Row) -> u16 {
        self.as_slice().needed(row)
    }
}
