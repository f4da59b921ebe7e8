//! Shows that the checks of the kill test can fail: each finds the one violation in evidence that is otherwise
//! correct.

use std::collections::{BTreeMap, BTreeSet};

use recoup_end_to_end::connect;
use recoup_end_to_end::invariants::{Evidence, Violations};
use recoup_end_to_end::load::Started;
use recoup_end_to_end::order::Fate;
use recoup_end_to_end::record::{Attempt, Entry};
use recoup_end_to_end::subscriber::Received;
use recoup_proto::v1;
use recoup_proto::v1::history_entry::Event;
use serde_json::json;

const ID: &str = "execution";

fn step(step_path: &str, compensation: bool) -> Option<v1::StepRef> {
    Some(v1::StepRef { step_path: step_path.into(), compensation })
}

fn scheduled(path: &str, compensation: bool, attempt: u32) -> Event {
    let step = step(path, compensation);
    Event::AttemptScheduled(v1::AttemptScheduled { step, attempt, ..Default::default() })
}

fn completed(path: &str, compensation: bool) -> Event {
    Event::StepCompleted(v1::StepCompleted {
        step: step(path, compensation),
        attempt: 1,
        output: Some(connect::json(&json!({"mark": mark(path, compensation), "by": "w"}))),
        worker: "w".into(),
    })
}

fn mark(path: &str, compensation: bool) -> String {
    format!("{path}-{compensation}")
}

fn due(path: &str) -> v1::DueCompensation {
    let outcome = v1::StepOutcome::Completed.into();
    v1::DueCompensation { step_path: path.into(), outcome }
}

fn attempt(path: &str, compensation: bool) -> Attempt {
    Attempt { execution: ID.into(), step: path.into(), compensation, number: 1 }
}

fn event(sequence: u64, index: usize) -> v1::FailureEvent {
    v1::FailureEvent {
        id: format!("{ID}-{sequence}-{index}"),
        execution_id: ID.into(),
        history_sequence: sequence,
        ..Default::default()
    }
}

/// The evidence of an order that cannot be shipped: the charge and the reservation are undone.
fn evidence() -> Evidence {
    let (refused, ended) = (v1::StepFailed::default(), v1::ExecutionState::Failed);
    let transitions = vec![
        vec![Event::ExecutionStarted(Default::default()), scheduled("reserve", false, 1)],
        vec![completed("reserve", false), scheduled("charge", false, 1)],
        vec![completed("charge", false), scheduled("ship", false, 1)],
        vec![
            Event::StepFailed(v1::StepFailed { step: step("ship", false), ..refused }),
            Event::CompensationStarted(v1::CompensationStarted {
                due: vec![due("charge"), due("reserve")],
                ..Default::default()
            }),
            scheduled("charge", true, 1),
        ],
        vec![completed("charge", true), scheduled("reserve", true, 1)],
        vec![
            completed("reserve", true),
            Event::CompensationEnded(v1::CompensationEnded {
                state: v1::CompensationState::Done.into(),
            }),
            Event::ExecutionEnded(v1::ExecutionEnded { state: ended.into(), ..Default::default() }),
        ],
    ];
    let entries = (1..).zip(transitions).flat_map(|(sequence, events)| {
        (0..).zip(events).map(move |(index, event)| v1::HistoryEntry {
            sequence,
            index,
            event: Some(event),
            ..Default::default()
        })
    });
    let histories = BTreeMap::from([(ID.to_owned(), entries.collect())]);
    let tasks = [("reserve", false), ("charge", false), ("charge", true), ("reserve", true)];
    let mut record = Vec::new();
    for (path, compensation) in tasks {
        let attempt = attempt(path, compensation);
        let idempotency_key = mark(path, compensation);
        record.push(Entry::Begun { attempt: attempt.clone(), idempotency_key });
        record.push(Entry::Completed { attempt, mark: mark(path, compensation) });
    }
    let events = vec![event(4, 0), event(4, 1), event(6, 0), event(6, 1)];
    let listed = events.iter().map(|event| event.id.clone()).collect::<BTreeSet<_>>();
    let info = v1::ExecutionInfo {
        execution_id: ID.into(),
        state: ended.into(),
        compensation_state: v1::CompensationState::Done.into(),
        ..Default::default()
    };
    Evidence {
        started: vec![Started {
            order: 5,
            fate: Fate::Refused,
            execution: ID.into(),
            end: Some(ended),
        }],
        executions: vec![info],
        histories,
        records: BTreeMap::from([("w".to_owned(), record)]),
        received: Received { events, ..Default::default() },
        listed,
    }
}

