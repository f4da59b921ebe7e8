//! Random values of every type that has a format, for property tests of this crate.

use std::time::Duration;

use bytes::Bytes;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use recoup_core::definition::{
    Block, Branch, Case, Catch, Compensate, Defaults, Delivery, Fail, FailureMode, ForEach,
    OnError, Parallel, Raise, Step, StepKind, Switch, Task, Timeouts, Workflow,
};
use recoup_core::error::{Category, Suppressed, TaskError};
use recoup_core::event::{
    AttemptFailed, AttemptOutcome, DueCompensation, Event, ExecutionStarted, FirstAttempt,
    PayloadSource, StopCause,
};
use recoup_core::execution::{CompensationOutcome, CompensationState, Part, State, TraceContext};
use recoup_core::failure_event::{CompletedStep, FailureEvent, FailureKind, Subject};
use recoup_core::id::{ExecutionId, ItemKey, StepId, StepPath};
use recoup_core::payload::Payload;
use recoup_core::retry::{Decision, Limits, MatchOn, Reason, RetryPolicy, Rule, Schedule, Verdict};
use recoup_core::subscription::{Consumer, Entry, Filter, Gap, Position, Subscription};
use recoup_core::time::Timestamp;
use uuid::Uuid;

use crate::contract::{NamespaceRow, RegistryAnswer, SubscriptionRow};

pub fn timestamp() -> impl Strategy<Value = Timestamp> + Clone {
    any::<i64>().prop_map(Timestamp::from_micros)
}

pub fn duration() -> impl Strategy<Value = Duration> {
    (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

fn text() -> impl Strategy<Value = String> {
    ".{0,12}"
}

pub fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9_.]{0,11}"
}

pub fn step_path() -> impl Strategy<Value = StepPath> {
    "[a-z][a-z0-9_]{0,7}(\\[[0-9]{1,3}\\]\\.[a-z]{1,4})?(/compensate)?".prop_map(StepPath::from)
}

pub fn payload() -> impl Strategy<Value = Payload> {
    let data = vec(any::<u8>(), 0..40).prop_map(Bytes::from);
    (data, text(), btree_map(text(), text(), 0..3))
        .prop_map(|(data, content_type, metadata)| Payload { data, content_type, metadata })
}

fn error_link() -> impl Strategy<Value = TaskError> {
    let category = prop_oneof![
        Just(Category::Unspecified),
        Just(Category::Transient),
        Just(Category::Intermittent),
        Just(Category::Permanent),
        Just(Category::Benign),
    ];
    let optional = (option::of(payload()), option::of(any::<bool>()), option::of(duration()));
    let suppressed = (text(), text(), text()).prop_map(|(step, error_type, message)| Suppressed {
        step,
        error_type,
        message,
    });
    let suppressed = prop_oneof![2 => Just(Vec::new()), 1 => vec(suppressed, 1..3)];
    (text(), text(), text(), text(), category, (optional, suppressed)).prop_map(
        |(error_type, message, stack_trace, source, category, (optional, suppressed))| {
            let (details, non_retryable, next_retry_delay) = optional;
            TaskError {
                error_type,
                message,
                details,
                stack_trace,
                cause: None,
                non_retryable,
                category,
                next_retry_delay,
                source,
                suppressed,
            }
        },
    )
}

/// An error with up to three causes.
pub fn error() -> impl Strategy<Value = TaskError> {
    vec(error_link(), 1..=4).prop_map(|links| {
        let nested = links
            .into_iter()
            .rev()
            .reduce(|cause, link| TaskError { cause: Some(Box::new(cause)), ..link });
        nested.expect("at least one link")
    })
}

pub fn decision() -> impl Strategy<Value = Decision> {
    let reason = prop_oneof![
        Just(Reason::Cancelled),
        Just(Reason::ScheduleTimeout),
        Just(Reason::NonRetryable),
        Just(Reason::NonRetryableType),
        Just(Reason::NotOnAllowList),
        Just(Reason::Permanent),
        Just(Reason::RuleAttemptsExhausted),
        Just(Reason::RuleDurationExhausted),
        Just(Reason::AttemptsExhausted),
        Just(Reason::DurationExhausted),
        Just(Reason::Deadline),
        Just(Reason::Rule),
        Just(Reason::Category),
        Just(Reason::Policy),
    ];
    let retry =
        (duration(), timestamp()).prop_map(|(delay, next_at)| Verdict::Retry { delay, next_at });
    let verdict = prop_oneof![Just(Verdict::Stop), retry];
    (verdict, reason, option::of(any::<u32>()), any::<bool>()).prop_map(
        |(verdict, reason, rule, delay_from_error)| Decision {
            verdict,
            reason,
            rule,
            delay_from_error,
        },
    )
}

