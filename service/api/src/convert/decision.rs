//! Converts retry decisions.

use recoup_core::retry::{Decision, Reason, Verdict};
use recoup_proto::v1;

use super::time;

super::to_proto!(reason: Reason => v1::RetryReason:
    Cancelled ScheduleTimeout NonRetryable NonRetryableType NotOnAllowList Permanent
    RuleAttemptsExhausted RuleDurationExhausted AttemptsExhausted DurationExhausted Deadline
    Rule Category Policy);

pub fn to_proto(decision: &Decision) -> v1::RetryDecision {
    let (verdict, delay, next_at) = match decision.verdict {
        Verdict::Retry { delay, next_at } => (v1::RetryVerdict::Retry, Some(delay), Some(next_at)),
        Verdict::Stop => (v1::RetryVerdict::Stop, None, None),
    };
    v1::RetryDecision {
        verdict: verdict.into(),
        reason: reason(decision.reason).into(),
        rule_index: decision.rule,
        delay: delay.map(time::duration),
        next_attempt_at: next_at.map(time::timestamp),
        delay_from_error: decision.delay_from_error,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use recoup_core::time::Timestamp;

    use super::*;

    #[test]
    fn decision_has_a_next_attempt_time_only_if_it_retries() {
        let next_at = Timestamp::from_micros(2_000_000);
        let verdict = Verdict::Retry { delay: Duration::from_secs(1), next_at };
        let decision =
            Decision { verdict, reason: Reason::Rule, rule: Some(0), delay_from_error: true };
        let proto = to_proto(&decision);
        assert_eq!(proto.verdict(), v1::RetryVerdict::Retry);
        assert_eq!(proto.reason(), v1::RetryReason::Rule);
        assert_eq!(proto.rule_index, Some(0));
        assert_eq!(proto.next_attempt_at, Some(time::timestamp(next_at)));
        let stop = Decision { verdict: Verdict::Stop, reason: Reason::Permanent, ..decision };
        let proto = to_proto(&stop);
        assert_eq!(proto.verdict(), v1::RetryVerdict::Stop);
        assert_eq!((proto.delay, proto.next_attempt_at), (None, None));
    }
}
