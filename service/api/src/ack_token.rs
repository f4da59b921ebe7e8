//! Tokens that acknowledge one delivery of one event to one subscription.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use recoup_store::SubscriptionRow;

use crate::digest;

const VERSION: u8 = 1;
/// The longest token that is decoded, in characters.
const TOKEN_MAX: usize = 1_024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckToken {
    pub delivery: u32,
    /// Id of the failure event.
    pub event: String,
}

/// Identifies one life of a subscription. If a subscription is deleted and another is created later under
/// the same name, the tokens of the first are not valid for the second.
pub fn subscription_digest(row: &SubscriptionRow) -> u64 {
    let created_at = row.created_at.as_micros();
    digest::of(format!("{}\0{}\0{created_at}", row.namespace, row.name).as_bytes())
}

impl AckToken {
    pub fn encode(&self, subscription: u64) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&subscription.to_be_bytes());
        bytes.extend_from_slice(&self.delivery.to_be_bytes());
        bytes.extend_from_slice(self.event.as_bytes());
        let check = digest::of(&bytes).to_be_bytes();
        bytes.extend_from_slice(&check[..4]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Decodes a token. `None` if the text is not a token, or is a token of another subscription.
    pub fn decode(token: &str, subscription: u64) -> Option<Self> {
        if token.len() > TOKEN_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (content, check) = bytes.split_last_chunk::<4>()?;
        let (&version, rest) = content.split_first()?;
        let (own, rest) = rest.split_first_chunk::<8>()?;
        let (delivery, event) = rest.split_first_chunk::<4>()?;
        let is_ours = version == VERSION
            && u64::from_be_bytes(*own) == subscription
            && digest::of(content).to_be_bytes()[..4] == check[..];
        let event = std::str::from_utf8(event).ok()?.to_owned();
        is_ours.then(|| Self { delivery: u32::from_be_bytes(*delivery), event })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ack_token_is_valid_for_its_own_subscription_only() {
        let token = AckToken { delivery: 3, event: "execution-7-0".into() };
        let text = token.encode(42);
        assert_eq!(AckToken::decode(&text, 42), Some(token));
        assert_eq!(AckToken::decode(&text, 43), None);
        for wrong in ["", "x", "AAAA", &text[1..], &"A".repeat(2_000)] {
            assert_eq!(AckToken::decode(wrong, 42), None, "{wrong}");
        }
    }
}
