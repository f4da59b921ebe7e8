//! Converts times and durations.

use std::time::Duration;

use recoup_core::time::Timestamp;
use recoup_proto as proto;

use crate::status::{Error, Result};

pub fn timestamp(at: Timestamp) -> proto::Timestamp {
    let micros = at.as_micros();
    let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1_000)
        .expect("nanoseconds of a second fit into 32 bits");
    proto::Timestamp { seconds: micros.div_euclid(1_000_000), nanos }
}

/// Converts a time. One beyond the range of [`Timestamp`] becomes the end of that range.
pub fn timestamp_from(at: &proto::Timestamp) -> Timestamp {
    let micros = at.seconds.saturating_mul(1_000_000);
    Timestamp::from_micros(micros.saturating_add(i64::from(at.nanos) / 1_000))
}

pub fn duration(duration: Duration) -> proto::Duration {
    duration.into()
}

pub fn duration_from(duration: Option<proto::Duration>, field: &str) -> Result<Option<Duration>> {
    let Some(duration) = duration else {
        return Ok(None);
    };
    let read = Duration::try_from(duration);
    read.map(Some).map_err(|error| Error::invalid(field, error.to_string()))
}

/// Reads a duration that has a default and a range.
pub fn duration_between(
    given: Option<proto::Duration>,
    field: &str,
    default: Duration,
    range: std::ops::RangeInclusive<Duration>,
) -> Result<Duration> {
    let given = duration_from(given, field)?.unwrap_or(default);
    if range.contains(&given) {
        return Ok(given);
    }
    let (start, end) = (range.start(), range.end());
    let message = format!(
        "must be from {} to {}, not {}",
        for_people(*start),
        for_people(*end),
        for_people(given)
    );
    Err(Error::invalid(field, message))
}

/// Formats a duration in the largest unit that divides it.
fn for_people(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if duration.subsec_nanos() != 0 {
        return format!("{duration:?}");
    }
    let units = [(86_400, 'd'), (3_600, 'h'), (60, 'm')];
    match units.into_iter().find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_out_of_range_is_reported_in_readable_units() {
        for (millis, expected) in [
            (0, "0s"),
            (1_500, "1.5s"),
            (90_000, "90s"),
            (3_600_000, "1h"),
            (86_400_000 * 36_500, "36500d"),
        ] {
            assert_eq!(for_people(Duration::from_millis(millis)), expected);
        }
        let minute = Duration::from_secs(60);
        let given = Some(proto::Duration { seconds: 3_601, nanos: 0 });
        let refused = duration_between(given, "wait", minute, minute..=60 * minute);
        assert_eq!(
            refused.expect_err("too long").to_string(),
            "wait: must be from 1m to 1h, not 3601s"
        );
    }

    #[test]
    fn timestamps_round_trip_including_those_before_1970() {
        for micros in [0, 1, -1, -1_000_001, 1_800_000_000_123_456] {
            let at = Timestamp::from_micros(micros);
            assert_eq!(timestamp_from(&timestamp(at)), at);
            assert!((0..1_000_000_000).contains(&timestamp(at).nanos));
        }
        let beyond = proto::Timestamp { seconds: i64::MAX, nanos: 999_999_999 };
        assert_eq!(timestamp_from(&beyond), Timestamp::MAX);
    }

    #[test]
    fn a_duration_out_of_range_names_its_field() {
        let second = Duration::from_secs(1);
        let negative = Some(proto::Duration { seconds: -1, nanos: 0 });
        let error = duration_between(negative, "wait", second, Duration::ZERO..=second);
        assert_eq!(error.expect_err("it is negative").violations[0].field, "wait");
        let long = Some(proto::Duration { seconds: 61, nanos: 0 });
        assert!(duration_between(long, "wait", second, Duration::ZERO..=second).is_err());
        let unset = duration_between(None, "wait", second, Duration::ZERO..=second);
        assert_eq!(unset.expect("the default"), second);
    }
}
