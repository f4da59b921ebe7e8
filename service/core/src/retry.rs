//! Retry policies, and the one place where Recoup decides whether and when a failed attempt is retried.
//!
//! [`decide`] asks these questions in order. The first one that gives an answer decides, and the reason is
//! recorded.
//!
//! | # | question | answer | [`Reason`] |
//! | --- | --- | --- | --- |
//! | 1 | is the execution being cancelled or terminated, has its run already failed, or is a step around the task being stopped? | stop | `Cancelled` |
//! | 2 | is the error a schedule-to-start or schedule-to-close timeout? | stop | `ScheduleTimeout` |
//! | 3 | is the error non-retryable, by its own flag or the nearest cause's? | stop | `NonRetryable` |
//! | 4 | is its type on the policy's list of non-retryable types? | stop | `NonRetryableType` |
//! | 5 | does the policy have an allow-list, and is this a user's error that is not on it? | stop | `NotOnAllowList` |
//! | 6 | which rule matches it first? If none does: is its category `Permanent`? | stop | `Permanent` |
//! | 7 | are the attempts or the time of the rule, then those of the policy, used up? | stop | `RuleAttemptsExhausted`, `RuleDurationExhausted`, `AttemptsExhausted`, `DurationExhausted` |
//! | 8 | delay: the one the error asks for, else by the rule's, category's or policy's schedule; then jitter | | |
//! | 9 | would the next attempt start at or after a deadline? | stop | `Deadline` |
//! | | otherwise | retry | `Rule`, `Category`, `Policy` |

use std::time::Duration;

use crate::error::{Category, TaskError, builtin, type_matches};
use crate::time::Timestamp;

/// The longest delay, whatever a schedule or an error asks for: 30 days.
pub const DELAY_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// A retry policy. It replaces an inherited policy as a whole: a value that it leaves unset is the built-in
/// value, not the inherited one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RetryPolicy {
    /// Unset: [`Schedule::BUILT_IN`].
    pub schedule: Option<Schedule>,
    /// Ratio of the delay, from 0 to 1; unset: [`RetryPolicy::JITTER`].
    pub jitter: Option<f64>,
    pub limits: Limits,
    /// Patterns of error types that are never retried.
    pub non_retryable_error_types: Vec<String>,
    /// If not empty, a user's error is retried only if one of these patterns matches it. Built-in errors
    /// are not affected.
    pub retryable_error_types: Vec<String>,
    pub match_on: MatchOn,
    /// An execution that succeeds after a retry under this policy ends as WARNING.
    pub warning_on_retry: bool,
    /// Tried in order; the first rule that matches the error applies.
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub error_types: Vec<String>,
    pub match_on: MatchOn,
    /// Unset: the policy's schedule.
    pub schedule: Option<Schedule>,
    /// Attempts are counted for this rule alone.
    pub limits: Limits,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The maximum number of attempts, including the first: 1 disables retries.
    pub max_attempts: Option<u32>,
    /// Measured from the time at which the task was first scheduled.
    pub max_duration: Option<Duration>,
}

/// Which errors in a chain of causes are compared with the patterns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MatchOn {
    /// Only the type of the error itself.
    #[default]
    Outermost,
    /// The types of the error and of all its causes; one match is enough.
    AnyCause,
    /// Only the type of the innermost cause.
    RootCause,
}

/// How the delay before a retry grows. No delay exceeds [`DELAY_MAX`].
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// Always the same delay.
    Constant { interval: Duration },
    /// The delay starts at `initial_interval` and is multiplied by `backoff_coefficient` for each further
    /// retry, up to `max_interval`.
    Exponential { initial_interval: Duration, backoff_coefficient: f64, max_interval: Duration },
    /// A random delay from `min` to `max`.
    Random { min: Duration, max: Duration },
    /// The delay starts at `initial` and grows by `increment` for each further retry, up to `max`.
    Linear { initial: Duration, increment: Duration, max: Duration },
}

impl Schedule {
    pub const BUILT_IN: Self = Self::Exponential {
        initial_interval: Duration::from_secs(1),
        backoff_coefficient: 2.0,
        max_interval: Duration::from_secs(100),
    };
    /// For errors of category TRANSIENT, which are expected to pass within moments.
    pub const TRANSIENT: Self = Self::Exponential {
        initial_interval: Duration::from_millis(100),
        backoff_coefficient: 2.0,
        max_interval: Duration::from_secs(10),
    };
    /// For errors of category INTERMITTENT, such as an outage that lasts for a while.
    pub const INTERMITTENT: Self = Self::Exponential {
        initial_interval: Duration::from_secs(10),
        backoff_coefficient: 2.0,
        max_interval: Duration::from_secs(600),
    };

