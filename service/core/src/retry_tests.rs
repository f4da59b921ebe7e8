//! Tests of the retry decision: one row for each rule in the table of `retry.rs`.

use proptest::prelude::*;

use super::*;
use crate::error::type_matches;

const START: Timestamp = Timestamp::from_micros(1_000_000_000);
/// The middle of the range: jitter changes nothing, and a random delay is halfway between its bounds.
const MIDDLE: f64 = 0.5;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn after(elapsed: u64) -> Timestamp {
    START + seconds(elapsed)
}

/// The first attempt, which failed at once.
fn situation(error: &TaskError) -> Situation<'_> {
    Situation {
        error,
        attempt: 1,
        decided: &[],
        first_scheduled_at: START,
        now: START,
        deadline: None,
        ending: false,
    }
}

fn types(types: &[&str]) -> Vec<String> {
    types.iter().map(|pattern| (*pattern).into()).collect()
}

fn constant(interval: u64) -> Option<Schedule> {
    Some(Schedule::Constant { interval: seconds(interval) })
}

fn rule(error_types: &[&str]) -> Rule {
    Rule {
        error_types: types(error_types),
        match_on: MatchOn::Outermost,
        schedule: None,
        limits: Limits::default(),
    }
}

fn caused(error_type: &str, causes: &[&str]) -> TaskError {
    let cause = causes.split_first().map(|(first, rest)| Box::new(caused(first, rest)));
    TaskError { cause, ..TaskError::new(error_type, "") }
}

fn of(category: Category) -> TaskError {
    TaskError { category, ..TaskError::new("app.broken", "") }
}

/// The decision as its delay in milliseconds, or none if there is no retry, and its reason.
fn decided(policy: &RetryPolicy, situation: &Situation<'_>) -> (Option<u128>, Reason) {
    let decision = decide(policy, situation, MIDDLE);
    let delay = match decision.verdict {
        Verdict::Retry { delay, next_at } => {
            assert_eq!(next_at, situation.now + delay);
            Some(delay.as_millis())
        }
        Verdict::Stop => None,
    };
    assert_eq!(decision.is_retry(), delay.is_some());
    (delay, decision.reason)
}

