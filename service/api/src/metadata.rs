//! What a call carries besides its message: a deadline and a trace context.

use std::time::Duration;

use recoup_core::execution::TraceContext;
use recoup_proto as proto;
use tonic::metadata::MetadataMap;

use crate::convert::time;
use crate::status::Result;

/// The longest wait of a long poll, which is also the default.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
/// The part of the caller's deadline that is kept for the answer's way back: a tenth of it, within these
/// bounds.
const MARGIN: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(20)..=Duration::from_millis(500);
/// The longest trace state, in bytes. A longer one is dropped, as W3C allows.
const TRACESTATE_BYTES_MAX: usize = 512;

/// How long a long poll may wait: as long as requested, but at most a minute and less than the caller's
/// deadline.
pub fn wait(given: Option<proto::Duration>, metadata: &MetadataMap) -> Result<Duration> {
    let wait = time::duration_between(given, "wait", WAIT_MAX, Duration::ZERO..=WAIT_MAX)?;
    Ok(match timeout(metadata) {
        Some(timeout) => {
            let margin = (timeout / 10).clamp(*MARGIN.start(), *MARGIN.end());
            wait.min(timeout.saturating_sub(margin))
        }
        None => wait,
    })
}

/// The `grpc-timeout` of a call: up to eight digits and a unit.
fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The W3C trace context of a call. One that is not well formed is ignored.
pub fn trace(metadata: &MetadataMap) -> TraceContext {
    let text = |name| metadata.get(name).and_then(|value| value.to_str().ok());
    let Some(traceparent) = text("traceparent").filter(|text| is_traceparent(text)) else {
        return TraceContext::default();
    };
    let tracestate = text("tracestate").filter(|text| text.len() <= TRACESTATE_BYTES_MAX);
    TraceContext {
        traceparent: traceparent.to_owned(),
        tracestate: tracestate.unwrap_or_default().to_owned(),
    }
}

/// Checks for `00-<32 hex>-<16 hex>-<2 hex>` in lower case, where neither id is all zeros.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    let [version, trace, span, flags] = parts[..] else {
        return false;
    };
    let is_hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |part: &str, length| is_hex(part, length) && part.bytes().any(|byte| byte != b'0');
    is_hex(version, 2) && version != "ff" && is_id(trace, 32) && is_id(span, 16) && is_hex(flags, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert(name, value.parse().expect("ASCII"));
        metadata
    }

    #[test]
    fn a_wait_ends_before_the_callers_deadline() {
        let wait = |timeout: &str| wait(None, &with("grpc-timeout", timeout)).expect("in range");
        assert_eq!(wait("10S"), Duration::from_millis(9_500));
        assert_eq!(wait("100m"), Duration::from_millis(80));
        assert_eq!(wait("5M"), WAIT_MAX);
        assert_eq!(wait("10u"), Duration::ZERO);
        for wrong in ["", "S", "123456789S", "5X", "-5S"] {
            assert_eq!(wait(wrong), WAIT_MAX, "{wrong}");
        }
    }

    #[test]
    fn only_a_well_formed_trace_context_is_kept() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut metadata = with("traceparent", good);
        metadata.insert("tracestate", "a=b".parse().expect("ASCII"));
        let kept = trace(&metadata);
        assert_eq!((kept.traceparent.as_str(), kept.tracestate.as_str()), (good, "a=b"));
        for bad in [
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-01",
            "x",
        ] {
            assert_eq!(trace(&with("traceparent", bad)), TraceContext::default(), "{bad}");
        }
    }
}
