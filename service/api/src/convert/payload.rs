//! Converts payloads. JSON text stays JSON text, and is checked to be JSON. Data stays data, whatever its
//! media type.

use recoup_core::limits::{PAYLOAD_BYTES_MAX, clean};
use recoup_core::payload::Payload;
use recoup_proto::v1::{self, ErrorReason, payload::Content};

use crate::status::{Error, Result};

/// The media type of data that was sent without one.
pub const OCTETS: &str = "application/octet-stream";
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;
pub const METADATA_ENTRIES_MAX: usize = 64;
pub const METADATA_NAME_BYTES_MAX: usize = 128;
pub const METADATA_VALUE_BYTES_MAX: usize = 1024;

/// JSON text has an empty media type in core. Data of type `application/json` keeps that type, so that it
/// is returned as data.
pub fn from_proto(payload: v1::Payload, field: &str) -> Result<Payload> {
    let is_text = matches!(payload.content, Some(Content::Json(_)));
    let (data, content_type) = match payload.content {
        None => (bytes::Bytes::new(), payload.content_type),
        Some(Content::Json(json)) => {
            let is_plain = payload.content_type == recoup_core::payload::JSON;
            let content_type = if is_plain { String::new() } else { payload.content_type };
            (json.into(), content_type)
        }
        Some(Content::Data(data)) if payload.content_type.is_empty() => (data, OCTETS.to_owned()),
        Some(Content::Data(data)) => (data, payload.content_type),
        Some(Content::Reference(_)) => {
            let message =
                "must hold the content, not a reference: read it with ReadPayload and send it";
            return Err(Error::field(ErrorReason::PayloadInvalid, field, message));
        }
    };
    let read = Payload { data, content_type, metadata: payload.metadata };
    if read.size() > PAYLOAD_BYTES_MAX {
        let message = format!("must have at most {PAYLOAD_BYTES_MAX} bytes, not {}", read.size());
        return Err(Error::field(ErrorReason::PayloadTooLarge, field, message));
    }
    if is_text {
        check_json(&read.data, field)?;
    }
    let is_simple = read.metadata.is_empty() && read.content_type.is_empty();
    if is_simple { Ok(read) } else { annotated(read, field) }
}

/// Checks that a text is JSON. It is scanned once and nothing is built, which is all that a payload costs
/// until it is read.
fn check_json(text: &[u8], field: &str) -> Result<()> {
    let Err(why) = serde_json::from_slice::<serde::de::IgnoredAny>(text) else {
        return Ok(());
    };
    let offset = offset(text, &why);
    let what = why.to_string();
    let what = what.split_once(" at line ").map_or(what.as_str(), |(what, _)| what);
    let message = format!("it is not JSON: {what}, at byte {offset}");
    Err(Error::field(ErrorReason::PayloadInvalid, field, message))
}

/// The offset of the first byte at which the text stops being JSON. serde_json reports a place near it.
fn offset(text: &[u8], why: &serde_json::Error) -> usize {
    if why.is_eof() {
        return text.len();
    }
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let before: usize = lines.take(why.line().saturating_sub(1)).map(<[u8]>::len).sum();
    let reported = (before + why.column()).min(text.len());
    let is_wrong = |end: &usize| {
        let part = serde_json::from_slice::<serde::de::IgnoredAny>(&text[..*end]);
        part.is_err_and(|why| !why.is_eof())
    };
    let mut ends = reported.saturating_sub(1)..=(reported + 1).min(text.len());
    ends.find(is_wrong).map_or(reported, |end| end.saturating_sub(1))
}

fn annotated(mut payload: Payload, field: &str) -> Result<Payload> {
    if payload.content_type.len() > CONTENT_TYPE_BYTES_MAX {
        let message = format!("must have at most {CONTENT_TYPE_BYTES_MAX} bytes");
        return Err(Error::invalid(format!("{field}.content_type"), message));
    }
    let is_within = |(name, value): (&String, &String)| {
        name.len() <= METADATA_NAME_BYTES_MAX && value.len() <= METADATA_VALUE_BYTES_MAX
    };
    if payload.metadata.len() > METADATA_ENTRIES_MAX || !payload.metadata.iter().all(is_within) {
        let message =
            "must have at most 64 entries, with names up to 128 bytes and values up to 1024 bytes";
        return Err(Error::invalid(format!("{field}.metadata"), message));
    }
    let has_nul = |text: &String| text.contains('\0');
    if has_nul(&payload.content_type) {
        payload.content_type = clean(&payload.content_type).into_owned();
    }
    if payload.metadata.iter().any(|(name, value)| has_nul(name) || has_nul(value)) {
        let entries = payload.metadata.iter();
        let cleaned =
            entries.map(|(name, value)| (clean(name).into_owned(), clean(value).into_owned()));
        payload.metadata = cleaned.collect();
    }
    Ok(payload)
}

/// Converts an optional payload. An absent one is a payload without a value.
pub fn optional_from_proto(payload: Option<v1::Payload>, field: &str) -> Result<Payload> {
    payload.map_or_else(|| Ok(Payload::default()), |payload| from_proto(payload, field))
}