pub fn state() -> impl Strategy<Value = State> {
    proptest::sample::select(State::ALL.to_vec())
}

pub fn compensation_state() -> impl Strategy<Value = CompensationState> {
    use CompensationState::{Done, None, Parked, Pending, Running};
    proptest::sample::select(vec![None, Pending, Running, Done, Parked])
}

fn compensation_outcome() -> impl Strategy<Value = CompensationOutcome> {
    use CompensationOutcome::{Completed, Unknown};
    prop_oneof![Just(Completed), Just(Unknown)]
}

fn trace() -> impl Strategy<Value = TraceContext> {
    (text(), text()).prop_map(|(traceparent, tracestate)| TraceContext { traceparent, tracestate })
}

fn attempt_failed() -> impl Strategy<Value = AttemptFailed> {
    use AttemptOutcome::{Known, NotStarted, Unknown};
    let outcome = prop_oneof![Just(Known), Just(Unknown), Just(NotStarted)];
    (step_path(), any::<u32>(), error(), outcome, decision(), text(), any::<bool>()).prop_map(
        |(path, attempt, error, outcome, decision, worker, warning)| AttemptFailed {
            path,
            attempt,
            error,
            outcome,
            decision,
            worker,
            warning,
        },
    )
}

fn execution_started() -> impl Strategy<Value = ExecutionStarted> {
    let rest = (option::of(text()), payload(), option::of(timestamp()), trace(), 1..4_u16);
    (name(), name(), any::<u32>(), rest).prop_map(|(namespace, workflow, version, rest)| {
        let (key, input, deadline, trace, format) = rest;
        ExecutionStarted {
            namespace: namespace.into(),
            workflow: workflow.into(),
            version,
            key,
            input,
            deadline,
            trace,
            format,
        }
    })
}

fn payload_source() -> impl Strategy<Value = PayloadSource> {
    prop_oneof![
        payload().prop_map(PayloadSource::Inline),
        Just(PayloadSource::Input),
        step_path().prop_map(PayloadSource::Output),
    ]
}

fn first_attempt() -> impl Strategy<Value = FirstAttempt> {
    (any::<u32>(), timestamp()).prop_map(|(number, at)| FirstAttempt { number, at })
}

