//! Checks for retry policies that cannot work.

use std::time::Duration;

use super::issue::{IssueCode, Issues};
use crate::error::{builtin, type_matches};
use crate::limits::{ERROR_TYPE_BYTES_MAX, ERROR_TYPES_MAX, RETRY_RULES_MAX};
use crate::retry::{DELAY_MAX, Limits, RetryPolicy, Rule, Schedule};

pub(super) fn check(policy: &RetryPolicy, path: &str, issues: &mut Issues) {
    let jitter = policy.jitter();
    if !(0.0..=1.0).contains(&jitter) {
        let message = format!("{jitter} is out of range: use a number from 0 to 1, such as 0.2");
        wrong(issues, format!("{path}.jitter"), message);
    }
    limits(&policy.limits, path, issues);
    let lists = [
        ("non_retryable_error_types", &policy.non_retryable_error_types),
        ("retryable_error_types", &policy.retryable_error_types),
    ];
    for (field, patterns) in lists {
        types(patterns, &format!("{path}.{field}"), IssueCode::RetryPolicyInvalid, issues);
    }
    let is_endless = policy.max_attempts().is_none();
    let budget = policy.limits.max_duration;
    let retries = policy.max_attempts() != Some(1);
    if let Some(own) = &policy.schedule {
        schedule(own, path, is_endless, issues);
    }
    if retries {
        first_delay(policy.schedule(), budget, path, issues);
    }
    if policy.rules.len() > RETRY_RULES_MAX {
        let message =
            format!("{} rules, at most {RETRY_RULES_MAX} are allowed", policy.rules.len());
        issues.add(format!("{path}.rules"), IssueCode::TooMany, message);
    }
    for (index, own) in policy.rules.iter().take(RETRY_RULES_MAX).enumerate() {
        rule(own, policy, &format!("{path}.rules[{index}]"), issues);
    }
}

fn rule(rule: &Rule, policy: &RetryPolicy, path: &str, issues: &mut Issues) {
    if rule.error_types.is_empty() {
        let message = "a rule needs at least one error type, such as `payment`".to_owned();
        wrong(issues, format!("{path}.error_types"), message);
    }
    let types_path = format!("{path}.error_types");
    types(&rule.error_types, &types_path, IssueCode::RetryPolicyInvalid, issues);
    limits(&rule.limits, path, issues);
    let is_endless = policy.max_attempts().is_none() && rule.limits.max_attempts.is_none();
    if let Some(own) = &rule.schedule {
        schedule(own, path, is_endless, issues);
    }
    let retries = policy.max_attempts() != Some(1) && rule.limits.max_attempts != Some(1);
    let budgets = [rule.limits.max_duration, policy.limits.max_duration];
    let budget = budgets.into_iter().flatten().min();
    // If the rule takes both schedule and duration from the policy, this issue has been reported for the
    // policy.
    if retries && (rule.schedule.is_some() || rule.limits.max_duration.is_some()) {
        let own = rule.schedule.as_ref().unwrap_or(policy.schedule());
        first_delay(own, budget, path, issues);
    }
}

fn limits(limits: &Limits, path: &str, issues: &mut Issues) {
    if limits.max_attempts == Some(0) {
        let message = "must be at least 1; 1 disables retries".to_owned();
        wrong(issues, format!("{path}.max_attempts"), message);
    }
    if limits.max_duration == Some(Duration::ZERO) {
        let message = "must be longer than zero, such as 30s".to_owned();
        wrong(issues, format!("{path}.max_duration"), message);
    }
}

/// Reports a schedule whose first delay uses up the whole duration, because no second attempt would follow.
fn first_delay(schedule: &Schedule, budget: Option<Duration>, path: &str, issues: &mut Issues) {
    let first = schedule.delay(0, 0.0);
    if let Some(budget) = budget.filter(|budget| !budget.is_zero() && first >= *budget) {
        let message = format!(
            "no retry can follow: the first delay, {first:?}, must be shorter than max_duration, {budget:?}"
        );
        wrong(issues, format!("{path}.max_duration"), message);
    }
}

