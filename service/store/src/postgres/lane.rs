//! The lane of one node: the connection that commits, one transaction after the other, and the clock
//! that gives the numbers of the feed.
//!
//! Before a connection is used, the server process behind it is noted as suspect; the note is taken
//! back when the outcome is known. Whatever happens in between (the connection is lost, the answer
//! does not come in time, the caller is dropped), the next user of the lane first makes sure that
//! the old process is gone: only then can what it did be read.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use recoup_core::time::Timestamp;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::error::Elapsed;
use uuid::Uuid;

use super::Inner;
use super::error::Failure;
use super::session::{Backend, LaneSession};
use super::value;
use crate::contract::{Error, NodeId, Result};

/// A process of the database that was told to end takes less, unless it hangs.
const SLOW_END: Duration = Duration::from_secs(1);

pub(super) struct Lane {
    pub node: NodeId,
    /// The highest number given out or loaded.
    last: AtomicI64,
    /// The database's clock, read when ours said this.
    clock: std::sync::Mutex<Option<(Instant, Timestamp)>>,
    slot: Arc<Mutex<Slot>>,
}

#[derive(Default)]
struct Slot {
    session: Option<LaneSession>,
    /// Its last transaction may be open, committed or rolled back.
    suspect: Option<Backend>,
    /// A commit of this lane has no answer yet.
    unknown: bool,
}

/// The lane, with its connection, for one transaction.
pub(super) struct Held {
    pub session: LaneSession,
    pub lane: Arc<Lane>,
    /// The commit before had no answer: this one may find what it wrote.
    pub after_unknown: bool,
    slot: OwnedMutexGuard<Slot>,
}

impl Lane {
    pub fn new(node: NodeId) -> Self {
        Self { node, last: AtomicI64::new(0), clock: Default::default(), slot: Arc::default() }
    }

    /// Numbers given out from now on are greater.
    pub fn pass(&self, number: i64) {
        self.last.fetch_max(number, Ordering::SeqCst);
    }

    /// The database's clock says `now`.
    pub fn set_clock(&self, now: Timestamp) {
        *self.clock.lock().expect("nothing panics while it is held") = Some((Instant::now(), now));
    }

    /// Numbers for `count` events, in a row: behind all that the lane wrote or loaded, near the
    /// database's clock. Returns the first.
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

impl Inner {
    /// The lane of a new life. Its numbers are greater than all that earlier lives of this process gave
    /// out or loaded: what they had under way is sent again in this one.
    pub fn begin_lane(&self, node: NodeId) {
        let mut lanes = self.lanes.lock().expect("nothing panics while it is held");
        let reached = lanes.values().map(|lane| lane.last.load(Ordering::SeqCst)).max();
        let lane = lanes.entry(node).or_insert_with(|| Arc::new(Lane::new(node)));
        lane.pass(reached.unwrap_or(0));
    }

    /// Waits for the lane, and for a connection if it has none.
    pub async fn hold(&self, node: NodeId) -> Result<Held> {
        let lane = self.lane(node);
        let mut slot = Arc::clone(&lane.slot).lock_owned().await;
        let session = match slot.session.take() {
            Some(session) if !session.is_closed() && session.number() == self.reached.number() => {
                session
            }
            _ => match self.connect_lane(&lane, &mut slot).await {
                Ok(session) => session,
                // What is certainly not done is this attempt; the one before may be.
                Err(error) if slot.unknown => return Err(Error::OutcomeUnknown(error.to_string())),
                Err(error) => return Err(error),
            },
        };
        let after_unknown = slot.unknown;
        slot.suspect = Some(session.backend().clone());
        slot.unknown = true;
        Ok(Held { session, lane, after_unknown, slot })
    }

    async fn connect_lane(&self, lane: &Lane, slot: &mut Slot) -> Result<LaneSession> {
        let options = &self.options;
        let mut session =
            LaneSession::open(&self.reached, options.lock_timeout, options.connect_timeout).await?;
        lane.set_clock(session.opened_at());
        let within = options.commit_timeout;
        let ready = async {
            if let Some(suspect) = &slot.suspect {
                self.make_sure_it_ended(&mut session, suspect).await?;
            }
            const REACHED: &str = "
                select greatest(
                    (select max(number) from feed where lane = $1),
                    (select feed_removed_to from node where id = $1))";
            let rows = session.query(REACHED, &[&lane.node.0]).await?;
            let reached: Option<i64> = rows[0].try_get(0)?;
            Ok(reached.unwrap_or(0))
        };
        let reached: Result<i64, Failure> = tokio::time::timeout(within, ready)
            .await
            .unwrap_or_else(|_| Err(Failure::Lost("no answer in time".into())));
        lane.pass(reached?);
        slot.suspect = None;
        Ok(session)
    }

    /// Ends the old process if it lives, and waits until it is gone: from then on its transaction is
    /// committed or rolled back for good. `backend_start` tells it from a later one with its pid.
    async fn make_sure_it_ended(
        &self,
        session: &mut LaneSession,
        suspect: &Backend,
    ) -> Result<(), Failure> {
        const TERMINATE: &str = "
            select pg_terminate_backend(pid) from pg_stat_activity
            where pid = $1 and backend_start = $2";
        const ALIVE: &str = "select from pg_stat_activity where pid = $1 and backend_start = $2";
        let backend: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
            &[&suspect.pid, &suspect.started_at];
        let counts = &self.counts;
        if session.query(TERMINATE, backend).await?.is_empty() {
            counts.backends_gone.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        counts.backends_terminated.fetch_add(1, Ordering::Relaxed);
        let (began, mut is_told) = (Instant::now(), false);
        while !session.query(ALIVE, backend).await?.is_empty() {
            if began.elapsed() > SLOW_END && !std::mem::replace(&mut is_told, true) {
                tracing::error!(
                    pid = suspect.pid,
                    "a process of the database does not end although it was told to: what it had under \
                     way may still be committed, so nothing is written before it is gone"
                );
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

impl Held {
    /// Sets the lane past what these executions have on the feed, as loading them does.
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

    /// Gives the lane back, with its connection if that is in a known state.
    pub fn done<T>(self, outcome: Result<Result<T, Failure>, Elapsed>) -> Result<T> {
        let Self { session, after_unknown, mut slot, .. } = self;
        let outcome = outcome.unwrap_or_else(|_| Err(Failure::Lost("no answer in time".into())));
        if let Err(Failure::Lost(reason)) = outcome {
            return Err(Error::OutcomeUnknown(reason));
        }
        slot.session = Some(session);
        slot.suspect = None;
        // A commit that came through settles whatever the one before had left open. One that did not
        // leaves it so: the caller has to send it again.
        slot.unknown = outcome.is_err() && after_unknown;
        outcome.map_err(|failure| match Error::from(failure) {
            Error::Unavailable(reason) if after_unknown => Error::OutcomeUnknown(reason),
            error => error,
        })
    }
}
