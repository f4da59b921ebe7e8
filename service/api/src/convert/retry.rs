//! Converts retry policies. Values that core's types cannot represent are reported as issues here; core
//! reports policies that cannot work.

use std::time::Duration;

use recoup_core::plan::IssueCode;
use recoup_core::retry::{Limits, MatchOn, RetryPolicy, Rule, Schedule};
use recoup_proto as proto;
use recoup_proto::v1;

use super::reader::Reader;
use super::time;

/// The longest wait of a schedule that does not set one.
const INTERVAL_MAX: Duration = Duration::from_secs(100);
const INTERVAL: Duration = Duration::from_secs(1);
const COEFFICIENT: f64 = 2.0;

super::to_proto!(match_on: MatchOn => v1::MatchOn: Outermost AnyCause RootCause);
super::from_proto!(match_on_from: v1::MatchOn => MatchOn: Outermost AnyCause RootCause);

impl Reader {
    pub fn policy(&mut self, policy: &v1::RetryPolicy, path: &str) -> RetryPolicy {
        use v1::retry_policy::Schedule as Proto;
        let schedule = policy.schedule.as_ref().map(|schedule| match schedule {
            Proto::Constant(constant) => self.constant(constant, path),
            Proto::Exponential(exponential) => self.exponential(exponential, path),
            Proto::Random(random) => self.random(random, path),
            Proto::Linear(linear) => self.linear(linear, path),
        });
        let own = self.known(policy.match_on, path, "match_on", match_on_from);
        let rules = policy.rules.iter().enumerate();
        let rules = rules
            .map(|(index, rule)| {
                self.rule(rule, own.unwrap_or_default(), &format!("{path}.rules[{index}]"))
            })
            .collect();
        RetryPolicy {
            schedule,
            jitter: policy.jitter,
            limits: self.limits(policy.max_attempts, policy.max_duration, path),
            non_retryable_error_types: policy.non_retryable_error_types.clone(),
            retryable_error_types: policy.retryable_error_types.clone(),
            match_on: own.unwrap_or_default(),
            warning_on_retry: policy.warning_on_retry,
            rules,
        }
    }

    fn rule(&mut self, rule: &v1::RetryRule, policys: MatchOn, path: &str) -> Rule {
        use v1::retry_rule::Schedule as Proto;
        let schedule = rule.schedule.as_ref().map(|schedule| match schedule {
            Proto::Constant(constant) => self.constant(constant, path),
            Proto::Exponential(exponential) => self.exponential(exponential, path),
            Proto::Random(random) => self.random(random, path),
            Proto::Linear(linear) => self.linear(linear, path),
        });
        Rule {
            error_types: rule.error_types.clone(),
            match_on: self.known(rule.match_on, path, "match_on", match_on_from).unwrap_or(policys),
            schedule,
            limits: self.limits(rule.max_attempts, rule.max_duration, path),
        }
    }

    fn limits(
        &mut self,
        max_attempts: Option<u32>,
        max_duration: Option<proto::Duration>,
        path: &str,
    ) -> Limits {
        let max_duration = self.duration(max_duration, path, "max_duration");
        Limits { max_attempts, max_duration }
    }

    fn constant(&mut self, schedule: &v1::ConstantSchedule, path: &str) -> Schedule {
        Schedule::Constant {
            interval: self.must_last(schedule.interval, path, "constant.interval"),
        }
    }

    fn exponential(&mut self, schedule: &v1::ExponentialSchedule, path: &str) -> Schedule {
        let initial =
            self.duration(schedule.initial_interval, path, "exponential.initial_interval");
        let initial = initial.unwrap_or(INTERVAL);
        let max = self.duration(schedule.max_interval, path, "exponential.max_interval");
        Schedule::Exponential {
            initial_interval: initial,
            backoff_coefficient: schedule.backoff_coefficient.unwrap_or(COEFFICIENT),
            max_interval: max.unwrap_or(INTERVAL_MAX.max(initial)),
        }
    }

