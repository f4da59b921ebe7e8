//! The text form of a cursor of the failure feed, which clients hold. It is opaque to them. Because it comes
//! back from outside, its content is checked here byte by byte.
//!
//! Version 1 is base64 without padding, in the URL-safe alphabet. It encodes the byte 1, the 16 bytes of the
//! incarnation, the floor, and then two numbers for each lane: the distance from the lane before it (for the
//! first lane: from the floor) and the number reached in it. Numbers are LEB128 varints; signed numbers are
//! zigzag encoded.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::contract::{Cursor, Error, NodeId, Result};

const VERSION: u8 = 1;
/// A cursor names the lives of nodes that are running, and those that ended while an older life still runs. If
/// there are more lives than this, the newest are left out of the text, and their events are read again.
pub const LANES_MAX: usize = 4096;
/// The length of the longest text that is read, in characters.
pub const TEXT_MAX: usize = (1 + 16 + VARINT_MAX + LANES_MAX * 2 * VARINT_MAX).div_ceil(3) * 4;
/// The length of the longest varint of 64 bits, in bytes.
const VARINT_MAX: usize = 10;

impl Cursor {
    /// The text of this cursor. At most [`LANES_MAX`] lanes are written.
    pub fn encode(&self) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(self.incarnation.as_bytes());
        write_varint(&mut bytes, zigzag(self.floor.0));
        let mut before = self.floor.0;
        for (lane, number) in self.lanes.iter().take(LANES_MAX) {
            write_varint(&mut bytes, lane.0.wrapping_sub(before).cast_unsigned());
            write_varint(&mut bytes, zigzag(*number));
            before = lane.0;
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// [`Error::MalformedCursor`] for every text that [`Cursor::encode`] does not write. Whether the cursor
    /// belongs to this store is checked when the feed is read.
    pub fn decode(text: &str) -> Result<Self> {
        if text.len() > TEXT_MAX {
            return Err(Error::MalformedCursor);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Error::MalformedCursor)?;
        parse(&bytes).ok_or(Error::MalformedCursor)
    }
}

fn parse(bytes: &[u8]) -> Option<Cursor> {
    let (&version, bytes) = bytes.split_first()?;
    if version != VERSION {
        return None;
    }
    let (incarnation, mut rest) = bytes.split_first_chunk::<16>()?;
    let floor = unzigzag(read_varint(&mut rest)?);
    let mut lanes: Vec<(NodeId, i64)> = Vec::new();
    let mut before = floor;
    while !rest.is_empty() {
        let distance = read_varint(&mut rest)?;
        if lanes.len() == LANES_MAX || (distance == 0 && !lanes.is_empty()) {
            return None;
        }
        let lane = before.checked_add_unsigned(distance)?;
        lanes.push((NodeId(lane), unzigzag(read_varint(&mut rest)?)));
        before = lane;
    }
    Some(Cursor { incarnation: Uuid::from_bytes(*incarnation), floor: NodeId(floor), lanes })
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

fn write_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

/// Accepts only the shortest form, so that a cursor has exactly one text.
fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        number |= bits << shift;
        if byte < 0x80 {
            return (byte != 0 || shift == 0).then_some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn cursors() -> impl Strategy<Value = Cursor> {
        let lanes = proptest::collection::btree_map(any::<i64>(), any::<i64>(), 0..20);
        (any::<u128>(), any::<i64>(), lanes).prop_map(|(incarnation, floor, lanes)| {
            let lanes: BTreeMap<i64, i64> = lanes;
            let at_or_above = lanes.range(floor..);
            Cursor {
                incarnation: Uuid::from_u128(incarnation),
                floor: NodeId(floor),
                lanes: at_or_above.map(|(lane, number)| (NodeId(*lane), *number)).collect(),
            }
        })
    }

    proptest! {
        #[test]
        fn cursor_round_trips_through_its_text(cursor in cursors()) {
            let text = cursor.encode();
            prop_assert!(text.len() <= TEXT_MAX);
            prop_assert_eq!(Cursor::decode(&text).expect("own text"), cursor);
        }

        #[test]
        fn garbage_is_malformed_or_the_only_text_of_a_cursor(bytes in any::<Vec<u8>>()) {
            let text = URL_SAFE_NO_PAD.encode(&bytes);
            if let Ok(cursor) = Cursor::decode(&text) {
                prop_assert_eq!(cursor.encode(), text);
            }
        }

        #[test]
        fn a_changed_byte_never_panics(cursor in cursors(), at in any::<usize>(), byte: u8) {
            let mut bytes = URL_SAFE_NO_PAD.decode(cursor.encode()).expect("own text");
            let at = at % bytes.len();
            bytes[at] = byte;
            let text = URL_SAFE_NO_PAD.encode(&bytes);
            if let Ok(cursor) = Cursor::decode(&text) {
                prop_assert_eq!(cursor.encode(), text);
            }
        }

        #[test]
        fn decoding_any_text_never_panics(text in ".*") {
            let _ = Cursor::decode(&text);
        }
    }

    #[test]
    fn text_that_is_not_a_cursor_is_malformed() {
        let cursor = Cursor {
            incarnation: Uuid::nil(),
            floor: NodeId(1),
            lanes: vec![(NodeId(1), 5), (NodeId(3), 7)],
        };
        let text = cursor.encode();
        let mut newer = URL_SAFE_NO_PAD.decode(&text).expect("own text");
        newer[0] = 2;
        let newer = URL_SAFE_NO_PAD.encode(newer);
        let long = "A".repeat(TEXT_MAX + 1);
        for wrong in ["", "AQ", "not base64!", &text[..text.len() - 2], &newer, &long] {
            let decoded = Cursor::decode(wrong);
            assert!(matches!(decoded, Err(Error::MalformedCursor)), "{wrong:.40}: {decoded:?}");
        }
    }
}
