//! The values that pass through the service: inputs, outputs and the details of errors.

use std::collections::BTreeMap;

use bytes::Bytes;

pub const JSON: &str = "application/json";

/// A value that the service does not look into unless an expression reads it. Only then is it parsed, as
/// JSON.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Payload {
    pub data: Bytes,
    /// Media type. Empty means [`JSON`], so that the usual case takes no space on the wire or in the
    /// history.
    pub content_type: String,
    pub metadata: BTreeMap<String, String>,
}

impl Payload {
    /// A payload of JSON text.
    pub fn json(text: impl Into<Bytes>) -> Self {
        Self { data: text.into(), ..Self::default() }
    }

    pub fn null() -> Self {
        Self::json("null")
    }

    pub fn is_json(&self) -> bool {
        self.content_type.is_empty() || self.content_type == JSON
    }

    /// The bytes that count against limits: data, content type and metadata.
    pub fn size(&self) -> usize {
        let metadata: usize =
            self.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.data.len() + self.content_type.len() + metadata
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_json() {
            f.write_str(&String::from_utf8_lossy(&self.data))
        } else {
            write!(f, "{} ({} bytes)", self.content_type, self.data.len())
        }
    }
}
