//! Where each field of a definition stands in its text. The same walk refuses what the reader after
//! it would take, but should not: aliases that explode and numbers that would lose digits.

use std::collections::{HashMap, HashSet};

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Span};

use super::segment::Segment;
use super::{DEPTH_MAX, EXPANDED_WEIGHT_MAX, SourceError};

/// The fields that hold templates, in which keys are the author's own. No other field has one of
/// these names, but a branch may.
pub(super) const TEMPLATE_FIELDS: [&str; 4] = ["details", "input", "output", "set"];
/// The field that holds values by ids, which are the author's own.
pub(super) const ID_FIELD: &str = "branches";

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
///
/// Memory is in proportion to the text, because each entry holds only the last segment of its path and
/// the number of the entry around it. Whole paths would repeat a long key for everything below it.
#[derive(Clone, Debug, Default)]
pub struct Positions {
    /// In the order of the text. The first is the definition itself.
    entries: Vec<Entry>,
    /// The numbers of the other entries, in the order of what they are in and of their segments.
    children: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Entry {
    place: Place,
    /// The number of the entry that this one is in; of the definition for the definition itself.
    parent: usize,
    segment: Segment,
}

impl Entry {
    fn order(&self) -> (usize, &Segment) {
        (self.parent, &self.segment)
    }
}

/// The number of the entry for the definition itself.
const ROOT: usize = 0;

impl Positions {
    /// The place of a field; of the nearest one around it when it is not in the text.
    pub fn find(&self, path: &str) -> Place {
        let (mut found, mut rest) = (ROOT, path);
        while let Some((segment, after)) = Segment::split_from(rest) {
            let Some(child) = self.child(found, &segment) else { break };
            (found, rest) = (child, after);
        }
        self.entries.get(found).map_or(Place::START, |entry| entry.place)
    }

    /// The path of the last field that begins at or before a place.
    pub(super) fn path_at(&self, place: Place) -> String {
        self.path(self.entry_at(place))
    }

    /// The path of a field of the mapping that begins at a place. A mapping in block style begins
    /// where its first key does.
    pub(super) fn field_at(&self, place: Place, field: &str) -> String {
        let around = self.entry_at(place);
        let parent = self.entries.get(around).map_or(ROOT, |entry| entry.parent);
        let segment = Segment::key(field, false);
        let known = [around, parent].into_iter().find_map(|mapping| self.child(mapping, &segment));
        self.path(known.unwrap_or(around))
    }

    /// Walks the text's one document.
    pub(super) fn of(text: &str) -> Result<Self, SourceError> {
        let mut walk = Walk::default();
        for event in Parser::new_from_str(text) {
            match event {
                Ok((event, span)) => walk.take(&event, span)?,
                Err(error) => {
                    let place = place(error.marker().line(), error.marker().col());
                    let path = walk.positions.path_at(place);
                    return Err(SourceError::new(place, path, error.info()));
                }
            }
        }
        if walk.positions.entries.is_empty() {
            return Err(SourceError::new(Place::START, "", "the source is empty"));
        }
        walk.positions.complete();
        Ok(walk.positions)
    }

    /// Adds an entry and returns its number.
    fn add(&mut self, place: Place, parent: usize, segment: Segment) -> usize {
        self.entries.push(Entry { place, parent, segment });
        self.entries.len() - 1
    }

    /// All entries are there; from now on they can be found by their paths.
    fn complete(&mut self) {
        self.entries.shrink_to_fit();
        self.children = (ROOT + 1..self.entries.len()).collect();
        let order = |&number: &usize| self.entries[number].order();
        self.children.sort_unstable_by(|a, b| order(a).cmp(&order(b)));
    }

    fn child(&self, parent: usize, segment: &Segment) -> Option<usize> {
        let order = |&number: &usize| self.entries[number].order().cmp(&(parent, segment));
        self.children.binary_search_by(order).ok().map(|index| self.children[index])
    }

    /// The number of the last entry that begins at or before a place.
    fn entry_at(&self, place: Place) -> usize {
        self.entries.partition_point(|entry| entry.place <= place).saturating_sub(1)
    }

    fn path(&self, number: usize) -> String {
        let mut segments = Vec::new();
        let mut number = number;
        while number != ROOT {
            let Entry { parent, segment, .. } = &self.entries[number];
            segments.push(segment);
            number = *parent;
        }
        let mut path = String::new();
        for segment in segments.into_iter().rev() {
            segment.push_to(&mut path);
        }
        path
    }

