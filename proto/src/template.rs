//! JSON form of [`Template`]: the plain value itself, as an author writes it.

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
use serde_json::Value;

use crate::v1::Template;

impl Template {
    /// The template that is this value, in its canonical text: no spaces, keys sorted.
    pub fn new(value: &Value) -> Self {
        Self { json: value.to_string() }
    }

    /// The value, with whole numbers exact from -2^63 to 2^64-1.
    ///
    /// # Errors
    /// The text is not JSON: a client that builds messages itself may send any.
    pub fn value(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_str(&self.json)
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value().map_err(ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(|value| Self::new(&value))
    }
}
