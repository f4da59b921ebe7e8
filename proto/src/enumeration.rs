//! JSON form of enums: written with their full proto name, read with or without its prefix, or as a
//! number.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, Unexpected, Visitor};

/// What prost generates for an enum, as a trait.
pub(crate) trait ProtoEnum: TryFrom<i32> + Sized {
    /// `ON_ERROR_UNSPECIFIED`, from which the prefix follows.
    fn zero_name() -> &'static str;
    fn parse_name(name: &str) -> Option<Self>;
    fn name(&self) -> &'static str;
}

pub(crate) struct EnumVisitor<E>(PhantomData<E>);

impl<E> EnumVisitor<E> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<E: ProtoEnum> EnumVisitor<E> {
    fn prefix() -> &'static str {
        E::zero_name().strip_suffix("UNSPECIFIED").unwrap_or_default()
    }

    /// Short names of all values but the unspecified one. Numbers are dense in this API.
    fn names() -> impl Iterator<Item = &'static str> {
        (1..)
            .map_while(|number| E::try_from(number).ok())
            .map(|value| value.name().trim_start_matches(Self::prefix()))
    }

    fn number<N: TryInto<i32>>(number: N) -> Option<E> {
        number.try_into().ok().and_then(|number| E::try_from(number).ok())
    }
}

impl<E: ProtoEnum> Visitor<'_> for EnumVisitor<E> {
    type Value = E;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("one of ")?;
        for (index, name) in Self::names().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(formatter, "{separator}{name}")?;
        }
        Ok(())
    }

    fn visit_str<D: Error>(self, name: &str) -> Result<E, D> {
        E::parse_name(name)
            .or_else(|| E::parse_name(&format!("{}{name}", Self::prefix())))
            .ok_or_else(|| D::invalid_value(Unexpected::Str(name), &self))
    }

    fn visit_i64<D: Error>(self, number: i64) -> Result<E, D> {
        Self::number(number).ok_or_else(|| D::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_u64<D: Error>(self, number: u64) -> Result<E, D> {
        Self::number(number).ok_or_else(|| D::invalid_value(Unexpected::Unsigned(number), &self))
    }
}

macro_rules! json {
    ($name:ident) => {
        impl $crate::enumeration::ProtoEnum for $name {
            fn zero_name() -> &'static str {
                Self::default().as_str_name()
            }

            fn parse_name(name: &str) -> Option<Self> {
                Self::from_str_name(name)
            }

            fn name(&self) -> &'static str {
                self.as_str_name()
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str_name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any($crate::enumeration::EnumVisitor::new())
            }
        }
    };
}
pub(crate) use json;