type Change = fn(&mut Situation<'static>);
/// A name, a policy, an error and a further change to the situation; then the expected delay in
/// milliseconds and the expected reason.
type Row = (&'static str, RetryPolicy, TaskError, Change, Option<u128>, Reason);

#[test]
fn each_question_of_the_retry_table_decides() {
    let plain = TaskError::new("app.broken", "");
    let base = RetryPolicy { schedule: constant(10), ..RetryPolicy::default() };
    let of_type = |error_type: &str| TaskError::new(error_type, "");
    let flagged = |flag| TaskError { non_retryable: Some(flag), ..plain.clone() };
    let never = |patterns: &[&str]| RetryPolicy {
        non_retryable_error_types: types(patterns),
        ..base.clone()
    };
    let only =
        |patterns: &[&str]| RetryPolicy { retryable_error_types: types(patterns), ..base.clone() };
    let with_rule = |rule: Rule| RetryPolicy { rules: vec![rule], ..base.clone() };
    let limited = |max_attempts, max_duration: Option<u64>| RetryPolicy {
        limits: Limits { max_attempts, max_duration: max_duration.map(seconds) },
        ..base.clone()
    };
    let scheduled = Rule { schedule: constant(3), ..rule(&["app"]) };
    let wish = |delay| TaskError { next_retry_delay: Some(delay), ..plain.clone() };
    let nothing: Change = |_| {};

    let rows: Vec<Row> = vec![
        // Question 1 of the table in `retry.rs`.
        ("ending", base.clone(), plain.clone(), |s| s.ending = true, None, Reason::Cancelled),
        ("ending wins", base.clone(), flagged(true), |s| s.ending = true, None, Reason::Cancelled),
        // Question 2.
        (
            "schedule-to-start",
            base.clone(),
            of_type(builtin::SCHEDULE_TO_START),
            nothing,
            None,
            Reason::ScheduleTimeout,
        ),
        (
            "schedule-to-close",
            base.clone(),
            of_type(builtin::SCHEDULE_TO_CLOSE),
            nothing,
            None,
            Reason::ScheduleTimeout,
        ),
        (
            "start-to-close",
            base.clone(),
            of_type(builtin::START_TO_CLOSE),
            nothing,
            Some(10_000),
            Reason::Policy,
        ),
        // Question 3.
        ("flag", base.clone(), flagged(true), nothing, None, Reason::NonRetryable),
        ("flag false", base.clone(), flagged(false), nothing, Some(10_000), Reason::Policy),
        (
            "flag of the cause",
            base.clone(),
            TaskError { cause: Some(Box::new(flagged(true))), ..plain.clone() },
            nothing,
            None,
            Reason::NonRetryable,
        ),
        (
            "flag of the wrapper",
            base.clone(),
            TaskError { cause: Some(Box::new(flagged(true))), ..flagged(false) },
            nothing,
            Some(10_000),
            Reason::Policy,
        ),
        ("flag before lists", never(&["app"]), flagged(true), nothing, None, Reason::NonRetryable),
        (
            "flag before rules",
            with_rule(rule(&["app"])),
            flagged(true),
            nothing,
            None,
            Reason::NonRetryable,
        ),
        // Question 4.
        ("listed", never(&["app"]), plain.clone(), nothing, None, Reason::NonRetryableType),
        ("star", never(&["*"]), plain.clone(), nothing, None, Reason::NonRetryableType),
        (
            "star does not match built-ins",
            never(&["*"]),
            of_type(builtin::WORKER_LOST),
            nothing,
            Some(10_000),
            Reason::Policy,
        ),
        (
            "built-in by name",
            never(&["recoup.worker_lost"]),
            of_type(builtin::WORKER_LOST),
            nothing,
            None,
            Reason::NonRetryableType,
        ),
        ("not listed", never(&["ap"]), plain.clone(), nothing, Some(10_000), Reason::Policy),
        // Question 5.
        ("allowed", only(&["app"]), plain.clone(), nothing, Some(10_000), Reason::Policy),
        ("not allowed", only(&["net"]), plain.clone(), nothing, None, Reason::NotOnAllowList),
        (
            "not allowed even if a rule matches",
            RetryPolicy { rules: vec![rule(&["app"])], ..only(&["net"]) },
            plain.clone(),
            nothing,
            None,
            Reason::NotOnAllowList,
        ),
        (
            "built-ins skip the allow list",
            only(&["net"]),
            of_type(builtin::HEARTBEAT),
            nothing,
            Some(10_000),
            Reason::Policy,
        ),
        (
            "both lists",
            RetryPolicy { non_retryable_error_types: types(&["app"]), ..only(&["net"]) },
            plain.clone(),
            nothing,
            None,
            Reason::NonRetryableType,
        ),
        // Question 6.
        ("rule", with_rule(scheduled.clone()), plain.clone(), nothing, Some(3_000), Reason::Rule),
        (
            "rule with the policy's schedule",
            with_rule(rule(&["app"])),
            plain.clone(),
            nothing,
            Some(10_000),
            Reason::Rule,
        ),
        (
            "rule before category",
            with_rule(scheduled.clone()),
            of(Category::Permanent),
            nothing,
            Some(3_000),
            Reason::Rule,
        ),
        (
            "other rule",
            with_rule(Rule { schedule: constant(3), ..rule(&["net"]) }),
            plain.clone(),
            nothing,
            Some(10_000),
            Reason::Policy,
        ),
        ("permanent", base.clone(), of(Category::Permanent), nothing, None, Reason::Permanent),
        ("transient", base.clone(), of(Category::Transient), nothing, Some(100), Reason::Category),
        (
            "intermittent",
            base.clone(),
            of(Category::Intermittent),
            nothing,
            Some(10_000),
            Reason::Category,
        ),
        ("benign", base.clone(), of(Category::Benign), nothing, Some(10_000), Reason::Policy),
        // Question 7.
        (
            "attempts left",
            limited(Some(3), None),
            plain.clone(),
            |s| s.attempt = 2,
            Some(10_000),
            Reason::Policy,
        ),
        (
            "attempts used up",
            limited(Some(3), None),
            plain.clone(),
            |s| s.attempt = 3,
            None,
            Reason::AttemptsExhausted,
        ),
        (
            "one attempt allows no retry",
            limited(Some(1), None),
            plain.clone(),
            nothing,
            None,
            Reason::AttemptsExhausted,
        ),
        (
            "five by default",
            base.clone(),
            plain.clone(),
            |s| s.attempt = 5,
            None,
            Reason::AttemptsExhausted,
        ),
        (
            "a duration alone does not count attempts",
            limited(None, Some(100)),
            plain.clone(),
            |s| s.attempt = 1_000_000,
            Some(10_000),
            Reason::Policy,
        ),
        (
            "duration used up",
            limited(None, Some(100)),
            plain.clone(),
            |s| s.now = after(100),
            None,
            Reason::DurationExhausted,
        ),
        (
            "attempts before duration",
            limited(Some(2), Some(100)),
            plain.clone(),
            |s| (s.attempt, s.now) = (2, after(100)),
            None,
            Reason::AttemptsExhausted,
        ),
        (
            "rule's attempts used up",
            with_rule(Rule {
                limits: Limits { max_attempts: Some(3), max_duration: None },
                ..rule(&["app"])
            }),
            plain.clone(),
            |s| s.decided = &[(DecidedBy::Policy, 9), (DecidedBy::Rule(0), 2)],
            None,
            Reason::RuleAttemptsExhausted,
        ),
        (
            "rule counts its own attempts alone",
            with_rule(Rule {
                limits: Limits { max_attempts: Some(3), max_duration: None },
                ..rule(&["app"])
            }),
            plain.clone(),
            |s| (s.attempt, s.decided) = (4, &[(DecidedBy::Policy, 2), (DecidedBy::Rule(0), 1)]),
            Some(10_000),
            Reason::Rule,
        ),
        (
            "rule's duration used up",
            with_rule(Rule {
                limits: Limits { max_attempts: None, max_duration: Some(seconds(60)) },
                ..rule(&["app"])
            }),
            plain.clone(),
            |s| s.now = after(60),
            None,
            Reason::RuleDurationExhausted,
        ),
        (
            "the policy's limits hold as well as the rule's",
            with_rule(rule(&["app"])),
            plain.clone(),
            |s| s.attempt = 5,
            None,
            Reason::AttemptsExhausted,
        ),
        // Question 8.
        ("the error's delay", base.clone(), wish(seconds(7)), nothing, Some(7_700), Reason::Policy),
        (
            "the cause's delay",
            base.clone(),
            TaskError { cause: Some(Box::new(wish(seconds(7)))), ..plain.clone() },
            nothing,
            Some(7_700),
            Reason::Policy,
        ),
        (
            "the error's delay is bounded",
            base.clone(),
            wish(Duration::MAX),
            nothing,
            Some(DELAY_MAX.as_millis()),
            Reason::Policy,
        ),
        ("zero delay", base.clone(), wish(Duration::ZERO), nothing, Some(0), Reason::Policy),
        // Question 9.
        (
            "deadline",
            base.clone(),
            plain.clone(),
            |s| s.deadline = Some(after(10)),
            None,
            Reason::Deadline,
        ),
        (
            "before the deadline",
            base.clone(),
            plain.clone(),
            |s| s.deadline = Some(after(11)),
            Some(10_000),
            Reason::Policy,
        ),
        (
            "the policy's duration ends first",
            limited(None, Some(100)),
            plain.clone(),
            |s| s.now = after(90),
            None,
            Reason::Deadline,
        ),
        (
            "the rule's duration ends first",
            with_rule(Rule {
                limits: Limits { max_attempts: None, max_duration: Some(seconds(60)) },
                ..rule(&["app"])
            }),
            plain.clone(),
            |s| s.now = after(50),
            None,
            Reason::Deadline,
        ),
    ];
    for (name, policy, error, change, delay, reason) in rows {
        // A row's change cannot set the error, which the situation borrows.
        let mut changed = situation(Box::leak(Box::new(error)));
        change(&mut changed);
        assert_eq!(decided(&policy, &changed), (delay, reason), "{name}");
    }
}

#[test]
fn match_on_selects_which_error_of_the_chain_is_matched() {
    let error = caused("outer", &["middle", "root"]);
    let builtin_root = caused("outer", &[builtin::WORKER_LOST]);
    for (match_on, pattern, error, matches) in [
        (MatchOn::Outermost, "outer", &error, true),
        (MatchOn::Outermost, "middle", &error, false),
        (MatchOn::Outermost, "root", &error, false),
        (MatchOn::AnyCause, "outer", &error, true),
        (MatchOn::AnyCause, "middle", &error, true),
        (MatchOn::AnyCause, "root", &error, true),
        (MatchOn::AnyCause, "other", &error, false),
        (MatchOn::RootCause, "outer", &error, false),
        (MatchOn::RootCause, "middle", &error, false),
        (MatchOn::RootCause, "root", &error, true),
        (MatchOn::RootCause, "*", &builtin_root, false),
        (MatchOn::RootCause, "recoup", &builtin_root, true),
    ] {
        let policy = RetryPolicy { match_on, ..RetryPolicy::default() };
        let never = RetryPolicy { non_retryable_error_types: types(&[pattern]), ..policy.clone() };
        let reason = decided(&never, &situation(error)).1;
        assert_eq!(reason == Reason::NonRetryableType, matches, "{match_on:?} {pattern}");

        let only = RetryPolicy { retryable_error_types: types(&[pattern]), ..policy.clone() };
        let reason = decided(&only, &situation(error)).1;
        assert_eq!(reason != Reason::NotOnAllowList, matches, "{match_on:?} {pattern}");

        let rules = vec![Rule { match_on, ..rule(&[pattern]) }];
        let ruled = RetryPolicy { match_on: MatchOn::Outermost, rules, ..policy };
        let reason = decided(&ruled, &situation(error)).1;
        assert_eq!(reason == Reason::Rule, matches, "{match_on:?} {pattern}");
    }
}

#[test]
fn first_matching_rule_decides_and_counts_its_own_retries() {
    let growing = |initial| {
        Some(Schedule::Exponential {
            initial_interval: seconds(initial),
            backoff_coefficient: 2.0,
            max_interval: seconds(1_000),
        })
    };
    let policy = RetryPolicy {
        schedule: growing(1),
        limits: Limits { max_attempts: Some(100), max_duration: None },
        rules: vec![
            Rule { schedule: growing(10), ..rule(&["net"]) },
            Rule { schedule: growing(50), ..rule(&["net.dns", "disk"]) },
        ],
        ..RetryPolicy::default()
    };
    let decided = [(DecidedBy::Policy, 1), (DecidedBy::Rule(1), 2), (DecidedBy::Category, 3)];
    for (error, delay, by) in [
        (TaskError::new("net.dns", ""), 10, DecidedBy::Rule(0)),
        (TaskError::new("disk", ""), 200, DecidedBy::Rule(1)),
        (TaskError::new("other", ""), 2, DecidedBy::Policy),
        (
            TaskError { category: Category::Intermittent, ..TaskError::new("x", "") },
            80,
            DecidedBy::Category,
        ),
    ] {
        let situation = Situation { attempt: 7, decided: &decided, ..situation(&error) };
        let decision = decide(&policy, &situation, MIDDLE);
        assert_eq!(decision.decided_by(), by);
        let next_at = START + seconds(delay);
        assert_eq!(decision.verdict, Verdict::Retry { delay: seconds(delay), next_at });
        assert!(!decision.delay_from_error);
    }
    // A decision to stop names the rule as well.
    let error = TaskError::new("disk", "");
    let situation = Situation { attempt: 100, ..situation(&error) };
    let decision = decide(&policy, &situation, MIDDLE);
    assert_eq!((decision.reason, decision.rule), (Reason::AttemptsExhausted, Some(1)));
}

#[test]
fn schedules_grow_up_to_their_bounds() {
    let exponential = |backoff_coefficient| Schedule::Exponential {
        initial_interval: seconds(1),
        backoff_coefficient,
        max_interval: seconds(30),
    };
    let linear = Schedule::Linear { initial: seconds(5), increment: seconds(2), max: seconds(9) };
    let random = Schedule::Random { min: seconds(2), max: seconds(6) };
    for (schedule, index, random, delay) in [
        (&Schedule::Constant { interval: seconds(4) }, 1_000, 0.9, 4),
        (&exponential(2.0), 0, 0.9, 1),
        (&exponential(2.0), 4, 0.9, 16),
        (&exponential(2.0), 5, 0.9, 30),
        (&exponential(2.0), u32::MAX, 0.9, 30),
        (&exponential(1.0), u32::MAX, 0.9, 1),
        (&linear, 0, 0.9, 5),
        (&linear, 1, 0.9, 7),
        (&linear, 2, 0.9, 9),
        (&linear, u32::MAX, 0.9, 9),
        (&random, 7, 0.0, 2),
        (&random, 7, 0.25, 3),
        (&random, 0, 0.75, 5),
        (&Schedule::BUILT_IN, 6, 0.9, 64),
        (&Schedule::BUILT_IN, 7, 0.9, 100),
        (&Schedule::TRANSIENT, 7, 0.9, 10),
        (&Schedule::INTERMITTENT, 7, 0.9, 600),
    ] {
        assert_eq!(schedule.delay(index, random), seconds(delay), "{schedule:?} {index}");
    }
    let huge = Duration::MAX;
    for schedule in [
        Schedule::Constant { interval: huge },
        Schedule::Exponential {
            initial_interval: huge,
            backoff_coefficient: 2.0,
            max_interval: huge,
        },
        Schedule::Random { min: huge, max: huge },
        Schedule::Linear { initial: huge, increment: huge, max: huge },
    ] {
        assert_eq!(schedule.delay(u32::MAX, 0.9), DELAY_MAX, "{schedule:?}");
    }
}

#[test]
fn jitter_goes_both_ways_but_never_below_the_delay_an_error_asked_for() {
    let policy = |jitter| RetryPolicy { schedule: constant(10), jitter, ..RetryPolicy::default() };
    let plain = TaskError::new("a", "");
    let wish = TaskError { next_retry_delay: Some(seconds(10)), ..plain.clone() };
    for (jitter, error, random, millis) in [
        (None, &plain, 0.0, 8_000),
        (None, &plain, 0.5, 10_000),
        (None, &plain, 0.75, 11_000),
        (Some(0.0), &plain, 0.0, 10_000),
        (Some(0.0), &plain, 0.75, 10_000),
        (Some(1.0), &plain, 0.0, 0),
        (Some(1.0), &plain, 0.75, 15_000),
        (None, &wish, 0.0, 10_000),
        (Some(1.0), &wish, 0.5, 15_000),
        (Some(0.0), &wish, 0.5, 10_000),
    ] {
        let decision = decide(&policy(jitter), &situation(error), random);
        let Verdict::Retry { delay, .. } = decision.verdict else {
            panic!("{jitter:?} {random}: {decision:?}");
        };
        assert_eq!(delay.as_millis(), millis, "{jitter:?} {random}");
        assert_eq!(decision.delay_from_error, error.next_retry_delay.is_some());
    }
}

fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        8 => (0_u64..200_000_000).prop_map(Duration::from_micros),
        1 => any::<u64>().prop_map(Duration::from_secs),
        1 => Just(Duration::MAX),
    ]
}

