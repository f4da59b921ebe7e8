//! Where each field of a definition stands in its text. The same walk refuses what the reader after
//! it would take, but should not: aliases that explode and numbers that would lose digits.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Span};

use super::{DEPTH_MAX, EXPANDED_WEIGHT_MAX, SourceError};

/// The fields that hold templates, in which keys are the author's own. No other field has one of
/// these names.
pub(super) const TEMPLATE_FIELDS: [&str; 4] = ["details", "input", "output", "set"];

/// A place in a text, counted from 1; the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

impl Place {
    pub const START: Self = Self { line: 1, column: 1 };
}

/// Maps field paths such as `steps[2].retry.max_attempts` to places: of the key for a field, of the
/// first character for an element.
#[derive(Clone, Debug, Default)]
pub struct Positions {
    /// In the order of the text.
    entries: Vec<(Place, String)>,
    index: HashMap<String, usize>,
}

impl Positions {
    /// The place of a field; of the nearest one around it when it is not in the text.
    pub fn find(&self, path: &str) -> Place {
        let mut path = path;
        loop {
            if let Some(&index) = self.index.get(path) {
                return self.entries[index].0;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.entries.first().map_or(Place::START, |(place, _)| *place),
            }
        }
    }

    /// The path of the last field that begins at or before a place.
    pub(super) fn path_at(&self, place: Place) -> &str {
        let after = self.entries.partition_point(|(start, _)| *start <= place);
        after.checked_sub(1).map_or("", |index| &self.entries[index].1)
    }

    /// The path of a field of the mapping that begins at a place. A mapping in block style begins
    /// where its first key does.
    pub(super) fn field_at(&self, place: Place, field: &str) -> &str {
        let around = self.path_at(place);
        let parent = around.rfind(['.', '[']).map_or("", |end| &around[..end]);
        let fields = [around, parent].map(|mapping| {
            let mut path = mapping.to_owned();
            push_key(&mut path, field, false);
            path
        });
        let known = fields.iter().find_map(|path| self.index.get(path));
        known.map_or(around, |&index| &self.entries[index].1)
    }

    /// Walks the text's one document.
    pub(super) fn of(text: &str) -> Result<Self, SourceError> {
        let mut walk = Walk::default();
        for event in Parser::new_from_str(text) {
            match event {
                Ok((event, span)) => walk.take(&event, span)?,
                Err(error) => {
                    let place = place(error.marker().line(), error.marker().col());
                    return Err(SourceError::new(
                        place,
                        walk.positions.path_at(place),
                        error.info(),
                    ));
                }
            }
        }
        if walk.positions.entries.is_empty() {
            return Err(SourceError::new(Place::START, "", "the source is empty"));
        }
        Ok(walk.positions)
    }

    fn add(&mut self, place: Place, path: &str) {
        self.index.insert(path.to_owned(), self.entries.len());
        self.entries.push((place, path.to_owned()));
    }
}

/// The parser counts columns from 0.
fn place(line: usize, column: usize) -> Place {
    Place { line: line.max(1), column: column + 1 }
}

/// A collection that is open.
struct Open {
    kind: OpenKind,
    /// Length of the path of the collection itself.
    path_len: usize,
    /// Below here keys are the author's own.
    template: bool,
    anchor: usize,
    weight_before: usize,
}

enum OpenKind {
    Sequence { next: usize },
    Mapping { expects_key: bool, value_is_template: bool },
}

#[derive(Default)]
struct Walk {
    positions: Positions,
    path: String,
    open: Vec<Open>,
    documents: usize,
    /// Characters and nodes so far, aliases replaced.
    weight: usize,
    /// The same, of what each anchor names; missing while the anchored node is open.
    anchored: HashMap<usize, usize>,
}

