//! Rows in the bytes that older binaries wrote and that every later one must read. The golden files never
//! change: a change to the code that would alter one needs a new format.
//!
//! `RECOUP_WRITE_GOLDEN=1` writes the files that are missing, and leaves existing ones alone.

#[path = "golden/definitions.rs"]
mod definitions;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use recoup_core::definition as def;
use recoup_core::error::{Category, Suppressed, TaskError};
use recoup_core::event::{
    AttemptFailed, AttemptOutcome, DueCompensation, Event, ExecutionStarted, FirstAttempt,
    PayloadSource, StopCause,
};
use recoup_core::execution::{CompensationOutcome, CompensationState, Part, State, TraceContext};
use recoup_core::failure_event::{CompletedStep, FailureEvent, FailureKind, Subject};
use recoup_core::id::ExecutionId;
use recoup_core::payload::Payload;
use recoup_core::retry::{Decision, Limits, MatchOn, Reason, RetryPolicy, Rule, Schedule, Verdict};
use recoup_core::subscription::{Consumer, Entry, Filter, Gap, Position, Subscription};
use recoup_core::time::Timestamp;
use recoup_store::{NamespaceRow, RegistryAnswer, SubscriptionRow, format};

const DECIDED_AT: Timestamp = Timestamp::from_micros(1_790_000_000_123_456);

fn at(seconds: u64) -> Timestamp {
    DECIDED_AT + Duration::from_secs(seconds)
}

macro_rules! kinds {
    ($($variant:ident $file:literal)+) => {
        /// The golden file of an event. The match is exhaustive, so an event kind without a file does not
        /// compile.
        fn file(event: &Event) -> &'static str {
            match event {
                $(Event::$variant { .. } => $file,)+
            }
        }

        const FILES: &[&str] = &[$($file),+];
    };
}

kinds! {
    ExecutionStarted "execution_started"
    RequestRecorded "request_recorded"
    StepStarted "step_started"
    StepSkipped "step_skipped"
    AttemptScheduled "attempt_scheduled"
    AttemptStarted "attempt_started"
    AttemptFailed "attempt_failed"
    AttemptWithdrawn "attempt_withdrawn"
    StepCompleted "step_completed"
    StepFailed "step_failed"
    StepIgnored "step_ignored"
    BlockStarted "block_started"
    ParallelStarted "parallel_started"
    BranchCompleted "branch_completed"
    BranchFailed "branch_failed"
    ParallelCompleted "parallel_completed"
    LoopStarted "loop_started"
    ItemCompleted "item_completed"
    ItemFailed "item_failed"
    LoopCompleted "loop_completed"
    BlockStopped "block_stopped"
    BlockCompleted "block_completed"
    ScopeReturned "scope_returned"
    HandlerStarted "handler_started"
    StepCaught "step_caught"
    RunSucceeded "run_succeeded"
    RunStopped "run_stopped"
    CancelRequested "cancel_requested"
    CompensationStarted "compensation_started"
    CompensationParked "compensation_parked"
    CompensationRetried "compensation_retried"
    CompensationSkipped "compensation_skipped"
    CompensationEnded "compensation_ended"
    OnFailureStarted "on_failure_started"
    FinallyStarted "finally_started"
    HandlerFailed "handler_failed"
    ExecutionEnded "execution_ended"
}