fn schedules() -> impl Strategy<Value = Schedule> {
    let coefficients = prop_oneof![4 => 1.0..4.0_f64, 1 => any::<f64>()];
    prop_oneof![
        durations().prop_map(|interval| Schedule::Constant { interval }),
        (durations(), coefficients, durations()).prop_map(
            |(initial_interval, backoff_coefficient, max_interval)| Schedule::Exponential {
                initial_interval,
                backoff_coefficient,
                max_interval,
            }
        ),
        (durations(), durations()).prop_map(|(min, max)| Schedule::Random { min, max }),
        (durations(), durations(), durations())
            .prop_map(|(initial, increment, max)| Schedule::Linear { initial, increment, max }),
    ]
}

fn all_limits() -> impl Strategy<Value = Limits> {
    (prop::option::of(1_u32..8), prop::option::of(durations()))
        .prop_map(|(max_attempts, max_duration)| Limits { max_attempts, max_duration })
}

fn some_types() -> impl Strategy<Value = Vec<String>> {
    let patterns = ["a", "a.b", "b", "*", "recoup.worker_lost"].map(String::from).to_vec();
    prop::collection::vec(prop::sample::select(patterns), 0..3)
}

fn matching() -> impl Strategy<Value = MatchOn> {
    prop::sample::select(vec![MatchOn::Outermost, MatchOn::AnyCause, MatchOn::RootCause])
}

