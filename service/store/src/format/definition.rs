//! Definitions, as their authors wrote them.

use std::time::Duration;

use recoup_core::definition::{
    Block, Branch, Case, Catch, Compensate, Defaults, Delivery, Fail, FailureMode, ForEach,
    OnError, Parallel, Raise, Step, StepKind, Switch, Task, Timeouts, Workflow,
};
use recoup_core::id::{StepId, WorkflowName};
use recoup_core::retry::{Limits, MatchOn, RetryPolicy, Rule, Schedule};

use super::value::{Stored, list, malformed, optional, required, stored_enum, to_list};
use super::{Error, wire};

stored_enum!(Delivery, wire::Delivery: AtLeastOnce AtMostOnce);
stored_enum!(OnError, wire::OnError: Fail Ignore);
stored_enum!(FailureMode, wire::FailureMode: FailFast WaitAll);
stored_enum!(MatchOn, wire::MatchOn: Outermost AnyCause RootCause);

fn to_optional<T: Stored>(value: &Option<T>) -> Option<T::Wire> {
    value.as_ref().map(T::to_wire)
}

impl Stored for Workflow {
    type Wire = wire::Workflow;

    fn to_wire(&self) -> wire::Workflow {
        wire::Workflow {
            name: self.name.to_wire(),
            description: self.description.clone(),
            defaults: Some(self.defaults.to_wire()),
            steps: to_list(&self.steps.steps),
            on_failure: to_list(&self.on_failure),
            finally: to_list(&self.finally),
            timeout: to_optional(&self.timeout),
            cleanup_timeout: to_optional(&self.cleanup_timeout),
            cancel_grace: to_optional(&self.cancel_grace),
            output: self.steps.output.clone(),
        }
    }

    fn from_wire(wire: wire::Workflow) -> Result<Self, Error> {
        Ok(Self {
            name: WorkflowName::from_wire(wire.name)?,
            description: wire.description,
            defaults: required(wire.defaults, "what the steps inherit")?,
            steps: Block { steps: list(wire.steps)?, output: wire.output },
            on_failure: list(wire.on_failure)?,
            finally: list(wire.finally)?,
            timeout: optional(wire.timeout)?,
            cleanup_timeout: optional(wire.cleanup_timeout)?,
            cancel_grace: optional(wire.cancel_grace)?,
        })
    }
}

impl Stored for Defaults {
    type Wire = wire::Defaults;

    fn to_wire(&self) -> wire::Defaults {
        wire::Defaults {
            queue: self.queue.clone(),
            retry: to_optional(&self.retry),
            timeouts: Some(self.timeouts.to_wire()),
        }
    }

    fn from_wire(wire: wire::Defaults) -> Result<Self, Error> {
        Ok(Self {
            queue: wire.queue,
            retry: optional(wire.retry)?,
            timeouts: required(wire.timeouts, "the default timeouts")?,
        })
    }
}

impl Stored for Timeouts {
    type Wire = wire::Timeouts;

    fn to_wire(&self) -> wire::Timeouts {
        wire::Timeouts {
            schedule_to_start: to_optional(&self.schedule_to_start),
            start_to_close: to_optional(&self.start_to_close),
            schedule_to_close: to_optional(&self.schedule_to_close),
            heartbeat: to_optional(&self.heartbeat),
        }
    }

    fn from_wire(wire: wire::Timeouts) -> Result<Self, Error> {
        Ok(Self {
            schedule_to_start: optional(wire.schedule_to_start)?,
            start_to_close: optional(wire.start_to_close)?,
            schedule_to_close: optional(wire.schedule_to_close)?,
            heartbeat: optional(wire.heartbeat)?,
        })
    }
}

impl Stored for Step {
    type Wire = wire::Step;

    fn to_wire(&self) -> wire::Step {
        wire::Step {
            id: self.id.to_wire(),
            kind: Some(kind_to_wire(&self.kind)),
            when: self.when.clone(),
            retry: to_optional(&self.retry),
            on_error: self.on_error.to_wire(),
            allow_warning: self.allow_warning,
            compensate: to_optional(&self.compensate),
            description: self.description.clone(),
            catch: to_list(&self.catch),
            timeout: to_optional(&self.timeout),
        }
    }

