//! Takes the lane of a node, with a connection, after making sure that the connection before it is gone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Inner;
use super::error::Failure;
use super::lane::{Held, Lane, Slot};
use super::session::{Backend, LaneSession};
use crate::contract::{Error, NodeId, Result};

/// A server process that was told to end takes less time than this unless it hangs.
const SLOW_END: Duration = Duration::from_secs(1);

impl Inner {
    /// Begins the lane of a new life. Its numbers are greater than all numbers that earlier lives of this
    /// process assigned or loaded, because batches that were in flight in an earlier life are sent again in
    /// this one.
    pub fn begin_lane(&self, node: NodeId) {
        let mut lanes = self.lanes.lock().expect("nothing panics while it is held");
        let reached = lanes.values().map(|lane| lane.last.load(Ordering::SeqCst)).max();
        let lane = lanes.entry(node).or_insert_with(|| Arc::new(Lane::new(node)));
        lane.pass(reached.unwrap_or(0));
    }

    /// Waits for the lane, and opens a connection if the lane has none.
    pub async fn hold(&self, node: NodeId) -> Result<Held> {
        let lane = self.lane(node);
        let mut slot = Arc::clone(&lane.slot).lock_owned().await;
        let session = match slot.session.take() {
            Some(session) if !session.is_closed() && session.number() == self.reached.number() => {
                session
            }
            _ => match self.connect_lane(&lane, &mut slot).await {
                Ok(session) => session,
                // This try certainly wrote nothing, but the one before it may have.
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

    /// Ends the old server process if it is still alive, and waits until it is gone. From then on its
    /// transaction is certainly committed or rolled back. `backend_start` distinguishes it from a later process
    /// with the same pid.
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
                    "a process of the database does not end although it was terminated: its \
                     transaction may still be committed, so nothing is written until \
                     the process is gone"
                );
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}
