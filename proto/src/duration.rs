//! `google.protobuf.Duration` on the wire; in JSON and YAML also what people write: `1h30m`.

use std::fmt;

use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The largest number of seconds that protobuf allows: about 10,000 years.
const SECONDS_MAX: i64 = 315_576_000_000;
const NANOS_PER_SECOND: i128 = 1_000_000_000;
/// Units, largest first, with their length in nanoseconds.
const UNITS: [(&str, i128); 7] = [
    ("d", 86_400 * NANOS_PER_SECOND),
    ("h", 3_600 * NANOS_PER_SECOND),
    ("m", 60 * NANOS_PER_SECOND),
    ("s", NANOS_PER_SECOND),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// `google.protobuf.Duration`: the same on the wire, with a JSON form of its own.
///
/// Reads `1d`, `1h30m`, `20s`, `1.5s`, `250ms`, `10us`, `5ns` and combinations from the largest unit to the
/// smallest; writes the proto3 JSON form, seconds with up to nine decimals: `5400s`, `0.250s`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Duration {
    /// Whole seconds.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds below a second, of the same sign.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// Why a value is not a valid duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error("`{0}` is not a duration: write it like 20s, 5m, 1h30m or 250ms")]
    Malformed(String),
    #[error("the duration is out of range")]
    OutOfRange,
    #[error("the duration is negative")]
    Negative,
}

impl Duration {
    fn from_total_nanos(nanos: i128) -> Result<Self, DurationError> {
        let seconds = i64::try_from(nanos / NANOS_PER_SECOND)
            .ok()
            .filter(|seconds| seconds.abs() <= SECONDS_MAX)
            .ok_or(DurationError::OutOfRange)?;
        let nanos =
            i32::try_from(nanos % NANOS_PER_SECOND).expect("a remainder of 10^9 fits into 32 bits");
        Ok(Self { seconds, nanos })
    }

    /// As people write it, largest unit first: `1h30m`, `250ms`, `0s`.
    pub fn in_units(self) -> String {
        let total = i128::from(self.seconds) * NANOS_PER_SECOND + i128::from(self.nanos);
        let mut text = if total < 0 { "-".to_owned() } else { String::new() };
        let mut left = total.abs();
        for (unit, length) in UNITS {
            if left >= length {
                text.push_str(&format!("{}{unit}", left / length));
                left %= length;
            }
        }
        if total == 0 { "0s".to_owned() } else { text }
    }
}

impl std::str::FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let malformed = || DurationError::Malformed(text.chars().take(40).collect());
        let (sign, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text),
        };
        if rest.is_empty() {
            return Err(malformed());
        }
        let mut total = 0_i128;
        let mut units = UNITS.iter();
        while !rest.is_empty() {
            let number_end =
                rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(malformed)?;
            let (number, after) = rest.split_at(number_end);
            let unit_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let (unit, after) = after.split_at(unit_end);
            // The iterator is never wound back: units come in order, each at most once.
            let (_, length) =
                units.by_ref().find(|(name, _)| *name == unit).ok_or_else(malformed)?;
            let part = scale(number, *length).ok_or_else(malformed)?;
            total = total.checked_add(part).ok_or(DurationError::OutOfRange)?;
            rest = after;
        }
        Self::from_total_nanos(sign * total)
    }
}

/// `number`, a decimal fraction, times `length`; `None` if it is none, or finer than a nanosecond.
fn scale(number: &str, length: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || whole.len() > 18 || fraction.len() > 12 {
        return None;
    }
    let digits = u32::try_from(fraction.len()).ok()?;
    let fraction = fraction.parse::<i128>().ok()? * length;
    let divisor = 10_i128.pow(digits);
    (fraction % divisor == 0)
        .then_some(whole.parse::<i128>().ok()?.checked_mul(length)? + fraction / divisor)
}

impl fmt::Display for Duration {
    /// The proto3 JSON form.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.seconds < 0 || self.nanos < 0 { "-" } else { "" };
        write!(formatter, "{sign}{}", self.seconds.unsigned_abs())?;
        let nanos = self.nanos.unsigned_abs();
        match (nanos, nanos % 1_000_000, nanos % 1_000) {
            (0, _, _) => {}
            (_, 0, _) => write!(formatter, ".{:03}", nanos / 1_000_000)?,
            (_, _, 0) => write!(formatter, ".{:06}", nanos / 1_000)?,
            _ => write!(formatter, ".{nanos:09}")?,
        }
        formatter.write_str("s")
    }
}

