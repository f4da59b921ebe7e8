//! Executions that do not proceed until an operator releases them.
//!
//! | event | effect |
//! | --- | --- |
//! | the history has a gap or does not fold, a decision panics, or the store refuses a decision of the node's own | nothing more is decided about it; the quarantine goes with the next batch |
//! | the batch is committed | callers that wait are refused, and the slot is dropped |
//! | a later command, or another node | reads the quarantine and is refused |
//! | an operator's release | one transaction ends the quarantine and makes this node the owner; then the execution is read and continues |
//!
//! The owner may still believe in an older state when another node finds the damage. Its next commit is
//! answered with [`recoup_store::Settled::Quarantined`], and it reads the quarantine then.

use recoup_core::failure_event::quarantined;
use recoup_core::id::ExecutionId;
use recoup_core::quarantine::Quarantine;
use recoup_store::{Error, NewQuarantine, NodeId, Release};

use super::Node;
use super::io::{Damage, Output, Refusal};
use super::slot::Waiter;
use crate::load::unavailable;
use crate::transition::feed_row;

impl<R> Node<R> {
    /// Puts an execution in quarantine: nothing about it is decided until an operator releases it.
    pub(super) fn quarantine(&mut self, id: ExecutionId, damage: Damage) {
        let Damage { reason, detail, namespace, subject } = damage;
        let quarantine = Quarantine::new(reason, &detail, self.now);
        tracing::error!(execution = %id, %quarantine, "the execution is quarantined");
        self.forget(id);
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        slot.known.quarantine();
        let event = feed_row(&quarantined(namespace, subject, &quarantine));
        self.committer.quarantine(NewQuarantine { execution: id, quarantine, event });
        self.settle_slot(id);
    }

    /// A decision panicked and its state is gone. The execution is read again, and then quarantined.
    pub(super) fn decision_panicked(&mut self, id: ExecutionId, what: &str) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        if !slot.known.is_resident() {
            // There is no execution yet that could be quarantined, so only the start is refused.
            tracing::error!(execution = %id, what, "a decision about a start panicked");
            self.refuse_all(id, &Refusal::Failed);
            return self.drop_slot(id);
        }
        slot.panicked = Some(what.to_owned());
        self.read_again(id);
    }

    /// The store has the quarantine of an execution. Its callers are refused and its slot is dropped.
    pub(super) fn refuse_quarantined(&mut self, id: ExecutionId, quarantine: Quarantine) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        // No other node needs to claim its tasks. The node that releases the execution puts them back.
        let claimed = std::mem::take(&mut slot.claimed);
        self.effects.withdraw(claimed.into_keys().collect());
        self.refuse_all(id, &Refusal::Quarantined(quarantine));
        self.drop_slot(id);
    }

    /// An operator releases an execution.
    pub(super) fn release_quarantine(&mut self, id: ExecutionId, release: Release, reply: R) {
        let Some(node) = self.node_id() else {
            let retry_after = self.options.lease_ttl / 10;
            return self.reply(reply, Err(Refusal::Overloaded { retry_after }));
        };
        self.effects.push(Output::ReleaseQuarantine { node, execution: id, release, reply });
    }

    pub(super) fn quarantine_released(
        &mut self,
        node: NodeId,
        id: ExecutionId,
        released: recoup_store::Result<()>,
        reply: R,
    ) {
        match released {
            Ok(()) => {}
            Err(Error::NotFound) => return self.reply(reply, Err(Refusal::NotQuarantined)),
            Err(Error::RequestIdReused) => {
                return self.reply(reply, Err(Refusal::RequestIdReused));
            }
            Err(error) => {
                let is_lease_lost = matches!(error, Error::LeaseLost);
                self.reply(reply, Err(Refusal::Unavailable(unavailable(error))));
                if is_lease_lost && self.node_id() == Some(node) {
                    self.lose_life();
                }
                return;
            }
        }
        let slot = self.slots.open(id);
        slot.waiters.push(Waiter {
            since: self.monotonic,
            until: None,
            reply,
            is_own: false,
            snapshot: false,
        });
        if !slot.in_flight && !slot.known.is_quarantined() {
            self.forget(id);
            self.loader.want(id);
        }
    }
}