/// One strategy for each kind of event.
pub fn events_of_each_kind() -> Vec<BoxedStrategy<Event>> {
    let path = step_path;
    let stop_cause = prop_oneof![
        Just(StopCause::Failed),
        Just(StopCause::TimedOut),
        Just(StopCause::Cancelled),
        Just(StopCause::Terminated),
    ];
    let due = (step_path(), any::<u32>(), compensation_outcome())
        .prop_map(|(step, generation, outcome)| DueCompensation { step, generation, outcome });
    vec![
        execution_started().prop_map(|it| Event::ExecutionStarted(Box::new(it))).boxed(),
        (text(), any::<u64>())
            .prop_map(|(request_id, digest)| Event::RequestRecorded { request_id, digest })
            .boxed(),
        (path(), any::<u32>(), payload_source(), option::of(first_attempt()))
            .prop_map(|(path, generation, input, first)| Event::StepStarted {
                path,
                generation,
                input,
                first,
            })
            .boxed(),
        path().prop_map(|path| Event::StepSkipped { path }).boxed(),
        (path(), any::<u32>(), timestamp())
            .prop_map(|(path, attempt, at)| Event::AttemptScheduled { path, attempt, at })
            .boxed(),
        (path(), any::<u32>(), text(), text(), timestamp())
            .prop_map(|(path, attempt, worker, session, at)| Event::AttemptStarted {
                path,
                attempt,
                worker,
                session,
                at,
            })
            .boxed(),
        attempt_failed().prop_map(|it| Event::AttemptFailed(Box::new(it))).boxed(),
        (path(), any::<u32>())
            .prop_map(|(path, attempt)| Event::AttemptWithdrawn { path, attempt })
            .boxed(),
        (path(), any::<u32>(), payload(), text())
            .prop_map(|(path, attempt, output, worker)| Event::StepCompleted {
                path,
                attempt,
                output,
                worker,
            })
            .boxed(),
        (path(), error()).prop_map(|(path, error)| Event::StepFailed { path, error }).boxed(),
        (path(), error(), any::<bool>())
            .prop_map(|(path, error, warning)| Event::StepIgnored { path, error, warning })
            .boxed(),
        (path(), any::<u32>(), option::of(part()), option::of(timestamp()))
            .prop_map(|(path, generation, part, deadline)| Event::BlockStarted {
                path,
                generation,
                part,
                deadline,
            })
            .boxed(),
        (path(), any::<u32>(), keys(), option::of(any::<u32>()), option::of(timestamp()))
            .prop_map(|(path, generation, ready, concurrency, deadline)| Event::ParallelStarted {
                path,
                generation,
                ready,
                concurrency,
                deadline,
            })
            .boxed(),
        (path(), name(), payload_source(), keys())
            .prop_map(|(path, branch, output, ready)| Event::BranchCompleted {
                path,
                branch: branch.into(),
                output,
                ready,
            })
            .boxed(),
        (path(), name(), error(), path())
            .prop_map(|(path, branch, error, origin)| Event::BranchFailed {
                path,
                branch: branch.into(),
                error,
                origin,
            })
            .boxed(),
        path().prop_map(|path| Event::ParallelCompleted { path }).boxed(),
        (
            (path(), any::<u32>(), payload_source()),
            option::of(keys()),
            any::<u32>(),
            option::of(timestamp()),
        )
            .prop_map(|((path, generation, items), keys, concurrency, deadline)| {
                Event::LoopStarted { path, generation, items, keys, concurrency, deadline }
            })
            .boxed(),
        (path(), name(), payload_source())
            .prop_map(|(path, item, output)| Event::ItemCompleted {
                path,
                item: item.into(),
                output,
            })
            .boxed(),
        (path(), name(), error(), path())
            .prop_map(|(path, item, error, origin)| Event::ItemFailed {
                path,
                item: item.into(),
                error,
                origin,
            })
            .boxed(),
        path().prop_map(|path| Event::LoopCompleted { path }).boxed(),
        (path(), option::of(error()), timestamp())
            .prop_map(|(path, error, grace_until)| Event::BlockStopped { path, error, grace_until })
            .boxed(),
        (path(), payload_source())
            .prop_map(|(path, output)| Event::BlockCompleted { path, output })
            .boxed(),
        (path(), payload_source())
            .prop_map(|(path, output)| Event::ScopeReturned { path, output })
            .boxed(),
        (path(), any::<u32>(), error(), path())
            .prop_map(|(path, handler, error, origin)| Event::HandlerStarted {
                path,
                handler,
                error,
                origin,
            })
            .boxed(),
        (path(), payload_source())
            .prop_map(|(path, output)| Event::StepCaught { path, output })
            .boxed(),
        payload_source().prop_map(|output| Event::RunSucceeded { output }).boxed(),
        (stop_cause, error(), option::of(path()), timestamp(), any::<bool>())
            .prop_map(|(cause, error, step, grace_until, compensation_due)| Event::RunStopped {
                cause,
                error,
                step,
                grace_until,
                compensation_due,
            })
            .boxed(),
        text().prop_map(|reason| Event::CancelRequested { reason }).boxed(),
        (vec(due, 0..4), option::of(timestamp()))
            .prop_map(|(due, cleanup_deadline)| Event::CompensationStarted {
                due,
                cleanup_deadline,
            })
            .boxed(),
        (path(), error())
            .prop_map(|(path, error)| Event::CompensationParked { path, error })
            .boxed(),
        (path(), text())
            .prop_map(|(path, reason)| Event::CompensationRetried { path, reason })
            .boxed(),
        (path(), text())
            .prop_map(|(path, reason)| Event::CompensationSkipped { path, reason })
            .boxed(),
        compensation_state().prop_map(|state| Event::CompensationEnded { state }).boxed(),
        option::of(timestamp())
            .prop_map(|cleanup_deadline| Event::OnFailureStarted { cleanup_deadline })
            .boxed(),
        option::of(timestamp())
            .prop_map(|cleanup_deadline| Event::FinallyStarted { cleanup_deadline })
            .boxed(),
        (path(), error()).prop_map(|(path, error)| Event::HandlerFailed { path, error }).boxed(),
        (state(), option::of(error()))
            .prop_map(|(state, error)| Event::ExecutionEnded { state, error })
            .boxed(),
    ]
}