impl From<std::time::Duration> for Duration {
    /// Longer than protobuf allows becomes the longest that it allows.
    fn from(duration: std::time::Duration) -> Self {
        let nanos = i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX);
        Self::from_total_nanos(nanos).unwrap_or(Self { seconds: SECONDS_MAX, nanos: 0 })
    }
}

impl TryFrom<Duration> for std::time::Duration {
    type Error = DurationError;

    fn try_from(duration: Duration) -> Result<Self, DurationError> {
        if duration.seconds > SECONDS_MAX || duration.nanos >= 1_000_000_000 {
            return Err(DurationError::OutOfRange);
        }
        let seconds = u64::try_from(duration.seconds).map_err(|_| DurationError::Negative)?;
        let nanos = u32::try_from(duration.nanos).map_err(|_| DurationError::Negative)?;
        Ok(Self::new(seconds, nanos))
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DurationVisitor)
    }
}

struct DurationVisitor;

impl Visitor<'_> for DurationVisitor {
    type Value = Duration;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a duration with its unit, like 20s, 5m, 1h30m or 250ms")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Duration, E> {
        Err(E::invalid_type(Unexpected::Signed(number), &self))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn nanos(text: &str) -> Option<i128> {
        let Duration { seconds, nanos } = text.parse().ok()?;
        Some(i128::from(seconds) * NANOS_PER_SECOND + i128::from(nanos))
    }

    #[test]
    fn reads_what_people_write() {
        for (text, expected) in [
            ("20s", 20_000_000_000),
            ("5m", 300_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("250ms", 250_000_000),
            ("1d2h3m4s5ms6us7ns", 93_784_005_006_007),
            ("1.5s", 1_500_000_000),
            ("0.5h", 1_800_000_000_000),
            ("0.000000001s", 1),
            ("0s", 0),
            ("-3s", -3_000_000_000),
            ("-0.250s", -250_000_000),
        ] {
            assert_eq!(nanos(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_duration() {
        for text in [
            "",
            "-",
            "20",
            "s",
            "20 s",
            "1m1h",
            "1s1s",
            "20sec",
            "1..5s",
            ".5s",
            "5.s",
            "0.1ns",
            "+1s",
            "1e3s",
            "--1s",
            "1h-3m",
            "٣s",
            "9999999999999999999s",
            "400000000000s",
        ] {
            assert_eq!(nanos(text), None, "{text}");
        }
    }

    #[test]
    fn writes_what_other_readers_of_proto3_json_take() {
        for (text, expected) in [
            ("1h30m", "5400s"),
            ("250ms", "0.250s"),
            ("10us", "0.000010s"),
            ("7ns", "0.000000007s"),
            ("-250ms", "-0.250s"),
            ("0s", "0s"),
        ] {
            let duration: Duration = text.parse().expect("listed as a duration");
            assert_eq!(duration.to_string(), expected);
            assert_eq!(expected.parse(), Ok(duration));
            assert_eq!(duration.in_units(), text);
        }
    }

    #[test]
    fn is_the_well_known_type_on_the_wire() {
        let ours = Duration { seconds: -5, nanos: -7 };
        let theirs = pbjson_types::Duration { seconds: -5, nanos: -7 };
        assert_eq!(ours.encode_to_vec(), theirs.encode_to_vec());
        assert_eq!(Duration::decode(theirs.encode_to_vec().as_slice()), Ok(ours));
    }

    #[test]
    fn converts_to_and_from_std() {
        use std::time::Duration as Std;
        let ours = Duration { seconds: 3, nanos: 5 };
        assert_eq!(Std::try_from(ours), Ok(Std::new(3, 5)));
        assert_eq!(Duration::from(Std::new(3, 5)), ours);
        assert_eq!(Duration::from(Std::MAX), Duration { seconds: SECONDS_MAX, nanos: 0 });
        assert_eq!(Std::try_from(Duration { seconds: 0, nanos: -1 }), Err(DurationError::Negative));
        assert_eq!(
            Std::try_from(Duration { seconds: i64::MAX, nanos: 0 }),
            Err(DurationError::OutOfRange)
        );
    }
}
