//! The parts of a field path: `steps[2].retry` has the segments `steps`, `[2]` and `retry`.

use std::sync::Arc;

/// One step of a path, from a mapping or a sequence to something in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Segment {
    /// As it stands in a path, but without the dot before it: `max_attempts` or `["Some.key"]`.
    Key(Arc<str>),
    /// Counted from 0.
    Element(usize),
}

impl Segment {
    /// Fields stand under their proto name however they are spelled. Keys that are the author's own
    /// keep their spelling.
    pub(super) fn key(key: &str, is_own: bool) -> Self {
        let is_plain = key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
        if key.is_empty() || !is_plain {
            return Self::Key(format!("[{key:?}]").into());
        }
        if is_own {
            return Self::Key(key.into());
        }
        let mut field = String::with_capacity(key.len());
        for c in key.chars() {
            if c.is_ascii_uppercase() {
                field.push('_');
            }
            field.push(c.to_ascii_lowercase());
        }
        Self::Key(field.into())
    }

    /// The first segment of a path, and the path that remains after it. `None` if there is none.
    pub(super) fn split_from(path: &str) -> Option<(Self, &str)> {
        let (segment, rest) = path.split_at(first_len(path)?);
        let inside = segment.strip_prefix('[').and_then(|segment| segment.strip_suffix(']'));
        let number = inside.and_then(|inside| inside.parse().ok());
        let segment = number.map_or_else(|| Self::Key(segment.into()), Self::Element);
        Some((segment, rest.strip_prefix('.').unwrap_or(rest)))
    }

    pub(super) fn push_to(&self, path: &mut String) {
        match self {
            Self::Key(key) => {
                if !path.is_empty() && !key.starts_with('[') {
                    path.push('.');
                }
                path.push_str(key);
            }
            Self::Element(number) => path.push_str(&format!("[{number}]")),
        }
    }

    /// The bytes that this holds, its own size left out: the text, and the two counts of the `Arc`.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        match self {
            Self::Key(key) => key.len() + 2 * size_of::<usize>(),
            Self::Element(_) => 0,
        }
    }
}

/// The length of the first segment of a path, brackets included.
fn first_len(path: &str) -> Option<usize> {
    if let Some(quoted) = path.strip_prefix("[\"") {
        let mut is_escaped = false;
        let end = quoted.find(|c| {
            let is_end = c == '"' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            is_end
        })?;
        let len = "[\"".len() + end + "\"]".len();
        return Some(len).filter(|len| path.is_char_boundary(*len));
    }
    if path.starts_with('[') {
        return path.find(']').map(|end| end + "]".len());
    }
    let len = path.find(['.', '[']).unwrap_or(path.len());
    Some(len).filter(|len| *len > 0)
}