    fn random(&mut self, schedule: &v1::RandomSchedule, path: &str) -> Schedule {
        let min = self.duration(schedule.min, path, "random.min").unwrap_or_default();
        Schedule::Random { min, max: self.must_last(schedule.max, path, "random.max") }
    }

    fn linear(&mut self, schedule: &v1::LinearSchedule, path: &str) -> Schedule {
        let initial = self.must_last(schedule.initial, path, "linear.initial");
        let increment = self.duration(schedule.increment, path, "linear.increment");
        let max = self.duration(schedule.max, path, "linear.max");
        Schedule::Linear {
            initial,
            increment: increment.unwrap_or(initial),
            max: max.unwrap_or(INTERVAL_MAX.max(initial)),
        }
    }

    fn must_last(&mut self, given: Option<proto::Duration>, path: &str, field: &str) -> Duration {
        if given.is_none() {
            self.issue(format!("{path}.{field}"), IssueCode::RetryPolicyInvalid, "it is required");
        }
        self.duration(given, path, field).unwrap_or_default()
    }
}

pub fn to_proto(policy: &RetryPolicy) -> v1::RetryPolicy {
    v1::RetryPolicy {
        schedule: policy.schedule.as_ref().map(schedule),
        jitter: policy.jitter,
        max_attempts: policy.limits.max_attempts,
        max_duration: policy.limits.max_duration.map(time::duration),
        non_retryable_error_types: policy.non_retryable_error_types.clone(),
        retryable_error_types: policy.retryable_error_types.clone(),
        match_on: match policy.match_on {
            MatchOn::Outermost => v1::MatchOn::Unspecified.into(),
            other => match_on(other).into(),
        },
        warning_on_retry: policy.warning_on_retry,
        rules: policy.rules.iter().map(|own| rule(own, policy.match_on)).collect(),
    }
}

/// Converts a policy as it applies, with defaults for what it leaves unset.
pub fn resolved(policy: &RetryPolicy) -> v1::RetryPolicy {
    v1::RetryPolicy {
        schedule: Some(schedule(policy.schedule())),
        jitter: Some(policy.jitter()),
        max_attempts: policy.max_attempts(),
        match_on: match_on(policy.match_on).into(),
        ..to_proto(policy)
    }
}

fn schedule(schedule: &Schedule) -> v1::retry_policy::Schedule {
    use v1::retry_policy::Schedule as Proto;
    match *schedule {
        Schedule::Constant { interval } => {
            Proto::Constant(v1::ConstantSchedule { interval: Some(time::duration(interval)) })
        }
        Schedule::Exponential { initial_interval, backoff_coefficient, max_interval } => {
            Proto::Exponential(v1::ExponentialSchedule {
                initial_interval: Some(time::duration(initial_interval)),
                backoff_coefficient: Some(backoff_coefficient),
                max_interval: Some(time::duration(max_interval)),
            })
        }
        Schedule::Random { min, max } => Proto::Random(v1::RandomSchedule {
            min: Some(time::duration(min)),
            max: Some(time::duration(max)),
        }),
        Schedule::Linear { initial, increment, max } => Proto::Linear(v1::LinearSchedule {
            initial: Some(time::duration(initial)),
            increment: Some(time::duration(increment)),
            max: Some(time::duration(max)),
        }),
    }
}

fn rule(rule: &Rule, policys: MatchOn) -> v1::RetryRule {
    use v1::retry_rule::Schedule as Proto;
    let own = rule.schedule.as_ref().map(|own| match schedule(own) {
        v1::retry_policy::Schedule::Constant(constant) => Proto::Constant(constant),
        v1::retry_policy::Schedule::Exponential(exponential) => Proto::Exponential(exponential),
        v1::retry_policy::Schedule::Random(random) => Proto::Random(random),
        v1::retry_policy::Schedule::Linear(linear) => Proto::Linear(linear),
    });
    v1::RetryRule {
        error_types: rule.error_types.clone(),
        schedule: own,
        max_attempts: rule.limits.max_attempts,
        max_duration: rule.limits.max_duration.map(time::duration),
        match_on: match rule.match_on {
            same if same == policys => v1::MatchOn::Unspecified.into(),
            other => match_on(other).into(),
        },
    }
}
