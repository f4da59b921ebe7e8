//! Converts values to payloads and back.

use recoup_proto::v1::{Payload, payload::Content};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

/// The largest content that a payload may have, in bytes: 2 MiB.
pub const PAYLOAD_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Makes a payload that holds `value` as JSON text.
///
/// # Errors
/// [`Error::Payload`] if the value cannot be written as JSON, [`Error::PayloadTooLarge`] if it is over 2
/// MiB.
pub fn to_payload<T: Serialize + ?Sized>(value: &T) -> Result<Payload, Error> {
    let json = serde_json::to_string(value).map_err(Error::Payload)?;
    let payload = Payload { content: Some(Content::Json(json)), ..Payload::default() };
    check_size(&payload)?;
    Ok(payload)
}

/// Reads the value that a payload holds as JSON, whether as text or as bytes. A payload without a value
/// reads as JSON null.
///
/// # Errors
/// [`Error::Payload`] if the content is not JSON, or is JSON that does not describe a `T`.
/// [`Error::PayloadReference`] if the payload holds only a reference to its content; read the content with
/// [`Client::read_payload`](crate::Client::read_payload).
pub fn from_payload<T: DeserializeOwned>(payload: Option<&Payload>) -> Result<T, Error> {
    match payload.and_then(|payload| payload.content.as_ref()) {
        Some(Content::Json(json)) => serde_json::from_str(json).map_err(Error::Payload),
        Some(Content::Data(data)) => serde_json::from_slice(data).map_err(Error::Payload),
        Some(Content::Reference(reference)) => {
            Err(Error::PayloadReference { payload_id: reference.payload_id.clone() })
        }
        None => serde_json::from_str("null").map_err(Error::Payload),
    }
}

/// Refuses a payload that the service would refuse, before it is sent.
pub(crate) fn check_size(payload: &Payload) -> Result<(), Error> {
    let size = match &payload.content {
        Some(Content::Json(json)) => json.len(),
        Some(Content::Data(data)) => data.len(),
        Some(reference @ Content::Reference(_)) => reference.encoded_len(),
        None => 0,
    };
    // The content type and the metadata count towards the limit too.
    let around = payload.metadata.iter().map(|(name, value)| name.len() + value.len());
    let size = size + payload.content_type.len() + around.sum::<usize>();
    if size > PAYLOAD_BYTES_MAX {
        return Err(Error::PayloadTooLarge { size });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn values_survive_a_round_trip() {
        let value = json!({"id": u64::MAX, "low": i64::MIN, "text": "é\u{0}"});
        let payload = to_payload(&value).expect("JSON");
        assert_eq!(from_payload::<Value>(Some(&payload)).expect("JSON"), value);
    }

    #[test]
    fn a_missing_value_decodes_as_null() {
        assert_eq!(from_payload::<Option<u8>>(None).expect("null"), None);
        assert_eq!(from_payload::<Value>(Some(&Payload::default())).expect("null"), Value::Null);
        from_payload::<u8>(None).expect_err("null is not a number");
    }

    #[test]
    fn bytes_that_hold_json_are_decoded() {
        let content = Some(Content::Data(bytes::Bytes::from_static(b"[1,2]")));
        let payload = Payload { content, ..Payload::default() };
        assert_eq!(from_payload::<Vec<u8>>(Some(&payload)).expect("JSON"), [1, 2]);
    }

    #[test]
    fn a_payload_at_the_size_limit_is_accepted_and_one_byte_more_is_not() {
        // The two quotation marks are part of the JSON text.
        to_payload(&"x".repeat(PAYLOAD_BYTES_MAX - 2)).expect("at the limit");
        let error = to_payload(&"x".repeat(PAYLOAD_BYTES_MAX - 1)).expect_err("over the limit");
        assert!(
            matches!(error, Error::PayloadTooLarge { size } if size == PAYLOAD_BYTES_MAX + 1),
            "{error}"
        );
    }
}