    /// The delay before jitter, after `index` earlier retries that were decided by the same [`DecidedBy`].
    /// `random` is from 0 (included) to 1 (excluded) and is used only by [`Schedule::Random`].
    pub fn delay(&self, index: u32, random: f64) -> Duration {
        let delay = match self {
            Self::Constant { interval } => *interval,
            Self::Exponential { initial_interval, backoff_coefficient, max_interval } => {
                let factor = backoff_coefficient.powi(i32::try_from(index).unwrap_or(i32::MAX));
                scale(*initial_interval, factor).min(*max_interval)
            }
            Self::Random { min, max } => {
                min.saturating_add(scale(max.saturating_sub(*min), random))
            }
            Self::Linear { initial, increment, max } => {
                initial.saturating_add(increment.saturating_mul(index)).min(*max)
            }
        };
        delay.min(DELAY_MAX)
    }
}

fn scale(duration: Duration, factor: f64) -> Duration {
    // The product may be infinite, too large or not a number. It then counts as the longest delay.
    Duration::try_from_secs_f64(duration.as_secs_f64() * factor).unwrap_or(DELAY_MAX)
}

impl RetryPolicy {
    pub const JITTER: f64 = 0.2;
    pub const MAX_ATTEMPTS: u32 = 5;

    pub fn schedule(&self) -> &Schedule {
        self.schedule.as_ref().unwrap_or(&Schedule::BUILT_IN)
    }

    pub fn jitter(&self) -> f64 {
        self.jitter.unwrap_or(Self::JITTER)
    }

    /// None is unlimited, which is possible only if a duration limits the retries instead. If neither limit
    /// is set, [`Self::MAX_ATTEMPTS`] applies.
    pub fn max_attempts(&self) -> Option<u32> {
        match self.limits {
            Limits { max_attempts: None, max_duration: Some(_) } => None,
            Limits { max_attempts, .. } => Some(max_attempts.unwrap_or(Self::MAX_ATTEMPTS)),
        }
    }
}

/// The maximum number of delays that [`RetryPolicy::delays`] returns.
pub const DELAYS_MAX: usize = 100;

impl RetryPolicy {
    /// The delays before the second, third and later attempts by the policy's own schedule, without jitter
    /// and without rules, and whether more would follow. A random delay counts as the middle of its range.
    ///
    /// There are as many delays as the number of attempts, `max_duration` and `within` allow if attempts
    /// take no time, but at most [`DELAYS_MAX`].
    pub fn delays(&self, within: Option<Duration>) -> (Vec<Duration>, bool) {
        let retries = self.max_attempts().map_or(usize::MAX, |max| max.saturating_sub(1) as usize);
        let budget = self.limits.max_duration.into_iter().chain(within).min();
        let mut elapsed = Duration::ZERO;
        let mut delays: Vec<_> = (0..)
            .take(retries.min(DELAYS_MAX + 1))
            .map(|index| self.schedule().delay(index, 0.5))
            .take_while(|delay| {
                elapsed = elapsed.saturating_add(*delay);
                budget.is_none_or(|budget| elapsed < budget)
            })
            .collect();
        let is_cut = delays.len() > DELAYS_MAX;
        delays.truncate(DELAYS_MAX);
        (delays, is_cut)
    }
}

impl MatchOn {
    pub(crate) fn takes(self, patterns: &[String], error: &TaskError) -> bool {
        let any = |error: &TaskError| {
            patterns.iter().any(|pattern| type_matches(pattern, &error.error_type))
        };
        match self {
            Self::Outermost => any(error),
            Self::AnyCause => error.chain().any(any),
            Self::RootCause => error.chain().last().is_some_and(any),
        }
    }
}

/// The source of the delay. Retries are counted separately for each source, and this count is the index
/// into its backoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DecidedBy {
    Policy,
    Category,
    Rule(u32),
}

/// Everything that a decision about a failed attempt depends on, apart from the policy.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    pub error: &'a TaskError,
    /// Number of the attempt that failed, counted from 1.
    pub attempt: u32,
    /// How many retries each source has decided so far.
    pub decided: &'a [(DecidedBy, u32)],
    pub first_scheduled_at: Timestamp,
    pub now: Timestamp,
    /// The earliest of all deadlines that apply to the next attempt.
    pub deadline: Option<Timestamp>,
    /// No further attempt is wanted: the execution is being cancelled or terminated, or its run has failed.
    pub ending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    pub verdict: Verdict,
    pub reason: Reason,
    /// Index in [`RetryPolicy::rules`] of the rule that matched the error.
    pub rule: Option<u32>,
    /// The delay is the one that the error asked for.
    pub delay_from_error: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Retry { delay: Duration, next_at: Timestamp },
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Cancelled,
    ScheduleTimeout,
    NonRetryable,
    NonRetryableType,
    NotOnAllowList,
    Permanent,
    RuleAttemptsExhausted,
    RuleDurationExhausted,
    AttemptsExhausted,
    DurationExhausted,
    Deadline,
    /// Retried, with the schedule of a rule.
    Rule,
    /// Retried, with the schedule of the error's category.
    Category,
    /// Retried, with the policy's own schedule.
    Policy,
}

