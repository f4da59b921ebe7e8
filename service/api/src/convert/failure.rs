//! Failure events. What is large becomes a reference that can be read until retention.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use recoup_core::error::Error as AttemptError;
use recoup_core::failure_event::{FailureEvent, FailureKind, Subject};
use recoup_core::id::ExecutionId;
use recoup_core::payload::Payload;
use recoup_core::subscription::{Filter, Gap};
use recoup_core::time::Timestamp;
use recoup_proto::v1::{self, ErrorReason, payload::Content};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::event::split;
use super::{decision, error, execution, payload, text, time};
use crate::status::{Error, Result};

/// Bytes of payloads in one event; what is beyond is a reference.
pub const INLINE_BYTES_MAX: usize = 256 * 1024;
/// Workflows, and patterns of error types, in one filter.
const FILTER_ENTRIES_MAX: usize = 100;
const ID_VERSION: u8 = 1;

super::to_proto!(kind: FailureKind => v1::FailureKind:
    AttemptFailed StepFailed StepIgnored
    ExecutionFailed ExecutionTimedOut ExecutionWarning ExecutionCancelled ExecutionTerminated
    CompensationStarted CompensationDone CompensationParked
    HandlerFailed WorkerLost QueueUnserved DeliveryFailed Recovered FeedGap
    ExecutionQuarantined);
super::from_proto!(kind_from: v1::FailureKind => FailureKind:
    AttemptFailed StepFailed StepIgnored
    ExecutionFailed ExecutionTimedOut ExecutionWarning ExecutionCancelled ExecutionTerminated
    CompensationStarted CompensationDone CompensationParked
    HandlerFailed WorkerLost QueueUnserved DeliveryFailed Recovered FeedGap
    ExecutionQuarantined);

/// Names the content of a payload: where in which history it stands, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadId {
    pub execution: ExecutionId,
    /// It stands in a transition up to this one.
    pub sequence: u64,
    pub size: u64,
    pub sha256: [u8; 32],
}

impl PayloadId {
    pub fn encode(&self) -> String {
        let mut bytes = vec![ID_VERSION];
        bytes.extend_from_slice(self.execution.0.as_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.size.to_be_bytes());
        bytes.extend_from_slice(&self.sha256);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    pub fn decode(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (&version, bytes) = bytes.split_first()?;
        let (execution, bytes) = bytes.split_first_chunk::<16>()?;
        let (sequence, bytes) = bytes.split_first_chunk::<8>()?;
        let (size, bytes) = bytes.split_first_chunk::<8>()?;
        let sha256 = <[u8; 32]>::try_from(bytes).ok()?;
        (version == ID_VERSION).then(|| Self {
            execution: ExecutionId(Uuid::from_bytes(*execution)),
            sequence: u64::from_be_bytes(*sequence),
            size: u64::from_be_bytes(*size),
            sha256,
        })
    }

    /// Whether it names this payload.
    pub fn is_of(&self, payload: &Payload) -> bool {
        payload.data.len() as u64 == self.size
            && <[u8; 32]>::from(Sha256::digest(&payload.data)) == self.sha256
    }
}

/// Puts payloads into one message as long as there is room, references after that.
struct Inline<'a> {
    room: usize,
    subject: Option<&'a Subject>,
}

impl Inline<'_> {
    fn payload(&mut self, own: &Payload) -> v1::Payload {
        let (Some(subject), false) = (self.subject, own.size() <= self.room) else {
            self.room = self.room.saturating_sub(own.size());
            return payload::to_proto(own);
        };
        let id = PayloadId {
            execution: subject.execution,
            sequence: subject.sequence,
            size: own.data.len() as u64,
            sha256: Sha256::digest(&own.data).into(),
        };
        let reference = v1::PayloadReference {
            payload_id: id.encode(),
            size_bytes: id.size,
            sha256: id.sha256.to_vec().into(),
        };
        v1::Payload {
            content: Some(Content::Reference(reference)),
            content_type: own.content_type.clone(),
            metadata: own.metadata.clone(),
        }
    }

    fn error(&mut self, own: &AttemptError) -> v1::Error {
        let details = own.details.as_ref().map(|details| self.payload(details));
        let cause = own.cause.as_deref().map(|cause| Box::new(self.error(cause)));
        let shell = AttemptError { details: None, cause: None, ..own.clone() };
        v1::Error { details, cause, ..error::to_proto(&shell) }
    }
}

