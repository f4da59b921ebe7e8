//! The form of step paths. `lines[3].reserve` names the steps from the outermost to the step itself, for each
//! `for_each` the key of the item, and for each `parallel` the branch. The path alone tells which step contains
//! which, so folding a history needs no definition to build the tree.
//!
//! Keys are written unchanged, except that `%`, `[`, `]`, `/` and control characters are escaped as `%5B`
//! and the like. A dot in a key needs no escape, because it stands between brackets.

use std::borrow::Cow;

use crate::id::{ItemKey, StepPath};

/// One of the steps that a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    pub step: &'a str,
    /// The key of the item or the id of the branch, if the path leads into one.
    pub key: Option<ItemKey>,
}

impl StepPath {
    /// The steps of the path, outermost first. None if the text is not the path of a step.
    pub fn segments(&self) -> Option<Vec<Segment<'_>>> {
        let mut segments = Vec::with_capacity(1);
        let mut rest = self.as_str();
        loop {
            let end = rest.find(['.', '[', ']', '/']).unwrap_or(rest.len());
            let (step, after) = rest.split_at(end);
            let (key, after) = match after.strip_prefix('[') {
                Some(inside) => {
                    let (key, after) = inside.split_once(']')?;
                    (Some(unescape(key)?), after)
                }
                None => (None, after),
            };
            let is_last = after.is_empty();
            // A path ends with a step, not with an item.
            if step.is_empty() || (is_last && key.is_some()) {
                return None;
            }
            segments.push(Segment { step, key });
            if is_last {
                return Some(segments);
            }
            rest = after.strip_prefix('.')?;
        }
    }

    /// The path with these segments, outermost first.
    pub fn of_segments<'a>(segments: impl IntoIterator<Item = Segment<'a>>) -> Self {
        let mut path = String::new();
        for Segment { step, key } in segments {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(step);
            if let Some(key) = key {
                path.push('[');
                escape(key.as_str(), &mut path);
                path.push(']');
            }
        }
        Self::from(path)
    }

    /// The path of the step that contains this one; none for a step of the workflow itself.
    pub fn parent(&self) -> Option<Self> {
        let segments = self.segments()?;
        let (_, around) = segments.split_last()?;
        let mut around = around.to_vec();
        around.last_mut()?.key = None;
        Some(Self::of_segments(around))
    }

    /// Fills the empty brackets of a path with keys, outermost first: `lines[].reserve` becomes
    /// `lines[3].reserve`. Other brackets stay as they are, as do those for which there is no key.
    pub fn with_keys<'a>(&self, keys: impl IntoIterator<Item = &'a ItemKey>) -> Cow<'_, Self> {
        let mut rest = self.as_str();
        if !rest.contains("[]") {
            return Cow::Borrowed(self);
        }
        let mut path = String::with_capacity(rest.len() + 8);
        for key in keys {
            let Some((before, after)) = rest.split_once("[]") else { break };
            path.push_str(before);
            path.push('[');
            escape(key.as_str(), &mut path);
            path.push(']');
            rest = after;
        }
        path.push_str(rest);
        Cow::Owned(Self::from(path))
    }

    /// The path without the keys of items, such as `lines[].reserve`: the same for all items of a loop.
    pub fn pattern(&self) -> Cow<'_, str> {
        let path = self.as_str();
        if !path.contains('[') {
            return Cow::Borrowed(path);
        }
        let mut pattern = String::with_capacity(path.len());
        let mut rest = path;
        while let Some((before, inside)) = rest.split_once('[') {
            pattern.push_str(before);
            pattern.push_str("[]");
            rest = inside.split_once(']').map_or("", |(_, after)| after);
        }
        pattern.push_str(rest);
        Cow::Owned(pattern)
    }
}

/// The bytes that a key takes in a path.
pub(crate) fn key_bytes(key: &str) -> usize {
    let mut path = String::new();
    escape(key, &mut path);
    path.len()
}

fn escape(key: &str, path: &mut String) {
    use std::fmt::Write;
    for letter in key.chars() {
        if matches!(letter, '%' | '[' | ']' | '/') || letter.is_ascii_control() {
            // Writing to a string cannot fail.
            let _ = write!(path, "%{:02X}", u32::from(letter));
        } else {
            path.push(letter);
        }
    }
}

/// None if the text is not in the form that [`escape`] writes, so that every key has exactly one form.
fn unescape(text: &str) -> Option<ItemKey> {
    let mut key = String::with_capacity(text.len());
    let mut pieces = text.split('%');
    key.push_str(pieces.next()?);
    for piece in pieces {
        let code = u8::from_str_radix(piece.get(..2)?, 16).ok()?;
        key.push(char::from(code));
        key.push_str(&piece[2..]);
    }
    let mut again = String::with_capacity(text.len());
    escape(&key, &mut again);
    (again == text).then(|| ItemKey::from(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segments() -> impl Strategy<Value = Vec<(String, Option<String>)>> {
        let step = "[a-z][a-z0-9_]{0,8}";
        let key = proptest::option::of(prop_oneof![
            "[0-9]{1,4}",
            any::<String>(),
            r"[\[\]/%.\\a-z\n\x00]{0,8}",
        ]);
        (proptest::collection::vec((step, key), 0..5), step).prop_map(|(mut around, step)| {
            around.push((step, None));
            around
        })
    }

    proptest! {
        #[test]
        fn step_path_round_trips_its_segments(made in segments()) {
            let of = |(step, key): &(String, Option<String>)| -> (String, Option<ItemKey>) {
                (step.clone(), key.as_deref().map(ItemKey::from))
            };
            let owned: Vec<_> = made.iter().map(of).collect();
            let segments = owned.iter().map(|(step, key)| Segment { step, key: key.clone() });
            let path = StepPath::of_segments(segments.clone());
            prop_assert_eq!(path.segments(), Some(segments.clone().collect::<Vec<_>>()));
            prop_assert_eq!(path.compensation().compensated(), Some(path.clone()));
            prop_assert!(path.compensated().is_none());
            prop_assert!(!path.as_str().contains(|letter: char| letter.is_ascii_control()));

            let mut around: Vec<_> = segments.collect();
            around.pop();
            let parent = around.last_mut().map(|last| last.key = None);
            let parent = parent.map(|()| StepPath::of_segments(around));
            prop_assert_eq!(path.parent(), parent);
        }

        #[test]
        fn text_that_parses_as_a_step_path_is_its_canonical_form(text in r"[a-c.\[\]%/0-9A]{0,12}") {
            let path = StepPath::from(text);
            if let Some(segments) = path.segments() {
                prop_assert_eq!(StepPath::of_segments(segments), path);
            }
        }
    }

    #[test]
    fn keys_fill_only_empty_brackets() {
        let keys: Vec<ItemKey> = vec!["3".into(), "a]b".into()];
        for (path, filled) in [
            ("charge", "charge"),
            ("lines[].reserve", "lines[3].reserve"),
            ("fan[left].lines[].pack[].wrap", "fan[left].lines[3].pack[a%5Db].wrap"),
            ("a[].b[].c[].d", "a[3].b[a%5Db].c[].d"),
        ] {
            assert_eq!(StepPath::from(path).with_keys(&keys).as_str(), filled);
        }
    }

    #[test]
    fn step_path_pattern_omits_item_keys() {
        for (path, pattern) in [
            ("charge", "charge"),
            ("lines[3].reserve", "lines[].reserve"),
            ("lines[a.b%5D].pack[x].wrap/compensate", "lines[].pack[].wrap/compensate"),
        ] {
            assert_eq!(StepPath::from(path).pattern(), pattern);
        }
    }
}