fn keys() -> impl Strategy<Value = Vec<ItemKey>> {
    vec(name().prop_map(ItemKey::from), 0..3)
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        Just(Part::Body),
        any::<u32>().prop_map(Part::Case),
        Just(Part::Default),
        Just(Part::Branch),
        Just(Part::Item),
        any::<u32>().prop_map(Part::Handler),
    ]
}

pub fn event() -> impl Strategy<Value = Event> {
    proptest::strategy::Union::new(events_of_each_kind())
}

pub fn failure_kind() -> impl Strategy<Value = FailureKind> {
    use FailureKind as K;
    proptest::sample::select(vec![
        K::AttemptFailed,
        K::StepFailed,
        K::StepIgnored,
        K::StepCaught,
        K::ExecutionFailed,
        K::ExecutionTimedOut,
        K::ExecutionWarning,
        K::ExecutionCancelled,
        K::ExecutionTerminated,
        K::CompensationStarted,
        K::CompensationDone,
        K::CompensationParked,
        K::HandlerFailed,
        K::WorkerLost,
        K::QueueUnserved,
        K::DeliveryFailed,
        K::Recovered,
        K::FeedGap,
        K::ExecutionQuarantined,
    ])
}

fn subject() -> impl Strategy<Value = Subject> {
    let completed = (step_path(), compensation_outcome(), option::of(payload()), any::<bool>())
        .prop_map(|(step, outcome, output, compensated)| CompletedStep {
            step,
            outcome,
            output,
            compensated,
        });
    let of = (any::<u128>(), option::of(text()), name(), any::<u32>(), any::<u32>());
    let attempt = (
        option::of(step_path()),
        any::<u32>(),
        option::of(any::<u32>()),
        any::<bool>(),
        option::of(decision()),
    );
    let rest = (state(), compensation_state(), vec(completed, 0..3), any::<u64>(), trace());
    (of, attempt, rest).prop_map(|(of, attempt, rest)| {
        let (execution, key, workflow, version, run) = of;
        let (step, attempt, max_attempts, is_final, decision) = attempt;
        let (state, compensation, completed, sequence, trace) = rest;
        Subject {
            execution: ExecutionId(Uuid::from_u128(execution)),
            key,
            workflow: workflow.into(),
            version,
            run,
            step,
            attempt,
            max_attempts,
            is_final,
            decision,
            state,
            compensation,
            completed,
            sequence,
            trace,
        }
    })
}

pub fn failure_event() -> impl Strategy<Value = FailureEvent> {
    let subject = option::of(subject());
    let texts = (name(), text(), text(), text());
    (texts, failure_kind(), timestamp(), name(), subject, option::of(error())).prop_map(
        |(texts, kind, at, namespace, subject, error)| {
            let (id, worker, session, fingerprint) = texts;
            FailureEvent {
                id,
                kind,
                at,
                namespace: namespace.into(),
                subject,
                worker,
                session,
                error,
                fingerprint,
            }
        },
    )
}

fn match_on() -> impl Strategy<Value = MatchOn> {
    prop_oneof![Just(MatchOn::Outermost), Just(MatchOn::AnyCause), Just(MatchOn::RootCause)]
}

fn limits() -> impl Strategy<Value = Limits> {
    (option::of(any::<u32>()), option::of(duration()))
        .prop_map(|(max_attempts, max_duration)| Limits { max_attempts, max_duration })
}

fn schedule() -> impl Strategy<Value = Schedule> {
    prop_oneof![
        duration().prop_map(|interval| Schedule::Constant { interval }),
        (duration(), 1.0..10.0, duration()).prop_map(
            |(initial_interval, backoff_coefficient, max_interval)| Schedule::Exponential {
                initial_interval,
                backoff_coefficient,
                max_interval,
            }
        ),
        (duration(), duration()).prop_map(|(min, max)| Schedule::Random { min, max }),
        (duration(), duration(), duration())
            .prop_map(|(initial, increment, max)| Schedule::Linear { initial, increment, max }),
    ]
}

fn retry_policy() -> impl Strategy<Value = RetryPolicy> {
    let rule = (vec(text(), 0..3), match_on(), option::of(schedule()), limits()).prop_map(
        |(error_types, match_on, schedule, limits)| Rule {
            error_types,
            match_on,
            schedule,
            limits,
        },
    );
    let base = (option::of(schedule()), option::of(0.0..1.0), limits());
    let types = (vec(text(), 0..3), vec(text(), 0..3));
    (base, types, match_on(), any::<bool>(), vec(rule, 0..3)).prop_map(
        |(base, types, match_on, warning_on_retry, rules)| RetryPolicy {
            schedule: base.0,
            jitter: base.1,
            limits: base.2,
            non_retryable_error_types: types.0,
            retryable_error_types: types.1,
            match_on,
            warning_on_retry,
            rules,
        },
    )
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    let timeout = || option::of(duration());
    (timeout(), timeout(), timeout(), timeout()).prop_map(
        |(schedule_to_start, start_to_close, schedule_to_close, heartbeat)| Timeouts {
            schedule_to_start,
            start_to_close,
            schedule_to_close,
            heartbeat,
        },
    )
}