/// An event, and about how many bytes its message has.
pub fn to_proto(event: &FailureEvent) -> (v1::FailureEvent, usize) {
    let mut inline = Inline { room: INLINE_BYTES_MAX, subject: event.subject.as_ref() };
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

fn about(proto: &mut v1::FailureEvent, subject: &Subject, inline: &mut Inline<'_>) {
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

/// Stands on the feed for events that are no longer there.
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

/// The same for the same gap.
pub fn gap_id(gap: &Gap) -> String {
    let digest = Sha256::digest(format!("{} {}", gap.from, gap.to));
    format!("gap-{}", URL_SAFE_NO_PAD.encode(&digest[..12]))
}

pub fn filter_from(filter: Option<v1::FailureFilter>, field: &str) -> Result<Filter> {
    let filter = filter.unwrap_or_default();
    let bounded = |list: &[String], name: &str, bytes_max: usize| {
        let is_within = list.len() <= FILTER_ENTRIES_MAX
            && list.iter().all(|entry| !entry.is_empty() && entry.len() <= bytes_max);
        let message = format!("at most {FILTER_ENTRIES_MAX} entries of 1 to {bytes_max} bytes");
        if is_within { Ok(()) } else { Err(Error::invalid(format!("{field}.{name}"), message)) }
    };
    bounded(&filter.workflows, "workflows", recoup_core::limits::NAME_BYTES_MAX)?;
    bounded(&filter.error_types, "error_types", recoup_core::limits::ERROR_TYPE_BYTES_MAX)?;
    for (index, pattern) in filter.error_types.iter().enumerate() {
        text::error_type_pattern(pattern, &format!("{field}.error_types[{index}]"))?;
    }
    let mut kinds = Vec::new();
    for (index, number) in filter.kinds.iter().enumerate() {
        let known = v1::FailureKind::try_from(*number);
        let own = known.ok().and_then(kind_from).ok_or_else(|| {
            let path = format!("{field}.kinds[{index}]");
            Error::invalid(path, format!("{number} is not a known kind"))
        })?;
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

/// A stored event that cannot be read is a defect, and named.
pub fn stored(row: &recoup_store::FeedRow) -> Result<FailureEvent> {
    recoup_store::format::decode_failure_event(row.format, &row.data).map_err(|error| Error {
        reason: ErrorReason::Internal,
        ..Error::internal(&row.id, &error)
    })
}

#[cfg(test)]
mod tests {
    use recoup_core::execution::{CompensationOutcome, CompensationState, State, TraceContext};
    use recoup_core::failure_event::CompletedStep;

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
            error: Some(AttemptError::new("a.b", "text")),
            fingerprint: "f".into(),
        }
    }

    #[test]
    fn payloads_are_inline_up_to_the_limit_and_references_beyond() {
        let (proto, size) = to_proto(&event(&[INLINE_BYTES_MAX - 10, 11, 10]));
        let contents: Vec<_> = proto
            .completed_steps
            .iter()
            .map(|step| step.output.clone().and_then(|output| output.content).expect("an output"))
            .collect();
        assert!(matches!(contents[0], Content::Json(_)));
        assert!(matches!(contents[2], Content::Json(_)), "what fits is inline");
        let Content::Reference(reference) = &contents[1] else { panic!("{:?}", contents[1]) };
        assert_eq!(reference.size_bytes, 11);
        let id = PayloadId::decode(&reference.payload_id).expect("own id");
        assert_eq!((id.execution.0.as_u128(), id.sequence), (3, 9));
        assert!(id.is_of(&Payload::json("1".repeat(11))));
        assert!(!id.is_of(&Payload::json("2".repeat(11))));
        assert!(size < INLINE_BYTES_MAX + 4096);
        assert_eq!((proto.step_path.as_str(), proto.compensation), ("pay", true));
    }

    #[test]
    fn garbage_is_no_payload_id() {
        for text in ["", "AQ", "%%%", &"A".repeat(100)] {
            assert_eq!(PayloadId::decode(text), None, "{text}");
        }
    }

    #[test]
    fn a_filter_names_what_is_wrong_with_it() {
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
