//! When the node must check what.

use std::collections::BTreeSet;

use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;

use super::io::SessionKey;

/// Something to check at a given time. A timer that expires too early or twice is harmless, because the
/// handler checks whether anything is due.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Execution(ExecutionId),
    Session(SessionKey),
    Renew,
    Join,
    Commit,
    StartKeyed,
    Load,
    Adopt,
    Heads,
    Due,
    Publish,
    Claim,
    Dispatch,
    Patience,
}

impl Timer {
    /// Whether it judges workers by what they have not sent for a while.
    fn judges(&self) -> bool {
        matches!(self, Self::Session(_) | Self::Execution(_))
    }
}

#[derive(Default)]
pub(super) struct Timers(BTreeSet<(Timestamp, Timer)>);

impl Timers {
    pub fn set(&mut self, at: Timestamp, timer: Timer) {
        self.0.insert((at, timer));
    }

    pub fn cancel(&mut self, at: Timestamp, timer: Timer) {
        self.0.remove(&(at, timer));
    }

    pub fn retain(&mut self, wanted: impl Fn(&Timer) -> bool) {
        self.0.retain(|(_, timer)| wanted(timer));
    }

    pub fn next_at(&self) -> Option<Timestamp> {
        self.0.first().map(|(at, _)| *at)
    }

    pub fn pop_due(&mut self, now: Timestamp) -> Option<Timer> {
        if self.next_at()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, timer)| timer)
    }

    /// Postpones the due timers that judge workers. Returns the executions among them.
    pub fn put_off(&mut self, now: Timestamp, until: Timestamp) -> Vec<ExecutionId> {
        let due = self.0.iter().take_while(|(at, _)| *at <= now);
        let due: Vec<_> = due.filter(|(_, timer)| timer.judges()).cloned().collect();
        let mut executions = Vec::new();
        for (at, timer) in due {
            self.0.remove(&(at, timer.clone()));
            if let Timer::Execution(id) = timer {
                executions.push(id);
            }
            self.0.insert((until, timer));
        }
        executions
    }
}
