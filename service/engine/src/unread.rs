//! Logs an error when there are executions that no running node can read.
//!
//! This happens when the last server of a newer version is stopped. No other node adopts, wakes or claims
//! what that server wrote in a newer format, until a server of that version runs again.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use recoup_store::{Store, UNREAD_MAX};

/// How often the store is asked, and the error logged.
const INTERVAL: Duration = Duration::from_secs(30);

#[derive(Default)]
pub struct Unread {
    asked_at: Mutex<Option<Instant>>,
}

impl Unread {
    /// Asks the store, unless it was asked a moment ago, and logs an error if there are such executions.
    /// Returns how many there are, as logged; 0 if nothing was logged.
    pub async fn tell(&self, store: &dyn Store, now: Instant) -> u64 {
        {
            let mut asked_at = self.asked_at.lock().unwrap_or_else(PoisonError::into_inner);
            if asked_at.is_some_and(|asked_at| now < asked_at + INTERVAL) {
                return 0;
            }
            *asked_at = Some(now);
        }
        let count = match store.unread().await {
            Ok(count) => count,
            Err(error) => {
                tracing::warn!(%error, "could not look for executions that no server can read");
                return 0;
            }
        };
        if count > 0 {
            let at_least = count >= UNREAD_MAX;
            tracing::error!(
                executions = count,
                at_least,
                "no running server can read some executions: a newer version of recoup has written \
                 them; start a server of that version"
            );
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use recoup_core::execution::{CompensationState, Phase, State};
    use recoup_core::id::{ExecutionId, TransitionId};
    use recoup_core::time::Timestamp;
    use recoup_store::format::Formats;
    use recoup_store::memory::MemoryStore;
    use recoup_store::{Batch, IndexRow, Nodes, Transition, Transitions};
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn executions_that_no_server_can_read_are_reported_once_per_interval() {
        let older = MemoryStore::with_system_clock();
        let newer = older.reading(Formats { history: 2, ..Formats::FIRST });
        let older = older.reading(Formats::FIRST);
        older.join("old:1", INTERVAL).await.expect("joins");
        let node = newer.join("new:1", INTERVAL).await.expect("joins").node;
        let index = IndexRow {
            namespace: "default".into(),
            workflow: "order".into(),
            version: 1,
            key: None,
            state: State::Running.into(),
            phase: Phase::Steps.into(),
            compensation: CompensationState::None.into(),
            run: 1,
            error_type: None,
            started_at: Timestamp::default(),
            ended_at: None,
            wake_at: None,
            format: 2,
        };
        let start = Transition {
            execution: ExecutionId(Uuid::from_u128(1)),
            sequence: 1,
            transition_id: TransitionId(Uuid::from_u128(2)),
            format: 2,
            data: Bytes::new(),
            index: Some(index),
            request: None,
            feed: Vec::new(),
            overflow_done: Vec::new(),
            may_be_gone: false,
        };
        let batch = Batch { transitions: vec![start], ..Batch::default() };
        newer.commit(node, &batch).await.expect("commits");

        let (unread, now) = (Unread::default(), Instant::now());
        assert_eq!(unread.tell(&older, now).await, 0, "its owner reads it");
        newer.leave(node).await.expect("leaves");
        assert_eq!(unread.tell(&older, now).await, 0, "it was asked just now");
        assert_eq!(unread.tell(&older, now + INTERVAL).await, 1);
        assert_eq!(unread.tell(&older, now + INTERVAL).await, 0, "it was reported just now");
        assert_eq!(unread.tell(&older, now + 2 * INTERVAL).await, 1, "it is reported again");
    }
}