fn task() -> BoxedStrategy<Task> {
    let delivery = prop_oneof![Just(Delivery::AtLeastOnce), Just(Delivery::AtMostOnce)];
    let texts = (text(), option::of(text()), option::of(text()));
    (texts, timeouts(), any::<i32>(), delivery)
        .prop_map(|((task_type, queue, input), timeouts, priority, delivery)| Task {
            task_type,
            queue,
            input,
            timeouts,
            priority,
            delivery,
        })
        .boxed()
}

/// One strategy for each kind of step. Blocks nest this deep.
pub fn kinds_of_steps(depth: u32) -> Vec<BoxedStrategy<StepKind>> {
    let raise = (text(), text(), option::of(text()), any::<bool>());
    let raise = raise.prop_map(|(error_type, message, details, non_retryable)| Raise {
        error_type,
        message,
        details,
        non_retryable,
    });
    let mut kinds = vec![
        task().prop_map(StepKind::Task).boxed(),
        text().prop_map(StepKind::Set).boxed(),
        option::of(raise)
            .prop_map(|raise| StepKind::Fail(raise.map_or(Fail::Rethrow, Fail::Raise)))
            .boxed(),
        option::of(text()).prop_map(|output| StepKind::Return { output }).boxed(),
    ];
    if depth > 0 {
        let case = (text(), block(depth - 1)).prop_map(|(when, block)| Case { when, block });
        let switch = (vec(case, 0..3), option::of(block(depth - 1)))
            .prop_map(|(cases, default)| StepKind::Switch(Switch { cases, default }));
        let parallel = parallel(depth - 1).prop_map(StepKind::Parallel).boxed();
        let body = block(depth - 1).prop_map(StepKind::Try).boxed();
        let each = for_each(depth - 1).prop_map(StepKind::ForEach).boxed();
        kinds.extend([switch.boxed(), body, parallel, each]);
    }
    kinds
}

// The strategies of nested values are boxed: their types would nest likewise, and take too much stack.

fn block(depth: u32) -> BoxedStrategy<Block> {
    let parts = (vec(step(depth), 0..3), option::of(text()));
    parts.prop_map(|(steps, output)| Block { steps, output }).boxed()
}

fn parallel(depth: u32) -> BoxedStrategy<Parallel> {
    let id = || name().prop_map(StepId::from);
    let branch = (block(depth), vec(id(), 0..2));
    let branch = branch.prop_map(|(block, after)| Branch { block, after });
    (btree_map(id(), branch, 0..3), mode(), option::of(any::<u32>()))
        .prop_map(|(branches, mode, concurrency)| Parallel { branches, mode, concurrency })
        .boxed()
}

fn mode() -> impl Strategy<Value = FailureMode> {
    prop_oneof![Just(FailureMode::FailFast), Just(FailureMode::WaitAll)]
}

fn for_each(depth: u32) -> BoxedStrategy<ForEach> {
    let own = (text(), option::of(text()), option::of(any::<u32>()), mode(), block(depth));
    own.prop_map(|(items, item_key, concurrency, mode, block)| ForEach {
        items,
        item_key,
        concurrency,
        mode,
        block,
    })
    .boxed()
}

fn step(depth: u32) -> BoxedStrategy<Step> {
    let compensate = (task(), option::of(retry_policy()), any::<bool>())
        .prop_map(|(task, retry, only_completed)| Compensate { task, retry, only_completed })
        .boxed();
    let on_error = prop_oneof![Just(OnError::Fail), Just(OnError::Ignore)];
    let catch = match depth {
        0 => Just(Vec::new()).boxed(),
        _ => vec(catch(depth - 1), 0..2).boxed(),
    };
    let rest =
        (on_error, any::<bool>(), option::of(compensate), catch, option::of(duration()).boxed());
    let kind = proptest::strategy::Union::new(kinds_of_steps(depth));
    (name(), text(), kind, option::of(text()), option::of(retry_policy().boxed()), rest)
        .prop_map(|(id, description, kind, when, retry, rest)| {
            let (on_error, allow_warning, compensate, catch, timeout) = rest;
            Step {
                id: id.as_str().into(),
                description,
                kind,
                when,
                timeout,
                retry,
                catch,
                on_error,
                allow_warning,
                compensate,
            }
        })
        .boxed()
}