    /// The bytes that this holds, its own size left out.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        let entries = self.entries.capacity() * size_of::<Entry>();
        let children = self.children.capacity() * size_of::<usize>();
        let segments: usize = self.entries.iter().map(|entry| entry.segment.held_bytes()).sum();
        entries + children + segments
    }
}

/// The parser counts columns from 0.
fn place(line: usize, column: usize) -> Place {
    Place { line: line.max(1), column: column + 1 }
}

/// A collection that is open.
struct Open {
    kind: OpenKind,
    /// The number of the entry for the collection itself.
    entry: usize,
    inside: Inside,
    anchor: usize,
    weight_before: usize,
}

/// What the keys of a collection are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// Fields of a message.
    Fields,
    /// Ids of the author, each of which holds a message.
    Ids,
    /// The author's own, and so is everything below them.
    Template,
}

impl Inside {
    /// What is inside the value of a key.
    fn of_key(self, key: &str) -> Self {
        match self {
            Self::Template => Self::Template,
            Self::Ids => Self::Fields,
            Self::Fields if TEMPLATE_FIELDS.contains(&key) => Self::Template,
            Self::Fields if key == ID_FIELD => Self::Ids,
            Self::Fields => Self::Fields,
        }
    }
}

enum OpenKind {
    Sequence { next: usize },
    Mapping { expects_key: bool, value: Inside, keys: HashSet<Segment> },
}

#[derive(Default)]
struct Walk {
    positions: Positions,
    /// The number of the entry that the walk has reached.
    at: usize,
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
                    return Err(self.error(place, message));
                }
                self.grow(text.len() + 1, place)?;
                self.anchored.insert(*anchor, text.len() + 1);
                self.leave();
            }
            Event::SequenceStart(_, anchor, _) => {
                self.open(OpenKind::Sequence { next: 0 }, *anchor, place)?;
            }
            Event::MappingStart(_, anchor, _) => {
                let (expects_key, value) = (true, Inside::Fields);
                let keys = HashSet::new();
                let kind = OpenKind::Mapping { expects_key, value, keys };
                self.open(kind, *anchor, place)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => {
                self.enter(place, None)?;
                let Some(&weight) = self.anchored.get(anchor) else {
                    let message = "the alias is inside the value that it refers to";
                    return Err(self.error(place, message));
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
            self.at = self.positions.add(place, ROOT, Segment::Key("".into()));
            return Ok(());
        };
        match &mut parent.kind {
            OpenKind::Sequence { next } => {
                self.at = self.positions.add(place, parent.entry, Segment::Element(*next));
                *next += 1;
            }
            OpenKind::Mapping { expects_key: true, value, keys } => {
                let Some(key) = key else {
                    self.at = parent.entry;
                    return Err(self.error(place, "a key must be plain text"));
                };
                *value = parent.inside.of_key(key);
                let segment = Segment::key(key, parent.inside != Inside::Fields);
                let is_first = keys.insert(segment.clone());
                self.at = self.positions.add(place, parent.entry, segment);
                if !is_first {
                    return Err(self.error(place, format!("duplicate field `{key}`")));
                }
            }
            // The key has an entry, which is that of its value too.
            OpenKind::Mapping { expects_key: false, .. } => {}
        }
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
            return Err(self.error(place, message));
        }
        let inside = self.open.last().map_or(Inside::Fields, |parent| match parent.kind {
            OpenKind::Sequence { .. } => parent.inside,
            OpenKind::Mapping { value, .. } => value,
        });
        let weight_before = self.weight;
        self.grow(1, place)?;
        self.open.push(Open { kind, entry: self.at, inside, anchor, weight_before });
        Ok(())
    }

    fn close(&mut self) {
        if let Some(closed) = self.open.pop() {
            self.anchored.insert(closed.anchor, self.weight - closed.weight_before);
            self.at = closed.entry;
            self.leave();
        }
    }

    fn grow(&mut self, weight: usize, place: Place) -> Result<(), SourceError> {
        self.weight += weight;
        if self.weight > EXPANDED_WEIGHT_MAX {
            let message = "aliases make the definition too large";
            return Err(self.error(place, message));
        }
        Ok(())
    }

    /// Something is wrong with the node that the walk has reached.
    fn error(&self, place: Place, message: impl Into<String>) -> SourceError {
        SourceError::new(place, self.positions.path(self.at), message)
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