impl Decision {
    pub fn is_retry(&self) -> bool {
        matches!(self.verdict, Verdict::Retry { .. })
    }

    pub fn decided_by(&self) -> DecidedBy {
        match (self.reason, self.rule) {
            (_, Some(rule)) => DecidedBy::Rule(rule),
            (Reason::Category, None) => DecidedBy::Category,
            _ => DecidedBy::Policy,
        }
    }

    pub(crate) fn stop(reason: Reason, rule: Option<u32>) -> Self {
        Self { verdict: Verdict::Stop, reason, rule, delay_from_error: false }
    }
}

/// Decides by the table at the top of this module. `random` is from 0 (included) to 1 (excluded).
pub fn decide(policy: &RetryPolicy, situation: &Situation<'_>, random: f64) -> Decision {
    let Situation { error, attempt, now, .. } = *situation;
    if situation.ending {
        return Decision::stop(Reason::Cancelled, None);
    }
    if [builtin::SCHEDULE_TO_START, builtin::SCHEDULE_TO_CLOSE].contains(&&*error.error_type) {
        return Decision::stop(Reason::ScheduleTimeout, None);
    }
    if error.is_non_retryable() {
        return Decision::stop(Reason::NonRetryable, None);
    }
    if policy.match_on.takes(&policy.non_retryable_error_types, error) {
        return Decision::stop(Reason::NonRetryableType, None);
    }
    let listed = policy.retryable_error_types.is_empty()
        || error.is_builtin()
        || policy.match_on.takes(&policy.retryable_error_types, error);
    if !listed {
        return Decision::stop(Reason::NotOnAllowList, None);
    }

    let matched =
        policy.rules.iter().position(|rule| rule.match_on.takes(&rule.error_types, error));
    let rule = matched.map(|index| &policy.rules[index]);
    let rule_index = matched.and_then(|index| u32::try_from(index).ok());
    let (decided_by, schedule, reason) = match (rule_index, error.category) {
        (Some(index), _) => {
            let own = rule.and_then(|rule| rule.schedule.as_ref());
            (DecidedBy::Rule(index), own.unwrap_or(policy.schedule()), Reason::Rule)
        }
        (None, Category::Permanent) => return Decision::stop(Reason::Permanent, None),
        (None, Category::Transient) => {
            (DecidedBy::Category, &Schedule::TRANSIENT, Reason::Category)
        }
        (None, Category::Intermittent) => {
            (DecidedBy::Category, &Schedule::INTERMITTENT, Reason::Category)
        }
        (None, Category::Unspecified | Category::Benign) => {
            (DecidedBy::Policy, policy.schedule(), Reason::Policy)
        }
    };
    let earlier = situation.decided.iter().find(|(by, _)| *by == decided_by);
    let earlier = earlier.map_or(0, |(_, count)| *count);

    let elapsed = now.since(situation.first_scheduled_at);
    let rule_limits = rule.map(|rule| rule.limits).unwrap_or_default();
    if rule_limits.max_attempts.is_some_and(|max| earlier.saturating_add(1) >= max) {
        return Decision::stop(Reason::RuleAttemptsExhausted, rule_index);
    }
    if rule_limits.max_duration.is_some_and(|max| elapsed >= max) {
        return Decision::stop(Reason::RuleDurationExhausted, rule_index);
    }
    if policy.max_attempts().is_some_and(|max| attempt >= max) {
        return Decision::stop(Reason::AttemptsExhausted, rule_index);
    }
    if policy.limits.max_duration.is_some_and(|max| elapsed >= max) {
        return Decision::stop(Reason::DurationExhausted, rule_index);
    }

    let delay_from_error = error.chain().find_map(|error| error.next_retry_delay);
    let delay = match delay_from_error {
        // An attempt never starts earlier than the error asked for, so jitter only adds to the delay.
        Some(asked) => scale(asked.min(DELAY_MAX), 1.0 + policy.jitter() * random),
        None => {
            scale(schedule.delay(earlier, random), 1.0 + policy.jitter() * (2.0 * random - 1.0))
        }
    };
    let delay = delay.min(DELAY_MAX);
    let next_at = now + delay;
    let budgets = [rule_limits.max_duration, policy.limits.max_duration];
    let budget_ends = budgets.into_iter().flatten().map(|max| situation.first_scheduled_at + max);
    if budget_ends.chain(situation.deadline).any(|deadline| next_at >= deadline) {
        return Decision::stop(Reason::Deadline, rule_index);
    }
    Decision {
        verdict: Verdict::Retry { delay, next_at },
        reason,
        rule: rule_index,
        delay_from_error: delay_from_error.is_some(),
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