fn policies() -> impl Strategy<Value = RetryPolicy> {
    let rules = (some_types(), matching(), prop::option::of(schedules()), all_limits()).prop_map(
        |(error_types, match_on, schedule, limits)| Rule {
            error_types,
            match_on,
            schedule,
            limits,
        },
    );
    (
        prop::option::of(schedules()),
        prop::option::of(0.0..=1.0_f64),
        all_limits(),
        some_types(),
        some_types(),
        matching(),
        prop::collection::vec(rules, 0..3),
    )
        .prop_map(|(schedule, jitter, limits, never, only, match_on, rules)| RetryPolicy {
            schedule,
            jitter,
            limits,
            non_retryable_error_types: never,
            retryable_error_types: only,
            match_on,
            warning_on_retry: false,
            rules,
        })
}

fn errors() -> impl Strategy<Value = TaskError> {
    let categories = vec![
        Category::Unspecified,
        Category::Transient,
        Category::Intermittent,
        Category::Permanent,
        Category::Benign,
    ];
    let error_types = vec!["a", "a.b", "b", "c", builtin::WORKER_LOST, builtin::SCHEDULE_TO_CLOSE];
    let flag = prop_oneof![4 => Just(None), 1 => any::<bool>().prop_map(Some)];
    let wish = prop_oneof![4 => Just(None), 1 => durations().prop_map(Some)];
    let one = (prop::sample::select(error_types), flag, prop::sample::select(categories), wish)
        .prop_map(|(error_type, non_retryable, category, next_retry_delay)| TaskError {
            non_retryable,
            category,
            next_retry_delay,
            ..TaskError::new(error_type, "")
        });
    prop::collection::vec(one, 1..4).prop_map(|chain| {
        let wrap =
            |cause: Option<Box<TaskError>>, error| Some(Box::new(TaskError { cause, ..error }));
        *chain.into_iter().fold(None, wrap).expect("the chain is not empty")
    })
}

