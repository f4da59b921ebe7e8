//! Decides which contents an answer holds inline. A payload that does not fit becomes a reference that
//! ReadPayload resolves until retention deletes the history. An error that does not fit is abridged; the
//! history has all of it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use recoup_core::error::TaskError;
use recoup_core::execution::Output;
use recoup_core::id::ExecutionId;
use recoup_core::limits::PAYLOAD_BYTES_MAX;
use recoup_core::payload::Payload;
use recoup_proto::v1::{self, payload::Content};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{error, payload, time};

const ID_VERSION: u8 = 2;
/// The size of the digest of annotations in an id, in bytes.
const ANNOTATIONS_BYTES: usize = 8;
/// The most bytes that a reference takes without its content type: id, size and digest.
const REFERENCE_BYTES: usize = 192;
/// The length to which the message of an abridged error is cut, in bytes.
const EXCERPT_BYTES_MAX: usize = 256;
/// Bytes of the fields around the texts of one error in a chain.
const ERROR_FRAME_BYTES: usize = 64;
/// Bytes of the fields around the texts of one suppressed error.
const SUPPRESSED_FRAME_BYTES: usize = 16;

/// Identifies a payload: the history that contains it, and its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadId {
    pub execution: ExecutionId,
    /// The payload is in a transition up to this sequence number.
    pub sequence: u64,
    pub size: u64,
    pub sha256: [u8; 32],
    /// Digest of content type and metadata. Distinguishes equal contents with different annotations.
    annotations: [u8; ANNOTATIONS_BYTES],
}

impl PayloadId {
    pub fn of(place: Place, payload: &Payload) -> Self {
        Self {
            execution: place.execution,
            sequence: place.sequence,
            size: payload.data.len() as u64,
            sha256: Sha256::digest(&payload.data).into(),
            annotations: annotations(payload),
        }
    }

    pub fn encode(&self) -> String {
        let mut bytes = vec![ID_VERSION];
        bytes.extend_from_slice(self.execution.0.as_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.size.to_be_bytes());
        bytes.extend_from_slice(&self.sha256);
        bytes.extend_from_slice(&self.annotations);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    pub fn decode(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (&version, bytes) = bytes.split_first()?;
        let (execution, bytes) = bytes.split_first_chunk::<16>()?;
        let (sequence, bytes) = bytes.split_first_chunk::<8>()?;
        let (size, bytes) = bytes.split_first_chunk::<8>()?;
        let (sha256, bytes) = bytes.split_first_chunk::<32>()?;
        let annotations = <[u8; ANNOTATIONS_BYTES]>::try_from(bytes).ok()?;
        (version == ID_VERSION).then(|| Self {
            execution: ExecutionId(Uuid::from_bytes(*execution)),
            sequence: u64::from_be_bytes(*sequence),
            size: u64::from_be_bytes(*size),
            sha256: *sha256,
            annotations,
        })
    }

    /// Whether this id identifies the payload.
    pub fn is_of(&self, payload: &Payload) -> bool {
        payload.data.len() as u64 == self.size
            && annotations(payload) == self.annotations
            && <[u8; 32]>::from(Sha256::digest(&payload.data)) == self.sha256
    }
}

fn annotations(payload: &Payload) -> [u8; ANNOTATIONS_BYTES] {
    let mut digest = Sha256::new();
    let mut part = |text: &str| {
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text);
    };
    part(&payload.content_type);
    for (name, value) in &payload.metadata {
        part(name);
        part(value);
    }
    let digest: [u8; 32] = digest.finalize().into();
    *digest.first_chunk().expect("a SHA-256 has 32 bytes")
}

/// The history that contains the payloads of an answer, up to a sequence number.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub execution: ExecutionId,
    pub sequence: u64,
}

/// Fills one answer: contents are included in the order in which they come, and small ones are always
/// included.
///
/// `room` is the number of bytes that may be added to an answer in which every payload is a reference and
/// every error is abridged. The caller subtracts [`least_of_payload`] and [`least_of_error`] for each of
/// them beforehand.
pub struct Inline {
    room: usize,
    /// `None` if the payloads are in no history. They are always inline then.
    place: Option<Place>,
}

impl Inline {
    pub fn new(room: usize, place: Option<Place>) -> Self {
        Self { room, place }
    }

    /// Whether there is room for this many more bytes. If so, the room is used up.
    fn takes(&mut self, bytes: usize) -> bool {
        let left = self.room.checked_sub(bytes);
        self.room = left.unwrap_or(self.room);
        left.is_some()
    }

