//! Converts failure events. Large contents become references that can be read until retention deletes them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use recoup_core::failure_event::{FailureEvent, FailureKind, Subject};
use recoup_core::subscription::{Filter, Gap};
use recoup_core::time::Timestamp;
use recoup_proto::v1;
use sha2::{Digest, Sha256};

use super::enumeration::all_known;
use super::inline::{Inline, Place};
use super::path::split;
use super::{decision, execution, text, time};
use crate::status::{Error, Result};

/// The most bytes of error and payloads in one event. Anything beyond becomes a reference.
pub const INLINE_BYTES_MAX: usize = 256 * 1024;
/// The most workflows, and the most patterns of error types, in one filter.
const FILTER_ENTRIES_MAX: usize = 100;

super::to_proto!(kind: FailureKind => v1::FailureKind:
    AttemptFailed StepFailed StepIgnored StepCaught
    ExecutionFailed ExecutionTimedOut ExecutionWarning ExecutionCancelled ExecutionTerminated
    CompensationStarted CompensationDone CompensationParked
    HandlerFailed WorkerLost QueueUnserved DeliveryFailed Recovered FeedGap
    ExecutionQuarantined);
super::from_proto!(kind_from: v1::FailureKind => FailureKind:
    AttemptFailed StepFailed StepIgnored StepCaught
    ExecutionFailed ExecutionTimedOut ExecutionWarning ExecutionCancelled ExecutionTerminated
    CompensationStarted CompensationDone CompensationParked
    HandlerFailed WorkerLost QueueUnserved DeliveryFailed Recovered FeedGap
    ExecutionQuarantined);

/// Converts an event. Also returns the approximate size of its message in bytes.
pub fn to_proto(event: &FailureEvent) -> (v1::FailureEvent, usize) {
    let place = event
        .subject
        .as_ref()
        .map(|subject| Place { execution: subject.execution, sequence: subject.sequence });
    // Even at the limits, references of 1,000 steps together with this stay far below the size of a
    // message.
    let mut inline = Inline::new(INLINE_BYTES_MAX, place);
    let mut proto = v1::FailureEvent {
        id: event.id.clone(),
        kind: kind(event.kind).into(),
        time: Some(time::timestamp(event.at)),
        namespace: event.namespace.as_str().to_owned(),
        error: event.error.as_ref().map(|own| inline.error(own)),
        fingerprint: event.fingerprint.clone(),
        worker: event.worker.clone(),
        session_id: event.session.clone(),
        ..v1::FailureEvent::default()
    };
    if let Some(subject) = &event.subject {
        about(&mut proto, subject, &mut inline);
    }
    let size = prost::Message::encoded_len(&proto);
    (proto, size)
}

fn about(proto: &mut v1::FailureEvent, subject: &Subject, inline: &mut Inline) {
    proto.workflow = subject.workflow.as_str().to_owned();
    proto.workflow_version = subject.version;
    proto.execution_id = subject.execution.to_string();
    proto.execution_key = subject.key.clone().unwrap_or_default();
    proto.run = subject.run;
    if let Some(step) = &subject.step {
        (proto.step_path, proto.compensation) = split(step);
    }
    proto.attempt = subject.attempt;
    proto.max_attempts = subject.max_attempts.unwrap_or(0);
    proto.r#final = subject.is_final;
    proto.decision = subject.decision.as_ref().map(decision::to_proto);
    proto.state = execution::state(subject.state).into();
    proto.compensation_state = execution::compensation_state(subject.compensation).into();
    let completed = subject.completed.iter().map(|step| v1::CompletedStep {
        step_path: step.step.as_str().to_owned(),
        outcome: execution::step_outcome(step.outcome).into(),
        output: step.output.as_ref().map(|output| inline.payload(output)),
        compensated: step.compensated,
    });
    proto.completed_steps = completed.collect();
    proto.history_sequence = subject.sequence;
    proto.traceparent = subject.trace.traceparent.clone();
    proto.tracestate = subject.trace.tracestate.clone();
    proto.links = vec![v1::FailureLink {
        relation: "execution".into(),
        target: subject.execution.to_string(),
    }];
}