#[derive(Clone, Debug)]
struct Circumstances {
    attempt: u32,
    decided: Vec<(DecidedBy, u32)>,
    elapsed: Duration,
    deadline: Option<Duration>,
}

fn circumstances() -> impl Strategy<Value = Circumstances> {
    let who = prop_oneof![
        Just(DecidedBy::Policy),
        Just(DecidedBy::Category),
        (0_u32..3).prop_map(DecidedBy::Rule)
    ];
    let counts = prop_oneof![9 => 0_u32..8, 1 => any::<u32>()];
    (
        prop_oneof![9 => 1_u32..8, 1 => any::<u32>()],
        prop::collection::vec((who, counts), 0..4),
        durations(),
        prop::option::of(durations()),
    )
        .prop_map(|(attempt, decided, elapsed, deadline)| Circumstances {
            attempt,
            decided,
            elapsed,
            deadline,
        })
}

impl Circumstances {
    fn situation<'a>(&'a self, error: &'a TaskError) -> Situation<'a> {
        Situation {
            attempt: self.attempt,
            decided: &self.decided,
            now: START + self.elapsed,
            deadline: self.deadline.map(|deadline| START + deadline),
            ..situation(error)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn retry_decision_always_respects_every_limit(
        policy in policies(),
        error in errors(),
        circumstances in circumstances(),
        random in 0.0..1.0_f64,
    ) {
        let situation = circumstances.situation(&error);
        let decision = decide(&policy, &situation, random);
        prop_assert_eq!(decide(&policy, &situation, random), decision, "the decision is deterministic");

        let rule = decision.rule.map(|index| &policy.rules[index as usize]);
        if let Some(rule) = rule {
            let takes = |error: &TaskError| {
                rule.error_types.iter().any(|pattern| type_matches(pattern, &error.error_type))
            };
            prop_assert!(error.chain().any(takes));
        }
        let Verdict::Retry { delay, next_at } = decision.verdict else {
            return Ok(());
        };
        prop_assert!(!error.is_non_retryable());
        prop_assert!(rule.is_some() || error.category != Category::Permanent);
        prop_assert!(delay <= DELAY_MAX);
        prop_assert_eq!(next_at, situation.now + delay);
        prop_assert!(policy.max_attempts().is_none_or(|max| situation.attempt < max));
        prop_assert!(situation.deadline.is_none_or(|deadline| next_at < deadline));
        let durations = [policy.limits.max_duration, rule.and_then(|rule| rule.limits.max_duration)];
        for duration in durations.into_iter().flatten() {
            prop_assert!(next_at < START + duration);
        }
        if let Some(asked) = error.chain().find_map(|error| error.next_retry_delay) {
            prop_assert!(decision.delay_from_error && delay >= asked.min(DELAY_MAX));
        }
        let who = decision.decided_by();
        prop_assert_eq!(matches!(who, DecidedBy::Rule(_)), rule.is_some());
    }

    #[test]
    fn ending_execution_or_non_retryable_error_is_never_retried(
        policy in policies(),
        error in errors(),
        circumstances in circumstances(),
        random in 0.0..1.0_f64,
    ) {
        let ending = Situation { ending: true, ..circumstances.situation(&error) };
        prop_assert_eq!(decide(&policy, &ending, random).reason, Reason::Cancelled);
        let flagged = TaskError { non_retryable: Some(true), ..error };
        prop_assert_eq!(decide(&policy, &circumstances.situation(&flagged), random).verdict, Verdict::Stop);
    }

    #[test]
    fn policy_never_allows_more_than_its_max_attempts(policy in policies(), random in 0.0..1.0_f64) {
        let error = TaskError::new("a.b", "");
        let Some(max) = policy.max_attempts() else {
            return Ok(());
        };
        let mut decided: Vec<(DecidedBy, u32)> = Vec::new();
        let (mut attempt, mut now) = (1, START);
        loop {
            let situation = Situation { attempt, decided: &decided, now, ..situation(&error) };
            let decision = decide(&policy, &situation, random);
            let Verdict::Retry { next_at, .. } = decision.verdict else {
                break;
            };
            match decided.iter_mut().find(|(by, _)| *by == decision.decided_by()) {
                Some((_, count)) => *count += 1,
                None => decided.push((decision.decided_by(), 1)),
            }
            (attempt, now) = (attempt + 1, next_at);
        }
        prop_assert!(attempt <= max);
    }
}

#[test]
fn listed_delays_end_when_attempts_or_time_run_out() {
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let delays = |limits, within| {
        let policy = RetryPolicy { limits, ..RetryPolicy::default() };
        let (delays, is_cut) = policy.delays(within);
        (delays.into_iter().map(|delay| delay.as_secs()).collect::<Vec<_>>(), is_cut)
    };
    let attempts = |max| Limits { max_attempts: Some(max), max_duration: None };
    let time = |max| Limits { max_attempts: None, max_duration: seconds(max) };
    assert_eq!(delays(Limits::default(), None), (vec![1, 2, 4, 8], false));
    assert_eq!(delays(Limits::default(), seconds(7)), (vec![1, 2], false));
    assert_eq!(delays(time(16), None), (vec![1, 2, 4, 8], false));
    assert_eq!(delays(time(15), None), (vec![1, 2, 4], false));
    assert_eq!(delays(attempts(1), None), (vec![], false));
    let (all, is_cut) = delays(attempts(101), None);
    assert_eq!((all.len(), is_cut), (DELAYS_MAX, false));
    let (first, is_cut) = delays(attempts(102), None);
    assert_eq!((first, is_cut), (all, true));
    assert!(delays(time(1_000_000), None).1, "there is time for more delays than are listed");
}