    fn from_wire(wire: wire::Step) -> Result<Self, Error> {
        Ok(Self {
            id: StepId::from_wire(wire.id)?,
            kind: kind_from_wire(wire.kind)?,
            when: wire.when,
            retry: optional(wire.retry)?,
            on_error: OnError::from_wire(wire.on_error)?,
            allow_warning: wire.allow_warning,
            compensate: optional(wire.compensate)?,
            description: wire.description,
            catch: list(wire.catch)?,
            timeout: optional(wire.timeout)?,
        })
    }
}

fn kind_to_wire(kind: &StepKind) -> wire::step::Kind {
    use wire::step::Kind;
    match kind {
        StepKind::Task(task) => Kind::Task(task.to_wire()),
        StepKind::Set(value) => Kind::Set(value.clone()),
        StepKind::Fail(fail) => Kind::Fail(fail.to_wire()),
        StepKind::Return { output } => Kind::Return(wire::Return { output: output.clone() }),
        StepKind::Switch(switch) => Kind::Switch(wire::Switch {
            cases: to_list(&switch.cases),
            default: to_optional(&switch.default),
        }),
        StepKind::Try(body) => Kind::Try(body.to_wire()),
        StepKind::Parallel(parallel) => Kind::Parallel(parallel.to_wire()),
        StepKind::ForEach(each) => Kind::ForEach(each.to_wire()),
    }
}

fn kind_from_wire(kind: Option<wire::step::Kind>) -> Result<StepKind, Error> {
    use wire::step::Kind;
    Ok(match kind {
        Some(Kind::Task(task)) => StepKind::Task(Task::from_wire(task)?),
        Some(Kind::Set(value)) => StepKind::Set(value),
        Some(Kind::Fail(fail)) => StepKind::Fail(Fail::from_wire(fail)?),
        Some(Kind::Return(own)) => StepKind::Return { output: own.output },
        Some(Kind::Switch(switch)) => StepKind::Switch(Switch {
            cases: list(switch.cases)?,
            default: optional(switch.default)?,
        }),
        Some(Kind::Try(body)) => StepKind::Try(Block::from_wire(body)?),
        Some(Kind::Parallel(own)) => StepKind::Parallel(Parallel::from_wire(own)?),
        Some(Kind::ForEach(own)) => StepKind::ForEach(ForEach::from_wire(own)?),
        None => return malformed("a step of an unknown kind"),
    })
}

impl Stored for Block {
    type Wire = wire::Block;

    fn to_wire(&self) -> wire::Block {
        wire::Block { steps: to_list(&self.steps), output: self.output.clone() }
    }

    fn from_wire(wire: wire::Block) -> Result<Self, Error> {
        Ok(Self { steps: list(wire.steps)?, output: wire.output })
    }
}

impl Stored for Parallel {
    type Wire = wire::Parallel;

    fn to_wire(&self) -> wire::Parallel {
        let branches = self.branches.iter().map(|(id, branch)| wire::Branch {
            id: id.to_wire(),
            block: Some(branch.block.to_wire()),
            after: to_list(&branch.after),
        });
        wire::Parallel {
            branches: branches.collect(),
            mode: self.mode.to_wire(),
            concurrency: self.concurrency,
        }
    }

    fn from_wire(wire: wire::Parallel) -> Result<Self, Error> {
        let branches = wire.branches.into_iter().map(|wire::Branch { id, block, after }| {
            let block = required(block, "the steps of a branch")?;
            Ok((StepId::from_wire(id)?, Branch { block, after: list(after)? }))
        });
        Ok(Self {
            branches: branches.collect::<Result<_, Error>>()?,
            mode: FailureMode::from_wire(wire.mode)?,
            concurrency: wire.concurrency,
        })
    }
}

impl Stored for ForEach {
    type Wire = wire::ForEach;

