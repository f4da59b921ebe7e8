//! Conversion between JSON and CEL values.

use std::collections::HashMap;
use std::fmt;

use cel::ExecutionError;
use cel::common::types::{
    CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelOptional, CelString,
    CelUInt,
};
use cel::common::value::Val;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::problem::shorten;
use crate::limits::PAYLOAD_BYTES_MAX;

/// Why a value cannot be written as JSON.
#[derive(Debug)]
pub(super) enum Error {
    TooLarge,
    NoJson(String),
}

/// Parses JSON. Strings without escapes are borrowed from the input.
pub(super) fn parse<'v>(json: &'v [u8]) -> serde_json::Result<Box<dyn Val + 'v>> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = Seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

struct Seed;

impl<'v> DeserializeSeed<'v> for Seed {
    type Value = Box<dyn Val + 'v>;

    fn deserialize<D: Deserializer<'v>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'v> Visitor<'v> for Seed {
    type Value = Box<dyn Val + 'v>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Box::new(CelNull))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Box::new(CelBool::from(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Box::new(CelInt::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(match i64::try_from(value) {
            Ok(value) => Box::new(CelInt::from(value)),
            Err(_) => Box::new(CelUInt::from(value)),
        })
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Box::new(CelDouble::from(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Box::new(CelString::from(value.to_owned())))
    }

    fn visit_borrowed_str<E>(self, value: &'v str) -> Result<Self::Value, E> {
        Ok(Box::new(CelString::from(value)))
    }

    fn visit_seq<A: SeqAccess<'v>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Seed)? {
            list.push(item);
        }
        Ok(Box::new(CelList::from(list)))
    }

    fn visit_map<A: MapAccess<'v>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut map = HashMap::new();
        while let Some(name) = fields.next_key_seed(Name)? {
            map.insert(name, fields.next_value_seed(Seed)?);
        }
        Ok(Box::new(CelMap::from(map)))
    }
}

struct Name;

impl<'v> DeserializeSeed<'v> for Name {
    type Value = CelMapKey<'v>;

    fn deserialize<D: Deserializer<'v>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'v> Visitor<'v> for Name {
    type Value = CelMapKey<'v>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(CelMapKey::from(value.to_owned()))
    }

    fn visit_borrowed_str<E>(self, value: &'v str) -> Result<Self::Value, E> {
        Ok(CelMapKey::from(value))
    }
}

/// Appends the value as JSON, with the fields of objects sorted by name.
pub(super) fn write(value: &dyn Val, json: &mut Vec<u8>) -> Result<(), Error> {
    if let Some(text) = value.downcast_ref::<CelString>() {
        write_string(text.inner(), json);
    } else if let Some(number) = value.downcast_ref::<CelInt>() {
        json.extend_from_slice(number.inner().to_string().as_bytes());
    } else if let Some(truth) = value.downcast_ref::<CelBool>() {
        json.extend_from_slice(if *truth.inner() { b"true" } else { b"false" });
    } else if value.downcast_ref::<CelNull>().is_some() {
        json.extend_from_slice(b"null");
    } else if let Some(number) = value.downcast_ref::<CelUInt>() {
        json.extend_from_slice(number.inner().to_string().as_bytes());
    } else if let Some(number) = value.downcast_ref::<CelDouble>() {
        let finite = serde_json::Number::from_f64(*number.inner());
        let finite =
            finite.ok_or_else(|| Error::NoJson(format!("the number {}", number.inner())))?;
        json.extend_from_slice(finite.to_string().as_bytes());
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        json.push(b'[');
        for (index, item) in list.inner().iter().enumerate() {
            if index > 0 {
                json.push(b',');
            }
            write(&**item, json)?;
        }
        json.push(b']');
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        write_map(map, json)?;
    } else if let Some(optional) = value.downcast_ref::<CelOptional>() {
        match optional.option() {
            Some(value) => write(value, json)?,
            None => json.extend_from_slice(b"null"),
        }
    } else {
        return Err(Error::NoJson(format!("a value of type {}", value.get_type().name())));
    }
    if json.len() > PAYLOAD_BYTES_MAX { Err(Error::TooLarge) } else { Ok(()) }
}

fn write_map(map: &CelMap<'_>, json: &mut Vec<u8>) -> Result<(), Error> {
    let mut fields: Vec<_> = map.inner().iter().collect();
    fields.sort_by_key(|(key, _)| *key);
    json.push(b'{');
    for (index, (key, value)) in fields.into_iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        match key {
            CelMapKey::String(name) => write_string(name.inner(), json),
            CelMapKey::Int(name) => write_string(&name.inner().to_string(), json),
            CelMapKey::UInt(name) => write_string(&name.inner().to_string(), json),
            CelMapKey::Bool(name) => write_string(&name.inner().to_string(), json),
        }
        json.push(b':');
        write(&**value, json)?;
    }
    json.push(b'}');
    Ok(())
}

/// Appends the value to an open JSON string: a string as it is, any other value as JSON.
pub(super) fn write_text(value: &dyn Val, json: &mut Vec<u8>) -> Result<(), Error> {
    if let Some(text) = value.downcast_ref::<CelString>() {
        write_inside(text.inner(), json);
        return Ok(());
    }
    let mut text = Vec::new();
    write(value, &mut text)?;
    write_inside(&String::from_utf8_lossy(&text), json);
    Ok(())
}

fn write_string(text: &str, json: &mut Vec<u8>) {
    serde_json::to_writer(json, text).expect("text goes into memory");
}

fn write_inside(text: &str, json: &mut Vec<u8>) {
    let open = json.len();
    write_string(text, json);
    json.remove(open);
    json.pop();
}

/// Describes an evaluation error without the values involved, because these may be large or private and are
/// in no fixed order.
pub(super) fn describe(error: &ExecutionError) -> String {
    use ExecutionError as E;
    match error {
        E::NoSuchKey(key) => format!("no such key: {}", shorten(key, 100)),
        E::FunctionError { function, message } if function.starts_with('@') => message.clone(),
        E::FunctionError { function, message } => format!("{function}: {}", shorten(message, 200)),
        E::NoSuchOverload(error) => error.to_string(),
        E::UndeclaredReference(name) => format!("unknown name: {name}"),
        E::UnexpectedType { got, want } => format!("expected {want}, got {got}"),
        E::InvalidArgumentCount { expected, actual } => {
            format!("expected {expected} arguments, got {actual}")
        }
        E::ValuesNotComparable(left, right) => {
            format!("{} and {} cannot be compared", left.type_of(), right.type_of())
        }
        E::UnsupportedBinaryOperator(operator, left, right) => {
            format!("{operator} cannot be applied to {} and {}", left.type_of(), right.type_of())
        }
        E::UnsupportedIndex(key, value) => {
            format!("{} cannot be the index of a {}", key.type_of(), value.type_of())
        }
        E::UnsupportedKeyType(key) => format!("{} cannot be the key of a map", key.type_of()),
        E::NotSupportedAsMethod { method, target } => {
            format!("{} has no method {method}", target.type_of())
        }
        E::DivisionByZero(_) => "division by zero".into(),
        E::RemainderByZero(_) => "remainder of a division by zero".into(),
        E::Overflow(operator, ..) => format!("{operator} overflows"),
        E::IndexOutOfBounds(_) => "the index is out of bounds".into(),
        E::DuplicateKey(_) => "a map contains the same key twice".into(),
        _ => "the evaluation failed".into(),
    }
}