/// The event that replaces events on the feed that retention has deleted.
pub fn gap(gap: &Gap, at: Timestamp) -> v1::FailureEvent {
    v1::FailureEvent {
        id: gap_id(gap),
        kind: v1::FailureKind::FeedGap.into(),
        time: Some(time::timestamp(at)),
        gap: Some(v1::FeedGap {
            from_cursor: gap.from.clone(),
            to_cursor: gap.to.clone(),
            events: gap.events,
            reason: "retention deleted events between these cursors before they were read".into(),
        }),
        ..v1::FailureEvent::default()
    }
}

/// The id of a gap event. The same gap always has the same id.
pub fn gap_id(gap: &Gap) -> String {
    let digest = Sha256::digest(format!("{} {}", gap.from, gap.to));
    format!("gap-{}", URL_SAFE_NO_PAD.encode(&digest[..12]))
}

pub fn filter_from(filter: Option<v1::FailureFilter>, field: &str) -> Result<Filter> {
    let filter = filter.unwrap_or_default();
    let bounded = |list: &[String], name: &str, bytes_max: usize| {
        let is_within = list.len() <= FILTER_ENTRIES_MAX
            && list.iter().all(|entry| !entry.is_empty() && entry.len() <= bytes_max);
        let message = format!(
            "must have at most {FILTER_ENTRIES_MAX} entries, each of 1 to {bytes_max} bytes"
        );
        if is_within { Ok(()) } else { Err(Error::invalid(format!("{field}.{name}"), message)) }
    };
    bounded(&filter.workflows, "workflows", recoup_core::limits::NAME_BYTES_MAX)?;
    bounded(&filter.error_types, "error_types", recoup_core::limits::ERROR_TYPE_BYTES_MAX)?;
    for (index, pattern) in filter.error_types.iter().enumerate() {
        text::error_type_pattern(pattern, &format!("{field}.error_types[{index}]"))?;
    }
    let mut kinds = Vec::new();
    for own in all_known(&filter.kinds, &format!("{field}.kinds"), kind_from)? {
        if !kinds.contains(&own) {
            kinds.push(own);
        }
    }
    Ok(Filter {
        namespace: text::namespace_pattern(&filter.namespace, &format!("{field}.namespace"))?,
        workflows: filter.workflows,
        kinds,
        error_types: filter.error_types,
    })
}

pub fn filter(filter: &Filter) -> v1::FailureFilter {
    v1::FailureFilter {
        namespace: filter.namespace.clone(),
        workflows: filter.workflows.clone(),
        kinds: filter.kinds.iter().map(|own| kind(*own).into()).collect(),
        error_types: filter.error_types.clone(),
    }
}

/// Decodes a stored event. If it cannot be read, the error names it. An event that a newer server wrote
/// gives UNAVAILABLE, and the reader's cursor stays before it; any other is a defect.
pub fn stored(row: &recoup_store::FeedRow) -> Result<FailureEvent> {
    recoup_store::format::decode_failure_event(row.format, &row.data)
        .map_err(|error| Error::unreadable(&row.id, &error))
}

#[cfg(test)]
mod tests {
    use recoup_core::error::TaskError;
    use recoup_core::execution::{CompensationOutcome, CompensationState, State, TraceContext};
    use recoup_core::failure_event::CompletedStep;
    use recoup_core::id::ExecutionId;
    use recoup_core::payload::Payload;
    use recoup_proto::v1::payload::Content;
    use uuid::Uuid;

    use super::super::inline::PayloadId;
    use super::super::payload;
    use super::*;