    pub fn payload(&mut self, own: &Payload) -> v1::Payload {
        let more = payload::size(own).saturating_sub(least_of_payload(own));
        let place = self.place;
        match place {
            Some(place) if !self.takes(more) => reference(place, own),
            _ => payload::to_proto(own),
        }
    }

    /// A payload that is in no history. `None` if there is no room for it.
    pub fn transient(&mut self, own: &Payload) -> Option<v1::Payload> {
        self.takes(payload::size(own)).then(|| payload::to_proto(own))
    }

    /// The output of a `parallel` or `for_each`, put together if it is not that of a handler. `None` also if it
    /// is larger than a payload may be, so that nothing can read it.
    pub fn output(&mut self, output: Option<Output<'_>>) -> Option<v1::Payload> {
        match output? {
            Output::Whole(payload) => Some(self.payload(payload)),
            joined => {
                (joined.size() <= PAYLOAD_BYTES_MAX).then(|| self.payload(&joined.to_payload()))
            }
        }
    }

    /// The error with all its texts, and with its details or references to them, if there is room;
    /// otherwise abridged.
    pub fn error(&mut self, own: &TaskError) -> v1::Error {
        let more = whole(own).saturating_sub(least_of_error(own));
        if self.takes(more) { self.whole_error(own) } else { abridged(own) }
    }

    fn whole_error(&mut self, own: &TaskError) -> v1::Error {
        let details = own.details.as_ref().map(|details| self.payload(details));
        let cause = own.cause.as_deref().map(|cause| Box::new(self.whole_error(cause)));
        v1::Error { details, cause, ..error::shell(own) }
    }

    /// A text for people, cut if there is no room for all of it.
    pub fn text(&mut self, own: &str) -> String {
        if own.len() <= EXCERPT_BYTES_MAX || self.takes(own.len() - EXCERPT_BYTES_MAX) {
            return own.to_owned();
        }
        format!("{}… (cut; the history has the whole)", excerpt(own))
    }
}

/// The fewest bytes that a payload takes: as a reference, or inline if it is small.
pub fn least_of_payload(own: &Payload) -> usize {
    payload::size(own).min(REFERENCE_BYTES + own.content_type.len())
}

/// The fewest bytes that the output of a `parallel` or `for_each` takes.
pub fn least_of_output(output: Option<Output<'_>>) -> usize {
    match output {
        None => 0,
        Some(Output::Whole(payload)) => least_of_payload(payload),
        Some(joined) => {
            let content_type = Payload::null().content_type.len();
            (joined.size() + payload::size(&Payload::null())).min(REFERENCE_BYTES + content_type)
        }
    }
}

/// The fewest bytes that an error takes: abridged, or whole if it is small.
pub fn least_of_error(own: &TaskError) -> usize {
    let abridged = ERROR_FRAME_BYTES + own.error_type.len() + own.source.len() + EXCERPT_BYTES_MAX;
    whole(own).min(abridged)
}

/// The fewest bytes that a text takes: cut, or whole if it is short.
pub fn least_of_text(own: &str) -> usize {
    own.len().min(EXCERPT_BYTES_MAX + 64)
}

/// The size of an error with all its texts, and with its details as small as they can be.
fn whole(own: &TaskError) -> usize {
    let one = |error: &TaskError| {
        let texts = [&error.error_type, &error.message, &error.stack_trace, &error.source];
        texts.map(String::len).iter().sum::<usize>()
            + error.suppressed.iter().map(|own| own.size() + SUPPRESSED_FRAME_BYTES).sum::<usize>()
            + error.details.as_ref().map_or(0, least_of_payload)
            + ERROR_FRAME_BYTES
    };
    own.chain().map(one).sum()
}

fn reference(place: Place, own: &Payload) -> v1::Payload {
    let id = PayloadId::of(place, own);
    let reference = v1::PayloadReference {
        payload_id: id.encode(),
        size_bytes: id.size,
        sha256: id.sha256.to_vec().into(),
    };
    v1::Payload {
        content: Some(Content::Reference(reference)),
        content_type: own.content_type.clone(),
        metadata: std::collections::BTreeMap::new(),
    }
}

fn abridged(own: &TaskError) -> v1::Error {
    v1::Error {
        r#type: own.error_type.clone(),
        message: excerpt(&own.message).to_owned(),
        non_retryable: Some(own.is_non_retryable()),
        category: error::category(own.category).into(),
        next_retry_delay: own.next_retry_delay.map(time::duration),
        source: own.source.clone(),
        abridged: true,
        ..v1::Error::default()
    }
}

