//! The lane of one node: the connection that commits, one transaction after the other, and the clock that gives
//! the numbers of the feed.
//!
//! Before a connection is used, its server process is recorded as suspect. The record is cleared when the
//! outcome is known. If the connection is lost, the answer does not arrive in time or the caller is dropped,
//! the record stays. The next user of the lane then first makes sure that the old process is gone, because only
//! after that can it read what the process did.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use recoup_core::time::Timestamp;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::error::Elapsed;
use uuid::Uuid;

use super::error::Failure;
use super::session::{Backend, LaneSession};
use super::value;
use crate::contract::{Error, NodeId, Result};

pub(super) struct Lane {
    pub node: NodeId,
    /// The highest number that was assigned or loaded.
    pub last: AtomicI64,
    /// A reading of the database's clock, and the instant on our clock at which it was taken.
    clock: std::sync::Mutex<Option<(Instant, Timestamp)>>,
    pub slot: Arc<Mutex<Slot>>,
}

#[derive(Default)]
pub(super) struct Slot {
    pub session: Option<LaneSession>,
    /// The server process whose last transaction may be open, committed or rolled back.
    pub suspect: Option<Backend>,
    /// A commit of this lane has not been answered yet.
    pub unknown: bool,
}

/// A lane and its connection, held for one transaction.
pub(super) struct Held {
    pub session: LaneSession,
    pub lane: Arc<Lane>,
    /// The commit before was not answered, so this one may find what it wrote.
    pub after_unknown: bool,
    pub slot: OwnedMutexGuard<Slot>,
}

impl Lane {
    pub fn new(node: NodeId) -> Self {
        Self { node, last: AtomicI64::new(0), clock: Default::default(), slot: Arc::default() }
    }

    /// Makes all numbers that are assigned from now on greater than `number`.
    pub fn pass(&self, number: i64) {
        self.last.fetch_max(number, Ordering::SeqCst);
    }

    /// Records that the database's clock reads `now`.
    pub fn set_clock(&self, now: Timestamp) {
        *self.clock.lock().expect("nothing panics while it is held") = Some((Instant::now(), now));
    }

    /// Assigns `count` consecutive numbers to events, after all numbers that the lane wrote or loaded, and near
    /// the database's clock. Returns the first one.
    pub fn numbers(&self, count: usize) -> i64 {
        let clock = *self.clock.lock().expect("nothing panics while it is held");
        let now = clock.map_or(Timestamp::default(), |(at, time)| time + at.elapsed());
        let count = value::limit(count);
        let first = |last: i64| last.saturating_add(1).max(now.as_micros());
        let before = self.last.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| {
            Some(if count == 0 { last } else { first(last).saturating_add(count - 1) })
        });
        first(before.unwrap_or_else(|last| last))
    }
}

impl Held {
    /// Advances the lane past the feed numbers of these executions, as loading them does.
    pub async fn pass(&mut self, executions: &[Uuid]) -> Result<(), Failure> {
        const REACHED: &str = "
            select greatest(
                (select max(feed_number) from history where execution_id = any($1)),
                (select max(feed_number) from quarantine where execution_id = any($1)))";
        let rows = self.session.query(REACHED, &[&executions]).await?;
        let reached: Option<i64> = rows[0].try_get(0)?;
        self.lane.pass(reached.unwrap_or(0));
        Ok(())
    }

    /// Gives the lane back, with its connection if the state of that is known.
    pub fn done<T>(self, outcome: Result<Result<T, Failure>, Elapsed>) -> Result<T> {
        let Self { session, after_unknown, mut slot, .. } = self;
        let outcome = outcome.unwrap_or_else(|_| Err(Failure::Lost("no answer in time".into())));
        if let Err(Failure::Lost(reason)) = outcome {
            return Err(Error::OutcomeUnknown(reason));
        }
        slot.session = Some(session);
        slot.suspect = None;
        // A successful commit settles whatever the one before had left open. A failed one leaves it open, and
        // the caller has to send that commit again.
        slot.unknown = outcome.is_err() && after_unknown;
        outcome.map_err(|failure| match Error::from(failure) {
            Error::Unavailable(reason) if after_unknown => Error::OutcomeUnknown(reason),
            error => error,
        })
    }
}