impl Walk {
    fn take(&mut self, event: &Event<'_>, span: Span) -> Result<(), SourceError> {
        let place = place(span.start.line(), span.start.col());
        let is_other_root = matches!(event, Event::Scalar(..) | Event::SequenceStart(..));
        if is_other_root && self.open.is_empty() {
            return Err(SourceError::new(place, "", "a definition must be a mapping"));
        }
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(SourceError::new(
                        place,
                        "",
                        "there is more than one YAML document",
                    ));
                }
            }
            Event::Scalar(text, style, anchor, _) => {
                self.enter(place, Some(text))?;
                if *style == ScalarStyle::Plain && loses_digits(text) {
                    let message =
                        "the whole number does not fit into 64 bits: quote it to keep it as text";
                    return Err(SourceError::new(place, self.path.as_str(), message));
                }
                self.grow(text.len() + 1, place)?;
                self.anchored.insert(*anchor, text.len() + 1);
                self.leave();
            }
            Event::SequenceStart(_, anchor, _) => {
                self.open(OpenKind::Sequence { next: 0 }, *anchor, place)?;
            }
            Event::MappingStart(_, anchor, _) => {
                let kind = OpenKind::Mapping { expects_key: true, value_is_template: false };
                self.open(kind, *anchor, place)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => {
                self.enter(place, None)?;
                let Some(&weight) = self.anchored.get(anchor) else {
                    let message = "the alias is inside the value that it refers to";
                    return Err(SourceError::new(place, self.path.as_str(), message));
                };
                self.grow(weight, place)?;
                self.leave();
            }
            _ => {}
        }
        Ok(())
    }

    /// A node begins; `key` is its text if it may be one.
    fn enter(&mut self, place: Place, key: Option<&str>) -> Result<(), SourceError> {
        let Some(parent) = self.open.last_mut() else {
            self.positions.add(place, "");
            return Ok(());
        };
        match &mut parent.kind {
            OpenKind::Sequence { next } => {
                self.path.truncate(parent.path_len);
                self.path.push_str(&format!("[{next}]"));
                *next += 1;
            }
            OpenKind::Mapping { expects_key: true, value_is_template } => {
                self.path.truncate(parent.path_len);
                let Some(key) = key else {
                    let message = "a key must be plain text";
                    return Err(SourceError::new(place, self.path.as_str(), message));
                };
                *value_is_template = parent.template || TEMPLATE_FIELDS.contains(&key);
                push_key(&mut self.path, key, parent.template);
                if self.positions.index.contains_key(&self.path) {
                    let message = format!("duplicate field `{key}`");
                    return Err(SourceError::new(place, self.path.as_str(), message));
                }
            }
            // The key has set the path and the position.
            OpenKind::Mapping { expects_key: false, .. } => return Ok(()),
        }
        self.positions.add(place, &self.path);
        Ok(())
    }

    /// A node is over.
    fn leave(&mut self) {
        if let Some(Open { kind: OpenKind::Mapping { expects_key, .. }, .. }) = self.open.last_mut()
        {
            *expects_key = !*expects_key;
        }
    }

    fn open(&mut self, kind: OpenKind, anchor: usize, place: Place) -> Result<(), SourceError> {
        self.enter(place, None)?;
        if self.open.len() == DEPTH_MAX {
            let message = format!("nested deeper than {DEPTH_MAX} levels");
            return Err(SourceError::new(place, self.path.as_str(), message));
        }
        let template = self.open.last().is_some_and(|parent| match parent.kind {
            OpenKind::Sequence { .. } => parent.template,
            OpenKind::Mapping { value_is_template, .. } => value_is_template,
        });
        let weight_before = self.weight;
        self.grow(1, place)?;
        self.open.push(Open { kind, path_len: self.path.len(), template, anchor, weight_before });
        Ok(())
    }

    fn close(&mut self) {
        if let Some(closed) = self.open.pop() {
            self.anchored.insert(closed.anchor, self.weight - closed.weight_before);
            self.path.truncate(closed.path_len);
            self.leave();
        }
    }

    fn grow(&mut self, weight: usize, place: Place) -> Result<(), SourceError> {
        self.weight += weight;
        if self.weight > EXPANDED_WEIGHT_MAX {
            let message = "aliases make the definition too large";
            return Err(SourceError::new(place, self.path.as_str(), message));
        }
        Ok(())
    }
}

/// Fields stand under their proto name however they are spelled.
fn push_key(path: &mut String, key: &str, template: bool) {
    let is_plain = key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
    if key.is_empty() || !is_plain {
        path.push_str(&format!("[{key:?}]"));
        return;
    }
    if !path.is_empty() {
        path.push('.');
    }
    for c in key.chars() {
        if c.is_ascii_uppercase() && !template {
            path.push('_');
            path.push(c.to_ascii_lowercase());
        } else {
            path.push(c);
        }
    }
}

/// Readers turn a whole number that fits into no 64-bit integer into a floating one.
fn loses_digits(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && text.parse::<i64>().is_err()
        && text.parse::<u64>().is_err()
}