fn excerpt(text: &str) -> &str {
    let mut end = text.len().min(EXCERPT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use recoup_core::error::Suppressed;

    use super::*;

    const PLACE: Place = Place { execution: ExecutionId(Uuid::from_u128(3)), sequence: 9 };

    fn text(bytes: usize) -> Payload {
        Payload::json("1".repeat(bytes))
    }

    fn is_reference(payload: &v1::Payload) -> bool {
        matches!(payload.content, Some(Content::Reference(_)))
    }

    #[test]
    fn a_payload_is_inline_up_to_the_last_byte_of_room_and_a_reference_beyond() {
        let own = text(10_000);
        let more = payload::size(&own) - least_of_payload(&own);
        let mut exactly = Inline::new(more, Some(PLACE));
        assert!(!is_reference(&exactly.payload(&own)));
        assert!(is_reference(&exactly.payload(&own)), "the room is used up");
        let small = text(REFERENCE_BYTES / 2);
        assert!(!is_reference(&exactly.payload(&small)), "a reference would be larger");
        assert!(is_reference(&Inline::new(more - 1, Some(PLACE)).payload(&own)));
        assert!(!is_reference(&Inline::new(0, None).payload(&own)), "there is nothing to refer to");
    }

    #[test]
    fn reference_is_no_larger_than_estimated() {
        let mut own = text(10_000);
        own.content_type = "x".repeat(255);
        own.metadata.insert("key".into(), "v".repeat(1_024));
        let reference = Inline::new(0, Some(PLACE)).payload(&own);
        let bytes = prost::Message::encoded_len(&reference);
        assert!(is_reference(&reference) && bytes <= least_of_payload(&own), "{bytes}");
    }

    #[test]
    fn payload_id_identifies_content_and_annotations() {
        let own = text(11);
        let id = PayloadId::of(PLACE, &own);
        let read = PayloadId::decode(&id.encode()).expect("its own id");
        assert_eq!(read, id);
        assert_eq!((read.execution.0.as_u128(), read.sequence), (3, 9));
        assert!(read.is_of(&own));
        assert!(!read.is_of(&Payload::json("2".repeat(11))));
        let mut annotated = own.clone();
        annotated.metadata.insert("key".into(), "blue".into());
        assert!(!read.is_of(&annotated));
        assert!(!read.is_of(&Payload { content_type: "text/plain".into(), ..own }));
    }

    #[test]
    fn garbage_does_not_decode_as_a_payload_id() {
        for text in ["", "AQ", "%%%", &"A".repeat(100)] {
            assert_eq!(PayloadId::decode(text), None, "{text}");
        }
    }

    #[test]
    fn error_without_room_keeps_its_type_and_is_marked_as_abridged() {
        let cause = TaskError { non_retryable: Some(true), ..TaskError::new("bank.refused", "51") };
        let own = TaskError {
            details: Some(text(10_000)),
            stack_trace: "at pay".into(),
            cause: Some(Box::new(cause)),
            source: "sdk".into(),
            suppressed: vec![
                Suppressed {
                    step: "fan[left].a".into(),
                    error_type: "stock.out".into(),
                    message: "none".into(),
                };
                10
            ],
            ..TaskError::new("payment.declined", "ü".repeat(10_000))
        };
        let abridged = Inline::new(0, Some(PLACE)).error(&own);
        assert!(abridged.abridged);
        assert_eq!(abridged.r#type, "payment.declined");
        assert_eq!(abridged.message, "ü".repeat(EXCERPT_BYTES_MAX / 2));
        assert_eq!(abridged.non_retryable, Some(true), "a cause set the flag");
        assert!(prost::Message::encoded_len(&abridged) <= least_of_error(&own));
        let more = whole(&own) - least_of_error(&own);
        let mut room = Inline::new(more, Some(PLACE));
        let told = room.error(&own);
        assert!(!told.abridged);
        assert!(
            told.details.as_ref().is_some_and(is_reference),
            "texts take the room before details"
        );
        assert_eq!(told.message, own.message);
        assert!(prost::Message::encoded_len(&told) <= whole(&own));
    }

    #[test]
    fn text_without_room_is_cut_and_refers_to_the_history() {
        let own = "x".repeat(1_000);
        let cut = Inline::new(0, None).text(&own);
        assert!(cut.contains("the history has the whole") && cut.len() <= least_of_text(&own));
        assert_eq!(Inline::new(1_000, None).text(&own), own);
    }
}
