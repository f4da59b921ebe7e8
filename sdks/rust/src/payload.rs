//! Values on their way into and out of payloads.

use recoup_proto::v1::{Payload, payload::Content};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

/// The most content that a payload may have, in bytes: 2 MiB.
pub const PAYLOAD_BYTES_MAX: usize = 2 * 1024 * 1024;

/// A payload that holds `value` as JSON text.
///
/// # Errors
/// [`Error::Payload`] when the value has no JSON form, [`Error::PayloadTooLarge`] over 2 MiB.
pub fn to_payload<T: Serialize + ?Sized>(value: &T) -> Result<Payload, Error> {
    let json = serde_json::to_string(value).map_err(Error::Payload)?;
    let payload = Payload { content: Some(Content::Json(json)), ..Payload::default() };
    check_size(&payload)?;
    Ok(payload)
}

/// The value that a payload holds as JSON, in either form. No value reads as JSON null.
///
/// # Errors
/// [`Error::Payload`] when it is not JSON, or not JSON of a `T`; [`Error::PayloadReference`] when
/// only a reference stands there: read that with [`Client::read_payload`](crate::Client::read_payload).
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

/// Refuses what the service would refuse, before it is sent.
pub(crate) fn check_size(payload: &Payload) -> Result<(), Error> {
    let size = match &payload.content {
        Some(Content::Json(json)) => json.len(),
        Some(Content::Data(data)) => data.len(),
        Some(reference @ Content::Reference(_)) => reference.encoded_len(),
        None => 0,
    };
    // What stands around the content counts too.
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
    fn values_come_back_as_they_went() {
        let value = json!({"id": u64::MAX, "low": i64::MIN, "text": "é\u{0}"});
        let payload = to_payload(&value).expect("JSON");
        assert_eq!(from_payload::<Value>(Some(&payload)).expect("JSON"), value);
    }

    #[test]
    fn no_value_is_null() {
        assert_eq!(from_payload::<Option<u8>>(None).expect("null"), None);
        assert_eq!(from_payload::<Value>(Some(&Payload::default())).expect("null"), Value::Null);
        from_payload::<u8>(None).expect_err("null is no number");
    }

    #[test]
    fn bytes_may_hold_json_too() {
        let content = Some(Content::Data(bytes::Bytes::from_static(b"[1,2]")));
        let payload = Payload { content, ..Payload::default() };
        assert_eq!(from_payload::<Vec<u8>>(Some(&payload)).expect("JSON"), [1, 2]);
    }

    #[test]
    fn the_limit_is_exact() {
        // Two quotes belong to the JSON text.
        to_payload(&"x".repeat(PAYLOAD_BYTES_MAX - 2)).expect("at the limit");
        let error = to_payload(&"x".repeat(PAYLOAD_BYTES_MAX - 1)).expect_err("over the limit");
        assert!(
            matches!(error, Error::PayloadTooLarge { size } if size == PAYLOAD_BYTES_MAX + 1),
            "{error}"
        );
    }
}