fn catch(depth: u32) -> impl Strategy<Value = Catch> {
    (vec(text(), 0..3), match_on(), option::of(text()), block(depth)).prop_map(
        |(error_types, match_on, when, block)| Catch { error_types, match_on, when, block },
    )
}

pub fn workflow() -> impl Strategy<Value = Workflow> {
    let defaults = (option::of(text()), option::of(retry_policy()), timeouts())
        .prop_map(|(queue, retry, timeouts)| Defaults { queue, retry, timeouts });
    let times = (option::of(duration()), option::of(duration()), option::of(duration()));
    let steps = (block(2), vec(step(1), 0..2), vec(step(1), 0..2));
    (name(), text(), defaults, steps, times).prop_map(
        |(name, description, defaults, (steps, on_failure, finally), times)| Workflow {
            name: name.into(),
            description,
            defaults,
            steps,
            on_failure,
            finally,
            timeout: times.0,
            cleanup_timeout: times.1,
            cancel_grace: times.2,
        },
    )
}

fn subscription_entry() -> impl Strategy<Value = Entry> {
    let gap =
        (text(), text(), any::<u64>()).prop_map(|(from, to, events)| Gap { from, to, events });
    let position =
        (any::<i64>(), any::<i64>()).prop_map(|(lane, number)| Position { lane, number });
    let execution = any::<u128>().prop_map(|id| ExecutionId(Uuid::from_u128(id)));
    let counts = (any::<u32>(), any::<u32>(), any::<bool>(), any::<u64>());
    (text(), option::of(execution), position, timestamp(), counts, option::of(gap)).prop_map(
        |(event, execution, position, due_at, (bytes, delivery, returned, stream), gap)| Entry {
            event,
            execution,
            position,
            bytes,
            delivery,
            due_at,
            returned,
            stream,
            gap,
        },
    )
}

pub fn subscription() -> impl Strategy<Value = Subscription> {
    let filter = (text(), vec(text(), 0..3), vec(failure_kind(), 0..4), vec(text(), 0..3))
        .prop_map(|(namespace, workflows, kinds, error_types)| Filter {
            namespace,
            workflows,
            kinds,
            error_types,
        });
    let consumer = (text(), any::<u64>(), timestamp()).prop_map(|(name, epoch, until)| Consumer {
        name,
        epoch,
        until,
    });
    let cursors = (text(), text(), text());
    // Only whole microseconds are stored.
    let numbers = (any::<u64>().prop_map(Duration::from_micros), any::<u32>(), any::<u64>());
    let outstanding = vec(subscription_entry(), 0..4);
    (filter, cursors, numbers, outstanding, option::of(consumer)).prop_map(
        |(filter, (start, watermark, read), numbers, outstanding, consumer)| Subscription {
            filter,
            start,
            ack_deadline: numbers.0,
            window: numbers.1,
            watermark,
            read,
            outstanding,
            consumer,
            epoch: numbers.2,
        },
    )
}

pub fn registry_answer() -> impl Strategy<Value = RegistryAnswer> {
    let namespace = (name(), text(), duration(), timestamp()).prop_map(
        |(name, description, retention, created_at)| {
            let name = name.as_str().into();
            NamespaceRow { name, description, retention, created_at }
        },
    );
    let registered = (name(), any::<u32>(), any::<bool>()).prop_map(|(name, version, is_new)| {
        RegistryAnswer::WorkflowRegistered { name: name.into(), version, is_new }
    });
    let state = vec(any::<u8>(), 0..20).prop_map(Bytes::from);
    let row = (name(), text(), any::<u64>(), any::<u16>(), state, timestamp()).prop_map(
        |(namespace, name, version, format, state, created_at)| {
            let namespace = namespace.as_str().into();
            SubscriptionRow { namespace, name, version, format, state, created_at }
        },
    );
    prop_oneof![
        namespace.prop_map(RegistryAnswer::NamespaceCreated),
        registered,
        timestamp().prop_map(|retired_at| RegistryAnswer::WorkflowRetired { retired_at }),
        row.prop_map(RegistryAnswer::SubscriptionCreated),
        Just(RegistryAnswer::SubscriptionDeleted),
    ]
}