fn schedule(schedule: &Schedule, path: &str, is_endless: bool, issues: &mut Issues) {
    let mut wrong = |field: &str, message: &str| {
        wrong(issues, format!("{path}.{field}"), message.to_owned());
    };
    let (first, first_field) = match schedule {
        Schedule::Constant { interval } => (*interval, "constant.interval"),
        Schedule::Exponential { initial_interval, backoff_coefficient, max_interval } => {
            if initial_interval.is_zero() {
                wrong("exponential.initial_interval", "must be longer than zero, such as 1s");
            }
            if !(backoff_coefficient.is_finite() && *backoff_coefficient >= 1.0) {
                let message = format!(
                    "{backoff_coefficient} is out of range: use a finite number of at least 1, such as 2"
                );
                wrong("exponential.backoff_coefficient", &message);
            }
            if max_interval < initial_interval {
                let message = format!(
                    "{max_interval:?} is shorter than initial_interval, which is {initial_interval:?}"
                );
                wrong("exponential.max_interval", &message);
            }
            (*initial_interval, "exponential.initial_interval")
        }
        Schedule::Random { min, max } => {
            if max < min {
                wrong("random.max", &format!("{max:?} is shorter than min, which is {min:?}"));
            }
            (*min, "random.min")
        }
        Schedule::Linear { initial, max, .. } => {
            if max < initial {
                let message = format!("{max:?} is shorter than initial, which is {initial:?}");
                wrong("linear.max", &message);
            }
            (*initial, "linear.initial")
        }
    };
    if first > DELAY_MAX {
        wrong(first_field, &format!("{first:?} is longer than the longest delay, 30 days"));
    }
    let (longest, longest_field) = match schedule {
        Schedule::Constant { interval } => (*interval, "constant.interval"),
        Schedule::Exponential { .. } => return,
        Schedule::Random { max, .. } => (*max, "random.max"),
        Schedule::Linear { initial, increment, max } => {
            (initial.saturating_add(*increment).min(*max), "linear.max")
        }
    };
    if is_endless && longest.is_zero() {
        let message =
            "retries without a delay must be limited: set max_attempts or a delay, such as 1s";
        wrong(longest_field, message);
    }
}

/// Reports patterns that no error type can match, with the given code.
pub(super) fn types(patterns: &[String], path: &str, code: IssueCode, issues: &mut Issues) {
    if patterns.len() > ERROR_TYPES_MAX {
        let message = format!("{} patterns, at most {ERROR_TYPES_MAX} are allowed", patterns.len());
        issues.add(path.to_owned(), IssueCode::TooMany, message);
    }
    for (index, pattern) in patterns.iter().take(ERROR_TYPES_MAX).enumerate() {
        let path = format!("{path}[{index}]");
        match check_error_type_pattern(pattern) {
            Ok(()) => {}
            Err(error @ PatternError::TooLong) => {
                issues.add(path, IssueCode::TooLong, error.to_string());
            }
            Err(error) => issues.add(path, code, error.to_string()),
        }
    }
}

/// The reason why a pattern cannot match the type of any error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("the pattern is too long: at most {ERROR_TYPE_BYTES_MAX} bytes are allowed")]
    TooLong,
    #[error(
        "`{0}` is not a valid pattern: `payment` matches that error type and all types below it, and `*` \
         matches all types that are not built-in"
    )]
    Malformed(String),
    #[error("there is no built-in error type `{0}`")]
    UnknownBuiltin(String),
}

/// Checks a pattern of error types that a retry policy or a filter uses. Without this check a pattern that
/// no error can match would be accepted and silently have no effect.
///
/// # Errors
/// What is wrong with the pattern.
pub fn check_error_type_pattern(pattern: &str) -> Result<(), PatternError> {
    if pattern.len() > ERROR_TYPE_BYTES_MAX {
        return Err(PatternError::TooLong);
    }
    let plain = pattern.strip_suffix(".*").unwrap_or(pattern);
    let is_segment = |segment: &str| {
        let is_odd = |c: char| c.is_whitespace() || c.is_control() || c == '*';
        !segment.is_empty() && !segment.contains(is_odd)
    };
    if pattern != "*" && !plain.split('.').all(is_segment) {
        return Err(PatternError::Malformed(pattern.to_owned()));
    }
    let is_builtin = type_matches(builtin::PREFIX, plain);
    if is_builtin && !builtin::ALL.iter().any(|known| type_matches(plain, known)) {
        return Err(PatternError::UnknownBuiltin(plain.to_owned()));
    }
    Ok(())
}

fn wrong(issues: &mut Issues, path: String, message: String) {
    issues.add(path, IssueCode::RetryPolicyInvalid, message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_unknown_or_overlong_error_type_patterns_are_rejected() {
        for pattern in ["*", "a", "a.b", "a.b.*", "recoup", "recoup.*", "recoup.timeout"] {
            assert_eq!(check_error_type_pattern(pattern), Ok(()), "{pattern}");
        }
        for pattern in ["", "a b", "a..b", "*.a", "a.*.b", "a*", ".*", " a", "a\0"] {
            let malformed = PatternError::Malformed(pattern.to_owned());
            assert_eq!(check_error_type_pattern(pattern), Err(malformed), "{pattern:?}");
        }
        let unknown = PatternError::UnknownBuiltin("recoup.nosuch".to_owned());
        assert_eq!(check_error_type_pattern("recoup.nosuch.*"), Err(unknown));
        let longest = "a".repeat(ERROR_TYPE_BYTES_MAX);
        assert_eq!(check_error_type_pattern(&longest), Ok(()));
        assert_eq!(check_error_type_pattern(&format!("{longest}a")), Err(PatternError::TooLong));
    }
}
