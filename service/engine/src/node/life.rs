//! The lease of this node's current life, and the leases of other nodes as this node sees them.

use std::collections::BTreeMap;
use std::time::Duration;

use recoup_store::format::Formats;
use recoup_store::{Lease, NodeId, Renewals};

use crate::clock::Tick;

#[derive(Default)]
pub(super) struct Life {
    lease: Option<Lease>,
    asked_at: Tick,
    /// When this node's lease ends. Other nodes wait at least that long.
    ends: Tick,
    /// Since when the node has had no lease.
    lifeless_since: Option<Tick>,
    /// Since when the lease could not be renewed.
    unrenewed_since: Option<Tick>,
}

/// The result of a renewal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Renewed {
    /// `was_out`: the lease had already ended on this node's clock.
    Held { was_out: bool },
    /// The database behind the store is not the one that granted the lease.
    OtherTimeline,
}

impl Life {
    pub fn begin(&mut self, now: Tick) {
        self.lifeless_since = Some(now);
    }

    /// The id of this life, once it has begun.
    pub fn node(&self) -> Option<NodeId> {
        self.lease.as_ref().map(|lease| lease.node)
    }

    /// The highest formats that may be written, as of the last renewal.
    pub fn writable(&self) -> Option<Formats> {
        self.lease.as_ref().map(|lease| lease.writable)
    }

    pub fn is_alive(&self) -> bool {
        self.lease.is_some()
    }

    /// Whether it is certain that no other node has taken over yet.
    pub fn has_lease(&self, now: Tick) -> bool {
        self.lease.is_some() && self.ends > now
    }

    /// A lease, or its renewal, is about to be asked for.
    pub fn asks(&mut self, now: Tick) {
        self.asked_at = now;
    }

    pub fn joined(&mut self, lease: Lease, ttl: Duration) {
        // The lease was granted after it was asked for, so other nodes see it begin later than `asked_at`.
        self.ends = self.asked_at + ttl;
        self.lease = Some(lease);
        (self.lifeless_since, self.unrenewed_since) = (None, None);
    }

    /// Takes in the answer to a renewal that this life asked for.
    pub fn renewed(&mut self, lease: Lease, ttl: Duration, now: Tick) -> Renewed {
        let is_same = |known: &Lease| lease.node == known.node && lease.timeline == known.timeline;
        if !self.lease.as_ref().is_some_and(is_same) {
            return Renewed::OtherTimeline;
        }
        let was_out = self.ends <= now;
        self.ends = self.asked_at + ttl;
        self.lease = Some(lease);
        self.unrenewed_since = None;
        Renewed::Held { was_out }
    }

    pub fn not_renewed(&mut self, now: Tick) {
        self.unrenewed_since.get_or_insert(now);
    }

    /// Ends the lease. Returns whether there was one.
    pub fn lose(&mut self, now: Tick) -> bool {
        let had_lease = self.lease.take().is_some();
        if had_lease {
            self.lifeless_since = Some(now);
        }
        had_lease
    }

    /// Since when the store has not granted or renewed the lease; `None` if it has.
    pub fn ungranted_since(&self) -> Option<Tick> {
        self.lifeless_since.into_iter().chain(self.unrenewed_since).min()
    }
}

/// The leases of other nodes.
#[derive(Default)]
pub(super) struct Watch(BTreeMap<NodeId, Watched>);

#[derive(Clone, Copy)]
struct Watched {
    lease: Renewals,
    /// When this node first saw the lease with this count.
    since: Tick,
}

impl Watch {
    /// The leases that have not been renewed for their full length, on this node's clock.
    pub fn silent(&self, now: Tick) -> Vec<Renewals> {
        let silent = self.0.values().filter(|one| now.since(one.since) >= one.lease.ttl);
        silent.map(|one| one.lease).collect()
    }

    /// Takes in the leases that an answer shows. Their counts were read before the answer came, so a lease
    /// has been silent for at least as long as this node counts.
    pub fn see(&mut self, leases: Vec<Renewals>, now: Tick) {
        let before = std::mem::take(&mut self.0);
        let seen = |lease: Renewals| match before.get(&lease.node) {
            Some(known) if known.lease == lease => (lease.node, *known),
            _ => (lease.node, Watched { lease, since: now }),
        };
        self.0 = leases.into_iter().map(seen).collect();
    }
}