    fn event(outputs: &[usize]) -> FailureEvent {
        let completed = outputs.iter().enumerate().map(|(index, bytes)| CompletedStep {
            step: format!("s{index}").into(),
            outcome: CompensationOutcome::Completed,
            output: Some(Payload::json("1".repeat(*bytes))),
            compensated: false,
        });
        let subject = Subject {
            execution: ExecutionId(Uuid::from_u128(3)),
            key: None,
            workflow: "order".into(),
            version: 1,
            run: 1,
            step: Some("pay/compensate".into()),
            attempt: 2,
            max_attempts: None,
            is_final: true,
            decision: None,
            state: State::Failed,
            compensation: CompensationState::Parked,
            completed: completed.collect(),
            sequence: 9,
            trace: TraceContext::default(),
        };
        FailureEvent {
            id: "e".into(),
            kind: FailureKind::ExecutionFailed,
            at: Timestamp::from_micros(1),
            namespace: "default".into(),
            subject: Some(subject),
            worker: String::new(),
            session: String::new(),
            error: Some(TaskError::new("a.b", "text")),
            fingerprint: "f".into(),
        }
    }

    #[test]
    fn payloads_are_inline_up_to_the_limit_and_references_beyond() {
        let (proto, size) = to_proto(&event(&[INLINE_BYTES_MAX - 1_000, 2_000, 10]));
        let contents: Vec<_> = proto
            .completed_steps
            .iter()
            .map(|step| step.output.clone().and_then(|output| output.content).expect("an output"))
            .collect();
        assert!(matches!(contents[0], Content::Json(_)));
        assert!(matches!(contents[2], Content::Json(_)), "payloads that fit are inline");
        let Content::Reference(reference) = &contents[1] else { panic!("{:?}", contents[1]) };
        assert_eq!(reference.size_bytes, 2_000);
        let id = PayloadId::decode(&reference.payload_id).expect("own id");
        assert_eq!((id.execution.0.as_u128(), id.sequence), (3, 9));
        assert!(id.is_of(&Payload::json("1".repeat(2_000))));
        assert!(size < INLINE_BYTES_MAX + 4096);
        assert_eq!((proto.step_path.as_str(), proto.compensation), ("pay", true));
    }

    #[test]
    fn an_event_at_every_limit_fits_into_a_message() {
        let mut event = event(&[10_000; 1_000]);
        let subject = event.subject.as_mut().expect("it has one");
        for step in &mut subject.completed {
            let output = step.output.as_mut().expect("it completed");
            output.content_type = "x".repeat(payload::CONTENT_TYPE_BYTES_MAX);
            let names = (0..payload::METADATA_ENTRIES_MAX).map(|n| format!("{n:0128}"));
            output.metadata = names.map(|name| (name, "v".repeat(1_024))).collect();
            step.step = "s".repeat(recoup_core::limits::STEP_ID_BYTES_MAX).into();
        }
        let message = "m".repeat(recoup_core::limits::ERROR_BYTES_MAX);
        event.error = Some(TaskError::new("a.b", message.clone()));
        let (proto, size) = to_proto(&event);
        assert!(size <= crate::BATCH_BYTES_MAX / 2, "{size}");
        assert_eq!(proto.error.expect("it has one").message, message);
    }

    #[test]
    fn invalid_failure_filter_names_the_wrong_field() {
        let wrong = |filter: v1::FailureFilter| {
            let error = filter_from(Some(filter), "filter").expect_err("it is wrong");
            error.violations[0].field.clone()
        };
        let base = v1::FailureFilter::default;
        assert_eq!(wrong(v1::FailureFilter { kinds: vec![2, 99], ..base() }), "filter.kinds[1]");
        assert_eq!(wrong(v1::FailureFilter { kinds: vec![0], ..base() }), "filter.kinds[0]");
        let many = vec!["w".to_owned(); 101];
        assert_eq!(wrong(v1::FailureFilter { workflows: many, ..base() }), "filter.workflows");
        let namespace = "A".to_owned();
        assert_eq!(wrong(v1::FailureFilter { namespace, ..base() }), "filter.namespace");
        assert_eq!(filter_from(None, "filter").expect("the default").namespace, "default");
    }
}