fn violations(break_it: impl FnOnce(&mut Evidence)) -> Vec<String> {
    let mut evidence = evidence();
    break_it(&mut evidence);
    let mut violations = Violations::default();
    evidence.check(&mut violations);
    violations.found().to_vec()
}

/// Removes the first event of the history that matches.
fn without(evidence: &mut Evidence, chosen: impl Fn(&Event) -> bool) {
    let history = evidence.histories.get_mut(ID).expect("it is there");
    let found = history.iter().position(|entry| entry.event.as_ref().is_some_and(&chosen));
    history.remove(found.expect("it is there"));
}

#[test]
fn correct_evidence_has_no_violations() {
    assert_eq!(violations(|_| {}), Vec::<String>::new());
}

#[test]
fn every_kind_of_violation_is_found() {
    type Break = fn(&mut Evidence);
    let cases: [(&str, Break); 18] = [
        ("acknowledged, it is not there", |e| e.executions.clear()),
        ("no order was acknowledged", |e| e.started.clear()),
        ("ended as []", |e| without(e, |event| matches!(event, Event::ExecutionEnded(_)))),
        ("Plain ended as", |e| e.started[0].fate = Fate::Plain),
        ("was answered", |e| e.started[0].end = Some(v1::ExecutionState::Succeeded)),
        ("undone is", |e| without(e, |event| *event == completed("reserve", true))),
        ("due is", |e| without(e, |event| matches!(event, Event::CompensationStarted(_)))),
        ("has 2 results", |e| twice(e, completed("charge", false))),
        ("was scheduled twice", |e| twice(e, scheduled("charge", false, 1))),
        ("one too many", |e| twice(e, scheduled("charge", false, 9))),
        ("was acknowledged with", |e| {
            record(e, Entry::Completed { attempt: attempt("ship", false), mark: "lost".into() });
        }),
        ("is not in the history", |e| {
            let error_type = "payment.unreachable".into();
            record(e, Entry::Failed { attempt: attempt("charge", false), error_type });
        }),
        ("another had", |e| {
            let idempotency_key = "another".into();
            record(e, Entry::Begun { attempt: attempt("charge", false), idempotency_key });
        }),
        ("never received", |e| drop(e.received.events.remove(1))),
        ("received, in no history", |e| {
            e.received.events.push(event(9, 0));
            e.listed.insert(event(9, 0).id);
        }),
        ("out of order", |e| e.received.events.reverse()),
        // Only a worker that uses unary calls may be missing from the history.
        ("was completed by w, not other", |e| by(e, "other")),
        ("was completed by w, not ", |e| by(e, "")),
    ];
    for (wanted, break_it) in cases {
        let found = violations(break_it);
        let is_found = found.iter().any(|violation| violation.contains(wanted));
        assert!(is_found, "{wanted}: {found:#?}");
    }
}

fn twice(evidence: &mut Evidence, event: Event) {
    let history = evidence.histories.get_mut(ID).expect("it is there");
    let last = history.last().expect("it is not empty");
    let (sequence, index) = (last.sequence, last.index + 1);
    let event = Some(event);
    history.push(v1::HistoryEntry { sequence, index, event, ..Default::default() });
}

/// Replaces the worker in the first completion.
fn by(evidence: &mut Evidence, worker: &str) {
    let history = evidence.histories.get_mut(ID).expect("it is there");
    let done = history.iter_mut().find_map(|entry| match &mut entry.event {
        Some(Event::StepCompleted(done)) => Some(done),
        _ => None,
    });
    done.expect("it is there").worker = worker.to_owned();
}

fn record(evidence: &mut Evidence, entry: Entry) {
    evidence.records.get_mut("w").expect("it is there").push(entry);
}