pub fn to_proto(payload: &Payload) -> v1::Payload {
    let metadata = payload.metadata.clone();
    if payload.content_type.is_empty() {
        // An empty payload has no value.
        let json = (!payload.data.is_empty()).then(|| text(payload));
        return v1::Payload { content: json, content_type: String::new(), metadata };
    }
    let content = Some(Content::Data(payload.data.clone()));
    v1::Payload { content, content_type: payload.content_type.clone(), metadata }
}

fn text(payload: &Payload) -> Content {
    match std::str::from_utf8(&payload.data) {
        Ok(text) => Content::Json(text.to_owned()),
        Err(_) => Content::Data(payload.data.clone()),
    }
}

/// The most bytes that a payload takes as a field of a message.
pub fn size(payload: &Payload) -> usize {
    payload.size() + 20 + 12 * payload.metadata.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> v1::Payload {
        let content = Some(Content::Json(text.into()));
        v1::Payload { content, ..v1::Payload::default() }
    }

    fn data(bytes: Vec<u8>, content_type: &str) -> v1::Payload {
        let content = Some(Content::Data(bytes.into()));
        v1::Payload { content, content_type: content_type.into(), ..v1::Payload::default() }
    }

    #[test]
    fn every_form_of_payload_round_trips_unchanged() {
        let mut annotated = json("{}");
        annotated.metadata.insert("key".into(), "blue".into());
        for payload in [
            v1::Payload::default(),
            json("18446744073709551615"),
            annotated,
            data(vec![0, 255], "application/protobuf"),
            data(b"{}".to_vec(), "application/json"),
            data(vec![], "text/plain"),
        ] {
            let core = from_proto(payload.clone(), "input").expect("within the limits");
            assert_eq!(to_proto(&core), payload);
        }
        let octets = from_proto(data(vec![1], ""), "input").expect("within the limits");
        assert_eq!(octets.content_type, OCTETS);
    }

    #[test]
    fn json_payload_is_the_same_with_or_without_its_media_type() {
        let typed = v1::Payload { content_type: "application/json".into(), ..json("1") };
        for payload in [typed, json("1")] {
            assert_eq!(from_proto(payload, "input").expect("small"), Payload::json("1"));
        }
    }

    #[test]
    fn invalid_json_is_rejected_with_the_byte_offset() {
        for (text, offset) in [
            ("", 0),
            ("{\"a\":", 5),
            ("nul", 3),
            ("tru ", 3),
            ("{\"a\": 1}\n [x]", 10),
            ("[1,\n 2,\n ]", 9),
            ("\"a\nb\"", 2),
            ("01", 1),
            ("{'a': 1}", 1),
            ("NaN", 0),
            ("\u{feff}1", 0),
        ] {
            let error = from_proto(json(text), "execution.input").expect_err(text);
            assert_eq!(error.reason, ErrorReason::PayloadInvalid, "{text}");
            assert_eq!(error.violations[0].field, "execution.input");
            assert!(error.message.ends_with(&format!("at byte {offset}")), "{text}: {error}");
            assert!(error.message.contains("it is not JSON: "), "{error}");
        }
        let typed = v1::Payload { content_type: "text/plain".into(), ..json("x") };
        assert!(from_proto(typed, "input").is_err(), "regardless of its media type");
        let deep = "[".repeat(1_000) + &"]".repeat(1_000);
        for text in ["null", " [1e400, -0.5]\r\n", "\"\\ud800\"", &deep] {
            assert!(from_proto(json(text), "input").is_ok(), "{text}");
        }
        assert!(from_proto(data(b"{".to_vec(), "application/json"), "input").is_ok());
    }

    #[test]
    fn payload_is_accepted_up_to_payload_bytes_max_and_no_further() {
        let exactly = from_proto(json(&"1".repeat(PAYLOAD_BYTES_MAX)), "execution.input");
        assert!(exactly.is_ok());
        let over = from_proto(json(&"1".repeat(PAYLOAD_BYTES_MAX + 1)), "execution.input");
        let error = over.expect_err("a byte too many");
        assert_eq!(error.reason, ErrorReason::PayloadTooLarge);
        assert_eq!(error.violations[0].field, "execution.input");
    }

    #[test]
    fn references_and_oversized_annotations_are_refused() {
        let content = Some(Content::Reference(v1::PayloadReference::default()));
        let reference = v1::Payload { content, ..v1::Payload::default() };
        let error = from_proto(reference, "output").expect_err("a reference");
        assert_eq!(error.reason, ErrorReason::PayloadInvalid);
        let mut many = json("1");
        many.metadata = (0..65).map(|n| (n.to_string(), String::new())).collect();
        let error = from_proto(many, "output").expect_err("65 entries");
        assert_eq!(error.violations[0].field, "output.metadata");
        let error = from_proto(data(vec![], &"x".repeat(256)), "output").expect_err("256 bytes");
        assert_eq!(error.violations[0].field, "output.content_type");
    }
}
