//! The model: a store in memory that keeps every promise of the contract in the plainest way. Tests compare the
//! real stores with it, and the engine's simulation runs several nodes on one.
//!
//! Nothing here depends on hash order, on randomness or on a clock of its own, and no method waits. The same
//! calls give the same answers in every process.

mod executions;
mod feed;
mod namespaces;
mod nodes;
mod overflow;
mod registry;
mod retention;
mod state;
mod subscriptions;
#[cfg(test)]
mod tests;
mod transitions;
mod workflows;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;
use uuid::Uuid;

pub use transitions::PendingCommit;

use crate::contract::{NodeId, Positioned, StoredTransition};
use crate::format::Formats;
use state::State;

/// Gives the store its time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Options of a store in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Unset: derived from the time at which the store is created.
    pub incarnation: Option<Uuid>,
    /// The highest formats that may be written at first. Unset: the newest formats.
    pub writable: Option<Formats>,
    /// Wrong on purpose: a reader's cursor is the greatest number that it has seen on any lane. Tests that
    /// claim to detect a skipped event must detect this.
    pub mutant_scalar_cursor: bool,
    /// Wrong on purpose: a transition that loses its place still writes the rows that belong to it.
    pub mutant_companions_for_losers: bool,
}

/// A handle; clones share the same store.
#[derive(Clone)]
pub struct MemoryStore {
    clock: Clock,
    options: Options,
    /// The newest formats that this handle reads.
    formats: Formats,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("options", &self.options).finish_non_exhaustive()
    }
}

impl MemoryStore {
    /// Creates a store with the default options.
    pub fn new(clock: Clock) -> Self {
        Self::with_options(clock, Options::default())
    }

    pub fn with_options(clock: Clock, options: Options) -> Self {
        let now = clock();
        let incarnation = options.incarnation.unwrap_or_else(|| incarnation(now, 0));
        let writable = options.writable.unwrap_or(Formats::NEWEST);
        let state = State::new(incarnation, now, writable);
        let formats = Formats::NEWEST;
        Self { clock, options, formats, state: Arc::new(Mutex::new(state)) }
    }

    /// Creates a store on the system clock. Every call creates one with its own incarnation.
    pub fn with_system_clock() -> Self {
        static MADE: AtomicU64 = AtomicU64::new(1);
        let incarnation = incarnation(system_now(), MADE.fetch_add(1, Ordering::Relaxed));
        let options = Options { incarnation: Some(incarnation), ..Options::default() };
        Self::with_options(Arc::new(system_now), options)
    }

    /// The same store as seen by a binary that reads only these formats and older ones.
    #[must_use]
    pub fn reading(&self, formats: Formats) -> Self {
        Self { formats, ..self.clone() }
    }

    /// All failure events that are visible now, by position. A reader of the feed must see exactly these.
    pub fn events(&self) -> Vec<Positioned> {
        self.lock().events()
    }

    /// Advances the lane of a node past this number, as if the node's clock had been ahead.
    pub fn set_lane(&self, node: NodeId, last: i64) {
        if let Some(node) = self.lock().nodes.get_mut(&node) {
            node.lane.last = node.lane.last.max(last);
        }
    }

    /// Damages a history by removing one transition. Returns it, so that [`MemoryStore::put_transition`] can
    /// put it back.
    pub fn take_transition(
        &self,
        execution: ExecutionId,
        sequence: u64,
    ) -> Option<StoredTransition> {
        self.lock().history.get_mut(&execution)?.remove(&sequence)
    }

    /// Puts a transition into a history and replaces what is there. This repairs the history, or damages it in
    /// another way.
    pub fn put_transition(&self, execution: ExecutionId, transition: StoredTransition) {
        let mut state = self.lock();
        if let Some(indexed) = state.executions.get_mut(&execution) {
            // The same happens with every transition that needs a newer format.
            indexed.row.format = indexed.row.format.max(transition.format);
        }
        state.history.entry(execution).or_default().insert(transition.sequence, transition);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a method has panicked, so the model can no longer be used")
    }

    fn time(&self) -> Timestamp {
        (self.clock)()
    }
}

fn incarnation(now: Timestamp, ordinal: u64) -> Uuid {
    Uuid::from_u64_pair(now.as_micros().unsigned_abs(), ordinal)
}

fn system_now() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX))
}
