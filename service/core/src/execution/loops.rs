//! The items of a `for_each`: which is next, which run, and how they ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::value::RawValue;

use super::{Handled, LaneResult};
use crate::id::ItemKey;
use crate::payload::Payload;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loop {
    items: Vec<Payload>,
    keys: Keys,
    /// Index of the next item to begin.
    next: u32,
    /// How many items may run at a time.
    concurrency: u32,
    running: BTreeSet<ItemKey>,
    /// By the indexes of the items.
    results: BTreeMap<u32, LaneResult>,
    first_failed: Option<u32>,
    /// The items go on: the step has neither ended nor been stopped, and runs no handler.
    is_open: bool,
}

/// What stands for the items in paths.
#[derive(Clone, Debug, Default, PartialEq)]
enum Keys {
    #[default]
    Indexes,
    Named {
        keys: Vec<ItemKey>,
        indexes: HashMap<ItemKey, u32>,
    },
}

/// The items of a list or a map, and the keys of a map.
#[derive(Debug)]
pub struct Items {
    pub values: Vec<Payload>,
    /// Sorted, as the values are; none for a list.
    pub keys: Option<Vec<ItemKey>>,
}

impl Items {
    /// None if the payload is neither a JSON list nor a JSON object.
    pub fn of(payload: &Payload) -> Option<Self> {
        if !payload.is_json() {
            return None;
        }
        let slice = |raw: &RawValue| Payload::json(payload.data.slice_ref(raw.get().as_bytes()));
        if let Ok(list) = serde_json::from_slice::<Vec<&RawValue>>(&payload.data) {
            return Some(Self { values: list.into_iter().map(slice).collect(), keys: None });
        }
        let map: BTreeMap<String, &RawValue> = serde_json::from_slice(&payload.data).ok()?;
        let (keys, values): (Vec<_>, Vec<_>) =
            map.into_iter().map(|(key, value)| (ItemKey::from(key), slice(value))).unzip();
        Some(Self { values, keys: Some(keys) })
    }
}

impl Loop {
    /// `keys`: those that stand in paths in place of the indexes.
    pub(crate) fn new(items: Vec<Payload>, keys: Option<Vec<ItemKey>>, concurrency: u32) -> Self {
        let keys = match keys {
            Some(keys) => Keys::Named { indexes: keys.iter().cloned().zip(0..).collect(), keys },
            None => Keys::Indexes,
        };
        Self { items, keys, concurrency, is_open: true, ..Self::default() }
    }

    /// The number of items.
    pub fn count(&self) -> u32 {
        u32::try_from(self.items.len()).unwrap_or(u32::MAX)
    }

    pub fn key(&self, index: u32) -> ItemKey {
        match &self.keys {
            Keys::Named { keys, .. } => keys[index as usize].clone(),
            Keys::Indexes => index.to_string().into(),
        }
    }

    pub fn index(&self, key: &ItemKey) -> Option<u32> {
        match &self.keys {
            Keys::Named { indexes, .. } => indexes.get(key).copied(),
            Keys::Indexes => {
                let index: u32 = key.as_str().parse().ok()?;
                let is_it = index < self.count() && index.to_string() == key.as_str();
                is_it.then_some(index)
            }
        }
    }

    pub fn item(&self, key: &ItemKey) -> Option<&Payload> {
        self.items.get(self.index(key)? as usize)
    }

    /// How many items have begun, whether or not they have ended.
    pub fn begun(&self) -> u32 {
        self.next
    }

    /// Of the items that have ended, by their indexes.
    pub fn results(&self) -> impl Iterator<Item = (u32, &LaneResult)> {
        self.results.iter().map(|(index, result)| (*index, result))
    }

    /// How the item with this index ended; none if it has not.
    pub fn result(&self, index: u32) -> Option<&LaneResult> {
        self.results.get(&index)
    }

    /// The outputs of all items in their order; none for those that did not complete.
    pub fn outputs(&self) -> impl Iterator<Item = Option<&Payload>> {
        (0..self.count()).map(|index| match self.results.get(&index)? {
            LaneResult::Completed(output) => Some(output),
            LaneResult::Failed(_) => None,
        })
    }

    /// The items that failed, by their indexes.
    pub fn failures(&self) -> impl Iterator<Item = (u32, &Handled)> {
        self.results().filter_map(|(index, result)| match result {
            LaneResult::Failed(failed) => Some((index, &**failed)),
            LaneResult::Completed(_) => None,
        })
    }

    pub fn first_failure(&self) -> Option<(u32, &Handled)> {
        let first = self.first_failed?;
        match self.results.get(&first)? {
            LaneResult::Failed(failed) => Some((first, failed)),
            LaneResult::Completed(_) => None,
        }
    }

    /// The approximate number of bytes that the items take.
    pub(super) fn bytes(&self) -> usize {
        let names = match &self.keys {
            Keys::Named { keys, .. } => keys.iter().map(|key| key.as_str().len() + 80).sum(),
            Keys::Indexes => 0,
        };
        self.items.iter().map(|item| item.data.len() + 80).sum::<usize>() + names
    }

    pub(super) fn has_begun_or_may_begin(&self, key: &ItemKey) -> bool {
        self.running.contains(key)
            || (self.is_open && self.index(key).is_some_and(|index| index == self.next))
    }

    pub(super) fn begin(&mut self, key: &ItemKey) {
        if let Some(index) = self.index(key) {
            self.next = self.next.max(index + 1);
        }
        self.running.insert(key.clone());
    }

    pub(super) fn end(&mut self, key: &ItemKey, result: LaneResult) {
        let Some(index) = self.index(key) else { return };
        self.next = self.next.max(index + 1);
        self.running.remove(key);
        if matches!(result, LaneResult::Failed(_)) {
            self.first_failed.get_or_insert(index);
        }
        self.results.insert(index, result);
    }

    pub(super) fn close(&mut self) {
        self.running.clear();
        self.is_open = false;
    }

    /// The next item, if it may begin.
    pub(super) fn next_to_begin(&self) -> Option<ItemKey> {
        let has_room = self.running.len() < self.concurrency as usize;
        (self.is_open && has_room && self.next < self.count()).then(|| self.key(self.next))
    }

    /// Whether every item has ended.
    pub(super) fn is_over(&self) -> bool {
        self.is_open && self.running.is_empty() && self.next >= self.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_a_list_and_of_a_map_are_slices_of_the_payload() {
        let list = Items::of(&Payload::json(" [1, {\"a\": [2]},\"x\" ] ")).expect("a list");
        let texts: Vec<_> = list.values.iter().map(|item| item.data.clone()).collect();
        assert_eq!(texts, ["1", "{\"a\": [2]}", "\"x\""]);
        assert!(list.keys.is_none());
        let map = Items::of(&Payload::json(r#"{"b": 2, "a": 1}"#)).expect("a map");
        assert_eq!(map.keys, Some(vec!["a".into(), "b".into()]));
        assert_eq!(map.values, [Payload::json("1"), Payload::json("2")]);
        for other in ["1", "null", "\"x\"", "[1", ""] {
            assert!(Items::of(&Payload::json(other)).is_none(), "{other}");
        }
    }

    #[test]
    fn only_the_canonical_form_of_an_index_is_a_key() {
        let items = vec![Payload::null(); 11];
        let all = Loop::new(items, None, 1);
        for (key, index) in
            [("0", Some(0)), ("10", Some(10)), ("11", None), ("01", None), ("+1", None)]
        {
            assert_eq!(all.index(&key.into()), index, "{key}");
        }
    }
}