fn payload() -> Payload {
    Payload {
        data: Bytes::from_static(b"\x00\x01\xff"),
        content_type: "application/octet-stream".into(),
        metadata: [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
    }
}

fn error() -> TaskError {
    let root =
        TaskError { category: Category::Transient, ..TaskError::new("io.reset", "reset by peer") };
    TaskError {
        details: Some(payload()),
        stack_trace: "at charge (pay.py:7)".into(),
        cause: Some(Box::new(root)),
        non_retryable: Some(false),
        category: Category::Permanent,
        next_retry_delay: Some(Duration::new(90, 5)),
        source: "sdk-python".into(),
        ..TaskError::new("payment.card_declined", "declined: 51")
    }
}

fn trace() -> TraceContext {
    TraceContext {
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        tracestate: "vendor=1".into(),
    }
}

fn decision() -> Decision {
    Decision {
        verdict: Verdict::Retry { delay: Duration::new(2, 500_000_001), next_at: at(3) },
        reason: Reason::Rule,
        rule: Some(0),
        delay_from_error: true,
    }
}

/// Format 1: one event of every kind, with every field set. A kind that changes gets a second sample in the
/// next format; the samples below stay as they are.
fn events() -> Vec<Event> {
    let path = || "lines[3].reserve".into();
    vec![
        Event::ExecutionStarted(Box::new(ExecutionStarted {
            namespace: "company.team".into(),
            workflow: "order".into(),
            version: 7,
            key: Some("order-4711".into()),
            input: Payload::json(r#"{"amount":100}"#),
            deadline: Some(at(3600)),
            trace: trace(),
            format: 1,
        })),
        Event::RequestRecorded { request_id: "r-1".into(), digest: 0x0123_4567_89ab_cdef },
        Event::StepStarted {
            path: path(),
            generation: 2,
            input: PayloadSource::Inline(payload()),
            first: None,
        },
        Event::StepSkipped { path: path() },
        Event::AttemptScheduled { path: path(), attempt: 3, at: at(2) },
        Event::AttemptStarted {
            path: path(),
            attempt: 3,
            worker: "worker-1".into(),
            session: "session-1".into(),
            at: DECIDED_AT - Duration::from_secs(1),
        },
        Event::AttemptFailed(Box::new(AttemptFailed {
            path: path(),
            attempt: 3,
            error: error(),
            outcome: AttemptOutcome::Unknown,
            decision: decision(),
            worker: "worker-1".into(),
            warning: true,
        })),
        Event::AttemptWithdrawn { path: path(), attempt: 3 },
        Event::StepCompleted {
            path: path(),
            attempt: 4,
            output: Payload::json(r#"{"id":"ch_1"}"#),
            worker: "worker-1".into(),
        },
        Event::StepFailed { path: path(), error: error() },
        Event::StepIgnored { path: path(), error: error(), warning: true },
        Event::RunSucceeded { output: PayloadSource::Inline(Payload::null()) },
        Event::RunStopped {
            cause: StopCause::TimedOut,
            error: error(),
            step: Some(path()),
            grace_until: at(10),
            compensation_due: true,
        },
        Event::CancelRequested { reason: "the customer changed his mind".into() },
        Event::CompensationStarted {
            due: vec![
                DueCompensation {
                    step: path(),
                    generation: 2,
                    outcome: CompensationOutcome::Unknown,
                },
                DueCompensation {
                    step: "charge".into(),
                    generation: 1,
                    outcome: CompensationOutcome::Completed,
                },
            ],
            cleanup_deadline: Some(at(600)),
        },
        Event::CompensationParked { path: path(), error: error() },
        Event::CompensationRetried { path: path(), reason: "the refund works again".to_owned() },
        Event::CompensationSkipped { path: path(), reason: "done by hand".into() },
        Event::CompensationEnded { state: CompensationState::Parked },
        Event::FinallyStarted { cleanup_deadline: Some(at(600)) },
        Event::HandlerFailed { path: path(), error: error() },
        Event::ExecutionEnded { state: State::TimedOut, error: Some(error()) },
    ]
}

fn failure_event() -> FailureEvent {
    FailureEvent {
        id: "0199-3-step_failed".into(),
        kind: FailureKind::StepFailed,
        at: DECIDED_AT,
        namespace: "company.team".into(),
        subject: Some(Subject {
            execution: ExecutionId::new(DECIDED_AT, [7; 10]),
            key: Some("order-4711".into()),
            workflow: "order".into(),
            version: 7,
            run: 1,
            step: Some("charge".into()),
            attempt: 3,
            max_attempts: Some(5),
            is_final: true,
            decision: Some(Decision {
                verdict: Verdict::Stop,
                reason: Reason::NonRetryableType,
                rule: None,
                delay_from_error: false,
            }),
            state: State::Compensating,
            compensation: CompensationState::Pending,
            completed: vec![
                CompletedStep {
                    step: "reserve".into(),
                    outcome: CompensationOutcome::Completed,
                    output: Some(payload()),
                    compensated: true,
                },
                CompletedStep {
                    step: "charge".into(),
                    outcome: CompensationOutcome::Unknown,
                    output: None,
                    compensated: false,
                },
            ],
            sequence: 9,
            trace: trace(),
        }),
        worker: "worker-1".into(),
        session: "session-1".into(),
        error: Some(error()),
        fingerprint: "9f86d081884c7d65".into(),
    }
}

fn workflow() -> def::Workflow {
    let limits = Limits { max_attempts: Some(3), max_duration: Some(Duration::from_secs(60)) };
    let second = Duration::from_secs(1);
    let rule = |schedule| Rule {
        error_types: vec!["payment".into()],
        match_on: MatchOn::RootCause,
        schedule,
        limits,
    };
    let retry = RetryPolicy {
        schedule: Some(Schedule::BUILT_IN),
        jitter: Some(0.0),
        limits,
        non_retryable_error_types: vec!["payment.card_declined".into()],
        retryable_error_types: vec!["*".into()],
        match_on: MatchOn::AnyCause,
        warning_on_retry: true,
        rules: vec![
            rule(Some(Schedule::Constant { interval: second })),
            rule(Some(Schedule::Random { min: second, max: second * 9 })),
            rule(Some(Schedule::Linear { initial: second, increment: second, max: second * 9 })),
            rule(None),
        ],
    };
    let timeouts = def::Timeouts {
        schedule_to_start: Some(second),
        start_to_close: Some(second * 2),
        schedule_to_close: Some(second * 3),
        heartbeat: Some(Duration::from_millis(1500)),
    };
    let task = def::Task {
        task_type: "charge".into(),
        queue: Some("payments".into()),
        input: Some(r#"{"amount":"${input.amount}"}"#.into()),
        timeouts,
        priority: -5,
        delivery: def::Delivery::AtMostOnce,
    };
    let step = def::Step {
        id: def_id("charge"),
        description: "takes the money".into(),
        kind: def::StepKind::Task(task.clone()),
        when: Some("input.amount > 0".into()),
        retry: Some(retry.clone()),
        timeout: None,
        catch: Vec::new(),
        on_error: def::OnError::Ignore,
        allow_warning: true,
        compensate: Some(def::Compensate {
            task,
            retry: Some(retry.clone()),
            only_completed: true,
        }),
    };
    def::Workflow {
        name: "order".into(),
        description: "takes an order".into(),
        defaults: def::Defaults { queue: Some("main".into()), retry: Some(retry), timeouts },
        steps: def::Block {
            steps: vec![step.clone()],
            output: Some(r#"{"id":"${steps.charge.output.id}"}"#.into()),
        },
        on_failure: Vec::new(),
        finally: vec![def::Step { id: def_id("notify"), ..step }],
        timeout: Some(second * 3600),
        cleanup_timeout: Some(second * 600),
        cancel_grace: Some(second * 5),
    }
}

fn def_id(text: &str) -> recoup_core::id::StepId {
    text.into()
}

fn subscription() -> Subscription {
    let entry = Entry {
        event: "0199-3-0".into(),
        execution: Some(ExecutionId::new(DECIDED_AT, [7; 10])),
        position: Position { lane: 3, number: 1_790_000_000_123_456 },
        bytes: 321,
        delivery: 2,
        due_at: at(30),
        returned: true,
        stream: 5,
        gap: None,
    };
    let gap = Gap { from: "AQID".into(), to: "AQIE".into(), events: 17 };
    Subscription {
        filter: Filter {
            namespace: "company.*".into(),
            workflows: vec!["order".into()],
            kinds: vec![FailureKind::StepFailed, FailureKind::FeedGap],
            error_types: vec!["payment".into()],
        },
        start: "beginning".into(),
        ack_deadline: Duration::from_millis(1500),
        window: 7,
        watermark: "AQIC".into(),
        read: "AQIF".into(),
        outstanding: vec![
            entry.clone(),
            Entry { execution: None, gap: Some(gap), returned: false, stream: 0, ..entry },
        ],
        consumer: Some(Consumer { name: "pager-1".into(), epoch: 4, until: at(60) }),
        epoch: 5,
    }
}

/// The bytes of a golden file. If the file is missing and writing is enabled, it is written with `encoded`
/// first.
fn golden(name: &str, encoded: &Bytes) -> Bytes {
    golden_of(1, name, encoded)
}

fn golden_of(format: u16, name: &str, encoded: &Bytes) -> Bytes {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let path = path.join(format!("{format}/{name}.hex"));
    if !path.exists() && std::env::var_os("RECOUP_WRITE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().expect("it was joined")).expect("a folder for the file");
        fs::write(&path, hex(encoded)).expect("a new golden file");
    }
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; see the head of this file", path.display()));
    unhex(&text)
}

fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    bytes.chunks(32).map(|chunk| line(chunk) + "\n").collect()
}

fn unhex(text: &str) -> Bytes {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|digit| Some(u8::try_from(digit.to_digit(16)?).expect("below 16")))
        .collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn events_of_format_1_match_their_golden_files() {
    let events = events();
    let newer: Vec<_> = blocks().into_iter().chain(branches()).chain(items()).collect();
    let files: BTreeSet<_> =
        events.iter().chain(newer.iter().map(|(_, event)| event)).map(file).collect();
    assert_eq!(files, FILES.iter().copied().collect(), "a sample of every kind");
    for event in events {
        let name = file(&event);
        let encoded = format::encode_transition(DECIDED_AT, std::slice::from_ref(&event));
        assert_eq!(encoded.format, 1, "{name}");
        let golden = golden(name, &encoded.data);
        let decoded = format::decode_transition(1, &golden).expect(name);
        assert_eq!(decoded.decided_at, DECIDED_AT, "{name}");
        assert_eq!(decoded.events, [event], "{name}");
        assert_eq!(encoded.data, golden, "{name}");
    }
}

/// Format 2: the event kinds that have new fields in it.
fn terse_events() -> [(&'static str, Event); 5] {
    let Event::ExecutionStarted(started) = events().remove(0) else {
        panic!("a history begins with its start");
    };
    let first = Some(FirstAttempt { number: 3, at: at(2) });
    let begun = |input, first| Event::StepStarted {
        path: "lines[3].reserve".into(),
        generation: 2,
        input,
        first,
    };
    [
        (
            "execution_started",
            Event::ExecutionStarted(Box::new(ExecutionStarted { format: 2, ..*started })),
        ),
        ("step_started", begun(PayloadSource::Inline(payload()), first)),
        ("step_started_with_the_input_of_the_execution", begun(PayloadSource::Input, None)),
        ("step_started_with_an_output", begun(PayloadSource::Output("charge".into()), first)),
        ("run_succeeded", Event::RunSucceeded { output: PayloadSource::Output("charge".into()) }),
    ]
}

#[test]
fn events_of_format_2_match_their_golden_files() {
    for (name, event) in terse_events() {
        let encoded = format::encode_transition(DECIDED_AT, std::slice::from_ref(&event));
        assert_eq!(encoded.format, 2, "{name}");
        let golden = golden_of(2, name, &encoded.data);
        let decoded = format::decode_transition(2, &golden).expect(name);
        assert_eq!(decoded.events, [event], "{name}");
        assert_eq!(encoded.data, golden, "{name}: the encoding has changed");
    }
}

/// Format 3: the event kinds that it added.
fn blocks() -> Vec<(&'static str, Event)> {
    let path = || "lines[3].reserve".into();
    let started = |part| Event::BlockStarted { path: path(), generation: 2, part, deadline: None };
    vec![
        ("block_started", started(None)),
        ("block_started_with_its_body", started(Some(Part::Body))),
        ("block_started_with_a_case", started(Some(Part::Case(1)))),
        ("block_started_with_its_default", started(Some(Part::Default))),
        ("block_started_with_a_handler", started(Some(Part::Handler(2)))),
        (
            "block_completed",
            Event::BlockCompleted { path: path(), output: PayloadSource::Inline(payload()) },
        ),
        (
            "scope_returned",
            Event::ScopeReturned { path: path(), output: PayloadSource::Output("charge".into()) },
        ),
        (
            "handler_started",
            Event::HandlerStarted {
                path: path(),
                handler: 1,
                error: error(),
                origin: "lines[3].reserve.check".into(),
            },
        ),
        ("step_caught", Event::StepCaught { path: path(), output: PayloadSource::Input }),
        ("on_failure_started", Event::OnFailureStarted { cleanup_deadline: Some(at(600)) }),
    ]
}

/// Format 3: branches, steps that are stopped, and errors beside other ones.
fn branches() -> Vec<(&'static str, Event)> {
    let path = || "fan".into();
    let stopped = |error| Event::BlockStopped { path: path(), error, grace_until: at(10) };
    vec![
        (
            "block_started_with_a_deadline",
            Event::BlockStarted {
                path: path(),
                generation: 2,
                part: Some(Part::Body),
                deadline: Some(at(60)),
            },
        ),
        (
            "parallel_started",
            Event::ParallelStarted {
                path: path(),
                generation: 2,
                ready: vec!["left".into(), "right".into()],
                concurrency: Some(1),
                deadline: Some(at(60)),
            },
        ),
        (
            "parallel_started_without_limits",
            Event::ParallelStarted {
                path: path(),
                generation: 0,
                ready: vec!["left".into()],
                concurrency: None,
                deadline: None,
            },
        ),
        (
            "branch_completed",
            Event::BranchCompleted {
                path: path(),
                branch: "left".into(),
                output: PayloadSource::Inline(payload()),
                ready: vec!["last".into()],
            },
        ),
        (
            "branch_completed_with_the_output_of_a_step",
            Event::BranchCompleted {
                path: path(),
                branch: "left".into(),
                output: PayloadSource::Output("fan[left].reserve".into()),
                ready: Vec::new(),
            },
        ),
        (
            "branch_failed",
            Event::BranchFailed {
                path: path(),
                branch: "left".into(),
                error: error(),
                origin: "fan[left].reserve".into(),
            },
        ),
        ("parallel_completed", Event::ParallelCompleted { path: path() }),
        ("block_stopped", stopped(Some(error()))),
        ("block_stopped_by_a_branch", stopped(None)),
        (
            "step_failed_with_suppressed_errors",
            Event::StepFailed { path: path(), error: with_suppressed() },
        ),
    ]
}

/// Format 3: the items of a `for_each`.
fn items() -> Vec<(&'static str, Event)> {
    let path = || "lines".into();
    let list = Payload::json(r#"[{"sku":"a/1"},{"sku":"b"}]"#);
    let begins = |items, keys, deadline| Event::LoopStarted {
        path: path(),
        generation: 1,
        items,
        keys,
        concurrency: 4,
        deadline,
    };
    let keys = Some(vec!["a/1".into(), "b".into()]);
    let completed = |output| Event::ItemCompleted { path: path(), item: "a/1".into(), output };
    vec![
        ("loop_started", begins(PayloadSource::Inline(list), keys, Some(at(60)))),
        ("loop_started_on_the_input", begins(PayloadSource::Input, None, None)),
        (
            "loop_started_on_the_output_of_a_step",
            begins(PayloadSource::Output("pick".into()), Some(Vec::new()), None),
        ),
        ("item_completed", completed(PayloadSource::Inline(payload()))),
        (
            "item_completed_with_the_output_of_a_step",
            completed(PayloadSource::Output("lines[a%2F1].pack".into())),
        ),
        (
            "item_failed",
            Event::ItemFailed {
                path: path(),
                item: "b".into(),
                error: error(),
                origin: "lines[b].pack".into(),
            },
        ),
        ("loop_completed", Event::LoopCompleted { path: path() }),
    ]
}

fn with_suppressed() -> TaskError {
    let other = |step: &str, message: &str| Suppressed {
        step: step.into(),
        error_type: "stock.empty".into(),
        message: message.into(),
    };
    let suppressed = vec![other("fan[right].pick", "none left"), other("fan[last].pack", "")];
    TaskError { suppressed, ..error() }
}

#[test]
fn events_of_format_3_match_their_golden_files() {
    for (name, event) in blocks().into_iter().chain(branches()).chain(items()) {
        let encoded = format::encode_transition(DECIDED_AT, std::slice::from_ref(&event));
        assert_eq!(encoded.format, 3, "{name}");
        let golden = golden_of(3, name, &encoded.data);
        let decoded = format::decode_transition(3, &golden).expect(name);
        assert_eq!(decoded.events, [event], "{name}");
        assert_eq!(encoded.data, golden, "{name}: the encoding has changed");
    }
}

#[test]
fn failure_event_with_suppressed_errors_matches_its_golden_file() {
    let event = FailureEvent { error: Some(with_suppressed()), ..failure_event() };
    let encoded = format::encode_failure_event(&event);
    assert_eq!(encoded.format, 2);
    let golden = golden_of(2, "failure_event_with_suppressed_errors", &encoded.data);
    assert_eq!(format::decode_failure_event(2, &golden), Ok(event));
    assert_eq!(encoded.data, golden);
}

#[test]
fn failure_event_and_subscription_of_format_2_match_their_golden_files() {
    let event = FailureEvent { kind: FailureKind::StepCaught, ..failure_event() };
    let encoded = format::encode_failure_event(&event);
    assert_eq!(encoded.format, 2);
    let golden = golden_of(2, "failure_event", &encoded.data);
    assert_eq!(format::decode_failure_event(2, &golden), Ok(event));
    assert_eq!(encoded.data, golden);

    let mut subscription = subscription();
    subscription.filter.kinds.push(FailureKind::StepCaught);
    let encoded = format::encode_subscription(&subscription);
    assert_eq!(encoded.format, 2);
    let golden = golden_of(2, "subscription", &encoded.data);
    assert_eq!(format::decode_subscription(2, &golden), Ok(subscription));
    assert_eq!(encoded.data, golden);
}

#[test]
fn failure_event_of_format_1_matches_its_golden_file() {
    let event = failure_event();
    let encoded = format::encode_failure_event(&event);
    assert_eq!(encoded.format, 1);
    let golden = golden("failure_event", &encoded.data);
    assert_eq!(format::decode_failure_event(1, &golden), Ok(event));
    assert_eq!(encoded.data, golden);
}

#[test]
fn definition_of_format_1_matches_its_golden_file() {
    let workflow = workflow();
    let encoded = format::encode_workflow(&workflow);
    assert_eq!(encoded.format, 1);
    let golden = golden("workflow", &encoded.data);
    assert_eq!(format::decode_workflow(1, &golden), Ok(workflow));
    assert_eq!(encoded.data, golden);
}

#[test]
fn subscription_of_format_1_matches_its_golden_file() {
    let subscription = subscription();
    let encoded = format::encode_subscription(&subscription);
    assert_eq!(encoded.format, 1);
    let golden = golden("subscription", &encoded.data);
    assert_eq!(format::decode_subscription(1, &golden), Ok(subscription));
    assert_eq!(encoded.data, golden);
}

#[test]
fn registry_answers_of_format_1_match_their_golden_files() {
    let namespace = NamespaceRow {
        name: "company.team".into(),
        description: "ours".into(),
        retention: Duration::new(86_400, 5),
        created_at: DECIDED_AT,
    };
    let subscription = SubscriptionRow {
        namespace: "company.team".into(),
        name: "pager".into(),
        version: 3,
        format: 1,
        state: Bytes::from_static(b"\x00\xffstate"),
        created_at: DECIDED_AT,
    };
    let registered =
        RegistryAnswer::WorkflowRegistered { name: "order".into(), version: 7, is_new: true };
    for (name, answer) in [
        ("namespace_created", RegistryAnswer::NamespaceCreated(namespace)),
        ("workflow_registered", registered),
        ("workflow_retired", RegistryAnswer::WorkflowRetired { retired_at: DECIDED_AT }),
        ("subscription_created", RegistryAnswer::SubscriptionCreated(subscription)),
        ("subscription_deleted", RegistryAnswer::SubscriptionDeleted),
    ] {
        let encoded = format::encode_registry_answer(&answer);
        assert_eq!(encoded.format, 1, "{name}");
        let golden = golden(name, &encoded.data);
        assert_eq!(format::decode_registry_answer(1, &golden), Ok(answer), "{name}");
        assert_eq!(encoded.data, golden, "{name}");
    }
}
