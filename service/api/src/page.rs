//! Pages of lists. A page token is opaque to clients. It names a position and is valid only for one filter.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use recoup_proto::v1::ErrorReason;

use crate::status::{Error, Result};
use crate::{BATCH_BYTES_MAX, digest};

pub const SIZE: usize = 100;
pub const SIZE_MAX: usize = 1_000;
/// The longest token that is decoded, in characters.
const TOKEN_MAX: usize = 1_024;
const VERSION: u8 = 1;
/// How many rows one call examines for a page if the store cannot apply the filter itself. A page may
/// therefore hold fewer entries than requested and still not be the last.
pub const SCAN_MAX: usize = 20_000;

/// The page that a request asks for. `filter` is a digest of the request without its page fields.
#[derive(Debug)]
pub struct Page {
    pub size: usize,
    pub after: Option<Vec<u8>>,
    filter: u64,
}

impl Page {
    pub fn read(size: u32, token: &str, filter: u64) -> Result<Self> {
        let size = match size as usize {
            0 => SIZE,
            size if size <= SIZE_MAX => size,
            size => {
                let message = format!("must be from 1 to {SIZE_MAX}, not {size}");
                return Err(Error::invalid("page_size", message));
            }
        };
        let after = if token.is_empty() { None } else { Some(position(token, filter)?) };
        Ok(Self { size, after, filter })
    }

    /// Whether a page with `entries` entries is full. `bytes` is the size of the page including the next
    /// entry.
    pub fn is_full(&self, entries: usize, bytes: usize) -> bool {
        entries == self.size || (entries > 0 && bytes > BATCH_BYTES_MAX)
    }

    /// The position as an array. Refused if it does not have exactly `N` bytes.
    pub fn after_exactly<const N: usize>(&self) -> Result<Option<[u8; N]>> {
        let after = self.after.as_deref().map(<[u8; N]>::try_from).transpose();
        after.map_err(|_| {
            invalid("it was issued for another list; request the first page without a token")
        })
    }

    /// The position as text.
    pub fn after_text(&self) -> Result<Option<&str>> {
        let after = self.after.as_deref().map(std::str::from_utf8).transpose();
        after.map_err(|_| {
            invalid("it was issued for another list; request the first page without a token")
        })
    }

    /// The token of the page after this position.
    pub fn token(&self, position: &[u8]) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.filter.to_be_bytes());
        bytes.extend_from_slice(position);
        let check = digest::of(&bytes).to_be_bytes();
        bytes.extend_from_slice(&check[..4]);
        URL_SAFE_NO_PAD.encode(bytes)
    }
}

fn position(token: &str, filter: u64) -> Result<Vec<u8>> {
    let foreign =
        || invalid("it is not a page token of this service; pass `next_page_token` unchanged");
    if token.len() > TOKEN_MAX {
        return Err(foreign());
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| foreign())?;
    let (content, check) = bytes.split_last_chunk::<4>().ok_or_else(foreign)?;
    if digest::of(content).to_be_bytes()[..4] != check[..] || content.first() != Some(&VERSION) {
        return Err(foreign());
    }
    let (own, position) = content[1..].split_first_chunk::<8>().ok_or_else(foreign)?;
    if u64::from_be_bytes(*own) != filter {
        return Err(invalid(
            "it was issued for another filter; request the first page without a token",
        ));
    }
    Ok(position.to_vec())
}

fn invalid(message: &str) -> Error {
    Error::field(ErrorReason::PageTokenInvalid, "page_token", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_token_is_valid_only_for_the_filter_it_was_issued_for() {
        let page = Page::read(0, "", 7).expect("the first page");
        assert_eq!((page.size, page.after.is_none()), (SIZE, true));
        let token = page.token(b"position");
        let next = Page::read(5, &token, 7).expect("its own token");
        assert_eq!(next.after_text().expect("text"), Some("position"));
        assert!(next.after_exactly::<4>().is_err());
        let other = Page::read(5, &token, 8).expect_err("another filter");
        assert_eq!(other.reason, ErrorReason::PageTokenInvalid);
    }

    #[test]
    fn page_is_limited_by_entries_and_bytes_but_takes_one_entry_of_any_size() {
        let page = Page::read(3, "", 7).expect("the first page");
        assert!(!page.is_full(0, BATCH_BYTES_MAX * 2));
        assert!(!page.is_full(2, BATCH_BYTES_MAX));
        assert!(page.is_full(2, BATCH_BYTES_MAX + 1));
        assert!(page.is_full(3, 0));
    }

    #[test]
    fn invalid_page_token_or_size_is_rejected() {
        let token = Page::read(0, "", 7).expect("the first page").token(b"position");
        let cut = &token[..token.len() - 1];
        for wrong in ["x", "AAAA", "not base64!", cut, &"A".repeat(5_000)] {
            let error = Page::read(5, wrong, 7).expect_err(wrong);
            assert_eq!(error.reason, ErrorReason::PageTokenInvalid);
            assert_eq!(error.violations[0].field, "page_token");
        }
        assert!(Page::read(1_001, "", 7).is_err());
    }
}
