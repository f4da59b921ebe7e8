//! Which executions stay in memory, and when each of them must be checked next.

use recoup_core::command::{Command, TaskId};
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;

use super::attempt::Attempt;
use super::slot::Slot;
use super::{Node, Timer};

/// Whether the owner still needs an execution in memory for its own work on it.
enum Rest {
    Awake,
    /// There is nothing to do before the store reminds this node of the execution, if it ever does.
    Asleep,
    /// There is nothing to do for a long time, but the store has no reminder for the right time.
    Unreminded,
}

impl<R> Node<R> {
    /// Makes sure that the commands and callers that wait in a slot are handled.
    pub(super) fn touch_slot(&mut self, id: ExecutionId) {
        let Some(slot) = self.slots.get(id) else {
            return;
        };
        if slot.in_flight {
            return;
        }
        if slot.known.is_unread() {
            self.loader.need(id);
        } else if !slot.known.is_quarantined() && !slot.inbox.is_empty() {
            self.slots.push_ready(id);
        }
    }

    /// After any change: sets the slot's timer, or drops a slot that is not needed.
    pub(super) fn settle_slot(&mut self, id: ExecutionId) {
        self.slots.weigh(id);
        let Some(slot) = self.slots.get(id) else {
            return;
        };
        // An execution that is being read stays, because this node may have become its owner.
        let wanted = self.loader.is_expected(id);
        if slot.is_idle() && !wanted {
            match self.rest(slot) {
                Rest::Awake => {}
                Rest::Asleep => return self.drop_slot(id),
                Rest::Unreminded => {
                    self.committer.remind(id);
                }
            }
        }
        let Some(slot) = self.slots.get(id) else {
            return;
        };
        let (due, is_doubtful) = (self.slot_due(slot), slot.is_doubtful());
        if is_doubtful {
            self.slots.doubt(id);
        }
        self.arm(id, due);
    }

    /// How many more executions fit into memory.
    pub(super) fn room(&self) -> usize {
        self.slots.room(self.options.executions_max, self.options.resident_bytes_max)
    }

    /// Whether an execution that no caller asks about can leave memory.
    fn rest(&self, slot: &Slot<R>) -> Rest {
        let Some(committed) = slot.committed().filter(|known| slot.owned && known.is_active) else {
            return Rest::Asleep;
        };
        let Some(until) = self.sleeps_until(committed) else {
            return Rest::Awake;
        };
        // The store has already been searched for reminders that are nearer, or will be at once.
        let scanned = self.now + self.options.sleep_horizon / 2;
        match slot.wake_at {
            Some(at) if scanned < at && at <= until => Rest::Asleep,
            _ => Rest::Unreminded,
        }
    }

    fn arm(&mut self, id: ExecutionId, due: Option<Timestamp>) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        if slot.timer_at == due {
            return;
        }
        if let Some(at) = std::mem::replace(&mut slot.timer_at, due) {
            self.timers.cancel(at, Timer::Execution(id));
        }
        if let Some(at) = due {
            self.timers.set(at, Timer::Execution(id));
        }
    }

    pub(super) fn drop_slot(&mut self, id: ExecutionId) {
        let Some(slot) = self.slots.remove(id) else {
            return;
        };
        self.committer.forget(id);
        if let Some(at) = slot.timer_at {
            self.timers.cancel(at, Timer::Execution(id));
        }
        for attempt in slot.attempts.iter() {
            self.unqueue(attempt);
        }
    }

    /// When this slot must be checked next.
    fn slot_due(&self, slot: &Slot<R>) -> Option<Timestamp> {
        // While the state is away, callers are answered when it comes back, and no sooner.
        let answerable = slot.state().is_some();
        let waiters = slot.waiters.iter().filter(|_| answerable);
        let waiters = waiters.filter_map(|waiter| waiter.until);
        let (Some(plan), Some(committed)) = (slot.known.plan(), slot.committed()) else {
            // Callers are answered when the execution has been read. Until then there is nothing to check.
            return None;
        };
        if !slot.owned {
            return waiters.min();
        }
        let attempts = slot.attempts.iter().filter(|attempt| !slot.holds_back(attempt)).filter_map(
            |attempt| attempt.due(plan.task(&attempt.id.path)?, &self.options, self.at()),
        );
        // While the node's own `Wake` command is pending, no other is needed.
        let waking = slot.in_flight || slot.inbox.iter().any(|one| one.command == Command::Wake);
        let wake = committed.wake.filter(|_| !waking);
        waiters.chain(attempts).chain(wake).min()
    }

    /// The timer of a slot has expired.
    pub(super) fn wake(&mut self, id: ExecutionId) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        slot.timer_at = None;
        if slot.owned
            && let Some(committed) = slot.committed()
        {
            let wake = committed.wake.is_some_and(|at| at <= now);
            if wake && !slot.in_flight {
                self.submit(id, Command::Wake, None, None);
            }
            self.check_attempts(id);
        }
        self.serve_waiters(id);
        self.settle_slot(id);
    }

    /// The attempt, if this node knows it.
    pub(super) fn attempt_mut(&mut self, task: &TaskId) -> Option<&mut Attempt> {
        self.slots.get_mut(task.execution)?.attempt_mut(task)
    }
}
