//! The lease of this life of the node, and those of others as this node sees them.

use std::collections::BTreeMap;
use std::time::Duration;

use recoup_store::format::Formats;
use recoup_store::{Lease, NodeId, Renewals};

use crate::clock::Tick;

#[derive(Default)]
pub(super) struct Life {
    lease: Option<Lease>,
    asked_at: Tick,
    /// Until when this node holds the lease; others wait at least that long.
    ends: Tick,
    /// Since when there is no lease.
    lifeless_since: Option<Tick>,
    /// Since when the lease could not be renewed.
    unrenewed_since: Option<Tick>,
}

/// What came of a renewal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Renewed {
    /// `was_out`: it had ended on this node's clock.
    Held { was_out: bool },
    /// The store's database is not the one that it was.
    OtherTimeline,
}

impl Life {
    pub fn begin(&mut self, now: Tick) {
        self.lifeless_since = Some(now);
    }

    /// This life, once it has begun.
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

    /// Whether no other node can have taken over by now.
    pub fn has_lease(&self, now: Tick) -> bool {
        self.lease.is_some() && self.ends > now
    }

    /// A lease, or its renewal, is asked for.
    pub fn asks(&mut self, now: Tick) {
        self.asked_at = now;
    }

    pub fn joined(&mut self, lease: Lease, ttl: Duration) {
        // Granted after the question: another node sees it begin later than this.
        self.ends = self.asked_at + ttl;
        self.lease = Some(lease);
        (self.lifeless_since, self.unrenewed_since) = (None, None);
    }

    /// Asked in this life.
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

    /// Whether there was a lease to lose.
    pub fn lose(&mut self, now: Tick) -> bool {
        let had_lease = self.lease.take().is_some();
        if had_lease {
            self.lifeless_since = Some(now);
        }
        had_lease
    }

    /// Since when the store has not granted or renewed the lease, if that is so.
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
    /// When this node first saw it like that.
    since: Tick,
}

impl Watch {
    /// Those that have not been renewed for their length, on this node's clock.
    pub fn silent(&self, now: Tick) -> Vec<Renewals> {
        let silent = self.0.values().filter(|one| now.since(one.since) >= one.lease.ttl);
        silent.map(|one| one.lease).collect()
    }

    /// The count that an answer shows was read before it came, so its silence began earlier.
    pub fn see(&mut self, leases: Vec<Renewals>, now: Tick) {
        let before = std::mem::take(&mut self.0);
        let seen = |lease: Renewals| match before.get(&lease.node) {
            Some(known) if known.lease == lease => (lease.node, *known),
            _ => (lease.node, Watched { lease, since: now }),
        };
        self.0 = leases.into_iter().map(seen).collect();
    }
}