    fn to_wire(&self) -> wire::ForEach {
        wire::ForEach {
            items: self.items.clone(),
            item_key: self.item_key.clone(),
            concurrency: self.concurrency,
            mode: self.mode.to_wire(),
            steps: to_list(&self.block.steps),
            output: self.block.output.clone(),
        }
    }

    fn from_wire(wire: wire::ForEach) -> Result<Self, Error> {
        Ok(Self {
            items: wire.items,
            item_key: wire.item_key,
            concurrency: wire.concurrency,
            mode: FailureMode::from_wire(wire.mode)?,
            block: Block { steps: list(wire.steps)?, output: wire.output },
        })
    }
}

impl Stored for Fail {
    type Wire = wire::Fail;

    fn to_wire(&self) -> wire::Fail {
        let raise = match self {
            Self::Raise(Raise { error_type, message, details, non_retryable }) => {
                let (error_type, message) = (error_type.clone(), message.clone());
                let (details, non_retryable) = (details.clone(), *non_retryable);
                Some(wire::Raise { error_type, message, details, non_retryable })
            }
            Self::Rethrow => None,
        };
        wire::Fail { raise }
    }

    fn from_wire(wire: wire::Fail) -> Result<Self, Error> {
        Ok(match wire.raise {
            Some(wire::Raise { error_type, message, details, non_retryable }) => {
                Self::Raise(Raise { error_type, message, details, non_retryable })
            }
            None => Self::Rethrow,
        })
    }
}

impl Stored for Case {
    type Wire = wire::Case;

    fn to_wire(&self) -> wire::Case {
        wire::Case { when: self.when.clone(), block: Some(self.block.to_wire()) }
    }

    fn from_wire(wire: wire::Case) -> Result<Self, Error> {
        Ok(Self { when: wire.when, block: required(wire.block, "the steps of a case")? })
    }
}

impl Stored for Catch {
    type Wire = wire::Catch;

    fn to_wire(&self) -> wire::Catch {
        wire::Catch {
            error_types: self.error_types.clone(),
            match_on: self.match_on.to_wire(),
            when: self.when.clone(),
            block: Some(self.block.to_wire()),
        }
    }

    fn from_wire(wire: wire::Catch) -> Result<Self, Error> {
        Ok(Self {
            error_types: wire.error_types,
            match_on: MatchOn::from_wire(wire.match_on)?,
            when: wire.when,
            block: required(wire.block, "the steps of a handler")?,
        })
    }
}

impl Stored for Task {
    type Wire = wire::Task;

    fn to_wire(&self) -> wire::Task {
        wire::Task {
            task_type: self.task_type.clone(),
            queue: self.queue.clone(),
            input: self.input.clone(),
            timeouts: Some(self.timeouts.to_wire()),
            priority: self.priority,
            delivery: self.delivery.to_wire(),
        }
    }

    fn from_wire(wire: wire::Task) -> Result<Self, Error> {
        Ok(Self {
            task_type: wire.task_type,
            queue: wire.queue,
            input: wire.input,
            timeouts: required(wire.timeouts, "the timeouts of a task")?,
            priority: wire.priority,
            delivery: Delivery::from_wire(wire.delivery)?,
        })
    }
}

impl Stored for Compensate {
    type Wire = wire::Compensate;

    fn to_wire(&self) -> wire::Compensate {
        wire::Compensate {
            task: Some(self.task.to_wire()),
            retry: to_optional(&self.retry),
            only_completed: self.only_completed,
        }
    }

    fn from_wire(wire: wire::Compensate) -> Result<Self, Error> {
        Ok(Self {
            task: required(wire.task, "the task of a compensation")?,
            retry: optional(wire.retry)?,
            only_completed: wire.only_completed,
        })
    }
}

impl Stored for RetryPolicy {
    type Wire = wire::RetryPolicy;

