//! A fast 64-bit hash that is the same on every machine and in every version: it is stored with request
//! ids, and is part of page tokens. It catches mistakes of honest clients; it is no protection against
//! others.

use prost::Message;

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const FACTOR: u64 = 0xd6e8_feb8_6659_fd93;

pub fn of(bytes: &[u8]) -> u64 {
    let mut hash = fold(SEED ^ bytes.len() as u64);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let word = word.try_into().map(u64::from_le_bytes).expect("chunks of eight");
        hash = fold(hash ^ word);
    }
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    fold(hash ^ u64::from_le_bytes(last))
}

/// The hash of a message. Maps in our messages are ordered, so equal messages have equal encodings.
pub fn of_message(message: &impl Message) -> u64 {
    of(&message.encode_to_vec())
}

fn fold(word: u64) -> u64 {
    let product = u128::from(word ^ SEED.rotate_left(17)) * u128::from(FACTOR);
    let (high, low) = ((product >> 64) as u64, product as u64);
    (high ^ low).wrapping_add(word.rotate_left(32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_known_inputs_never_change() {
        let digests = [of(b""), of(b"recoup"), of(b"12345678"), of(b"123456789")];
        assert_eq!(digests, EXPECTED);
    }

    const EXPECTED: [u64; 4] = [
        18_287_149_161_970_880_461,
        45_617_486_949_312_665,
        11_762_649_308_259_699_053,
        1_247_986_897_527_259_356,
    ];

    #[test]
    fn digest_depends_on_every_byte_and_the_length() {
        let base = vec![7_u8; 41];
        let hash = of(&base);
        for index in 0..base.len() {
            let mut other = base.clone();
            other[index] ^= 1;
            assert_ne!(of(&other), hash, "byte {index}");
        }
        assert_ne!(of(&base[..40]), hash);
        assert_ne!(of(&[0; 8]), of(&[0; 16]));
    }
}
