//! A reader of the failure feed that follows its cursor.

use std::time::Duration;

use recoup_store::memory::MemoryStore;
use recoup_store::{Cursor, Feed, PageLimit, Positioned};

use crate::wait::ready;
use crate::world::{Event, World};

pub struct Subscriber {
    cursor: Cursor,
    pub got: Vec<Positioned>,
}

impl Subscriber {
    pub fn new(store: &MemoryStore) -> Self {
        let cursor = ready(store.feed_start()).expect("the model always has a start");
        Self { cursor, got: Vec::new() }
    }
}

impl World<'_> {
    pub fn read_feed(&mut self) {
        let limit = self.random.index(6) + 1;
        // Between its polls it keeps the cursor as text, as clients do.
        let text = self.subscriber.cursor.encode();
        let limit = PageLimit::events(limit);
        let page =
            Cursor::decode(&text).and_then(|cursor| ready(self.store.read_feed(&cursor, limit)));
        match page {
            Ok(page) => {
                if let Some(gap) = page.gap {
                    self.violate("the feed skips nothing", format!("a gap of {gap}"));
                }
                for event in &page.events {
                    let id = event.row.id.clone();
                    self.note(format_args!("the subscriber gets {id}"));
                }
                self.subscriber.got.extend(page.events);
                self.subscriber.cursor = page.cursor;
            }
            Err(error) => self.violate("the feed can be read", error.to_string()),
        }
        let pause = match self.random.below(10) {
            0 => self.random.millis(100, 1_000),
            _ => Duration::from_micros(self.random.between(1_000, 40_000)),
        };
        self.after(pause, Event::Read);
    }
}