    fn to_wire(&self) -> wire::RetryPolicy {
        wire::RetryPolicy {
            schedule: to_optional(&self.schedule),
            jitter: self.jitter,
            limits: Some(self.limits.to_wire()),
            non_retryable_error_types: self.non_retryable_error_types.clone(),
            retryable_error_types: self.retryable_error_types.clone(),
            match_on: self.match_on.to_wire(),
            warning_on_retry: self.warning_on_retry,
            rules: to_list(&self.rules),
        }
    }

    fn from_wire(wire: wire::RetryPolicy) -> Result<Self, Error> {
        Ok(Self {
            schedule: optional(wire.schedule)?,
            jitter: wire.jitter,
            limits: required(wire.limits, "the limits of a policy")?,
            non_retryable_error_types: wire.non_retryable_error_types,
            retryable_error_types: wire.retryable_error_types,
            match_on: MatchOn::from_wire(wire.match_on)?,
            warning_on_retry: wire.warning_on_retry,
            rules: list(wire.rules)?,
        })
    }
}

impl Stored for Rule {
    type Wire = wire::RetryRule;

    fn to_wire(&self) -> wire::RetryRule {
        wire::RetryRule {
            error_types: self.error_types.clone(),
            match_on: self.match_on.to_wire(),
            schedule: to_optional(&self.schedule),
            limits: Some(self.limits.to_wire()),
        }
    }

    fn from_wire(wire: wire::RetryRule) -> Result<Self, Error> {
        Ok(Self {
            error_types: wire.error_types,
            match_on: MatchOn::from_wire(wire.match_on)?,
            schedule: optional(wire.schedule)?,
            limits: required(wire.limits, "the limits of a rule")?,
        })
    }
}

impl Stored for Limits {
    type Wire = wire::Limits;

    fn to_wire(&self) -> wire::Limits {
        wire::Limits {
            max_attempts: self.max_attempts,
            max_duration: to_optional(&self.max_duration),
        }
    }

    fn from_wire(wire: wire::Limits) -> Result<Self, Error> {
        Ok(Self { max_attempts: wire.max_attempts, max_duration: optional(wire.max_duration)? })
    }
}

impl Stored for Schedule {
    type Wire = wire::Schedule;

    fn to_wire(&self) -> wire::Schedule {
        use wire::schedule::Kind;
        let duration = |duration: &Duration| Some(duration.to_wire());
        let kind = match self {
            Self::Constant { interval } => {
                Kind::Constant(wire::schedule::Constant { interval: duration(interval) })
            }
            Self::Exponential { initial_interval, backoff_coefficient, max_interval } => {
                Kind::Exponential(wire::schedule::Exponential {
                    initial_interval: duration(initial_interval),
                    backoff_coefficient: *backoff_coefficient,
                    max_interval: duration(max_interval),
                })
            }
            Self::Random { min, max } => {
                Kind::Random(wire::schedule::Random { min: duration(min), max: duration(max) })
            }
            Self::Linear { initial, increment, max } => Kind::Linear(wire::schedule::Linear {
                initial: duration(initial),
                increment: duration(increment),
                max: duration(max),
            }),
        };
        wire::Schedule { kind: Some(kind) }
    }

    fn from_wire(wire: wire::Schedule) -> Result<Self, Error> {
        use wire::schedule::Kind;
        let duration = |wire| required::<Duration>(wire, "a duration of a schedule");
        Ok(match wire.kind {
            Some(Kind::Constant(wire)) => Self::Constant { interval: duration(wire.interval)? },
            Some(Kind::Exponential(wire)) => Self::Exponential {
                initial_interval: duration(wire.initial_interval)?,
                backoff_coefficient: wire.backoff_coefficient,
                max_interval: duration(wire.max_interval)?,
            },
            Some(Kind::Random(wire)) => {
                Self::Random { min: duration(wire.min)?, max: duration(wire.max)? }
            }
            Some(Kind::Linear(wire)) => Self::Linear {
                initial: duration(wire.initial)?,
                increment: duration(wire.increment)?,
                max: duration(wire.max)?,
            },
            None => return malformed("a schedule of an unknown kind"),
        })
    }
}
