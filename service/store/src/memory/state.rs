//! The tables of the model, and the few rules about single rows that several traits share.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use recoup_core::id::{ExecutionId, Namespace, WorkflowName};
use recoup_core::quarantine::Quarantine;
use recoup_core::time::Timestamp;
use uuid::Uuid;

use crate::contract::{
    Batch, Error, FeedRow, IdleCredit, IndexRow, NODES_MAX, NamespaceRow, NodeFormats, NodeId,
    OverflowTask, Position, Positioned, QuarantineRow, REQUEST_KEPT, RETENTION_DEFAULT,
    RegistryAnswer, Result, StoreFormats, StoredTransition, SubscriptionRow, TaskKey,
    WorkflowVersion,
};
use crate::format::Formats;

pub(super) struct State {
    pub incarnation: Uuid,
    pub retention_paused_at: Option<Timestamp>,
    /// The highest formats that may be written.
    pub writable: Formats,
    pub nodes: BTreeMap<NodeId, Node>,
    pub executions: BTreeMap<ExecutionId, Indexed>,
    pub history: BTreeMap<ExecutionId, BTreeMap<u64, StoredTransition>>,
    pub keys: BTreeMap<(Namespace, String), ExecutionId>,
    pub requests: BTreeMap<(Namespace, String), Request>,
    pub registry_requests: BTreeMap<(Namespace, String), Answered>,
    /// The position of each event, by its id.
    pub event_ids: BTreeMap<String, Position>,
    /// The highest number of an execution's events. It is kept when the events expire.
    pub last_numbers: BTreeMap<ExecutionId, i64>,
    pub overflow: BTreeMap<TaskKey, Overflowed>,
    pub quarantines: BTreeMap<ExecutionId, Quarantined>,
    pub namespaces: BTreeMap<Namespace, NamespaceRow>,
    pub workflows: BTreeMap<(Namespace, WorkflowName), BTreeMap<u32, WorkflowVersion>>,
    pub subscriptions: BTreeMap<(Namespace, String), SubscriptionRow>,
}

pub(super) struct Indexed {
    pub row: IndexRow,
    pub owner: NodeId,
}

#[derive(Clone, Copy)]
pub(super) struct Request {
    pub execution: ExecutionId,
    pub digest: u64,
    /// Whether the request started the execution. False if the execution held the key.
    pub started: bool,
    pub at: Timestamp,
}

/// The answer to a mutation of the registry that carried a request id.
pub(super) struct Answered {
    pub digest: u64,
    pub answer: RegistryAnswer,
    pub at: Timestamp,
}

pub(super) struct Overflowed {
    pub task: OverflowTask,
    pub leased_until: Option<Timestamp>,
}

pub(super) struct Quarantined {
    pub row: QuarantineRow,
    /// The request of the latest release.
    pub request: Option<(String, u64)>,
}

/// A life of a node, with the lane of the feed that it writes.
pub(super) struct Node {
    pub address: String,
    /// The newest formats that the node can read.
    pub readable: Formats,
    pub ttl: Duration,
    pub renewals: u64,
    /// On the database's clock.
    pub renewed_at: Timestamp,
    /// In the node's own store time.
    pub reached: Timestamp,
    pub closed: bool,
    pub lane: Lane,
    /// The idle workers that the node has published.
    pub idle: Vec<IdleCredit>,
}

#[derive(Default)]
pub(super) struct Lane {
    pub events: BTreeMap<i64, FeedRow>,
    /// The numbers of events that retention deleted.
    pub removed: BTreeSet<i64>,
    /// The highest number that was assigned, or to which the lane's clock was advanced.
    pub last: i64,
}

impl Lane {
    /// The highest number that a reader could have seen. A lane commits in the order of its numbers, so no
    /// event at or below it can still appear.
    pub fn end(&self) -> i64 {
        let kept = self.events.last_key_value().map_or(0, |(number, _)| *number);
        kept.max(self.removed.last().copied().unwrap_or(0))
    }

    /// Assigns `count` consecutive numbers and returns the first.
    pub fn take(&mut self, count: usize, now: Timestamp) -> i64 {
        let first = (self.last + 1).max(now.as_micros());
        if count > 0 {
            self.last = first + i64::try_from(count).unwrap_or(i64::MAX) - 1;
        }
        first
    }
}

impl State {
    /// The highest number that this batch must come after although it may lose no place to it: the numbers of
    /// the executions that it puts into quarantine, and of those that have been in quarantine.
    pub fn reached_beside_history(&self, batch: &Batch) -> Option<i64> {
        let going_on = batch.transitions.iter().map(|transition| transition.execution);
        let were_there = going_on.filter(|execution| self.quarantines.contains_key(execution));
        let goes_there = batch.quarantined.iter().map(|new| new.execution);
        let numbers = were_there.chain(goes_there).map(|id| self.last_numbers.get(&id).copied());
        numbers.flatten().max()
    }

    pub fn new(incarnation: Uuid, now: Timestamp, writable: Formats) -> Self {
        let name = Namespace::from("default");
        let default = NamespaceRow {
            name: name.clone(),
            description: String::new(),
            retention: RETENTION_DEFAULT,
            created_at: now,
        };
        Self {
            incarnation,
            retention_paused_at: None,
            writable,
            nodes: BTreeMap::new(),
            executions: BTreeMap::new(),
            history: BTreeMap::new(),
            keys: BTreeMap::new(),
            requests: BTreeMap::new(),
            registry_requests: BTreeMap::new(),
            event_ids: BTreeMap::new(),
            last_numbers: BTreeMap::new(),
            overflow: BTreeMap::new(),
            quarantines: BTreeMap::new(),
            namespaces: BTreeMap::from([(name, default)]),
            workflows: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
        }
    }

    /// The node, unless its lease was closed. Until then no other node can adopt anything it owns.
    pub fn live(&mut self, node: NodeId) -> Result<&mut Node> {
        self.nodes.get_mut(&node).filter(|node| !node.closed).ok_or(Error::LeaseLost)
    }

    pub fn formats(&self) -> StoreFormats {
        let live = self.nodes.iter().filter(|(_, node)| !node.closed);
        let nodes = live.map(|(&node, Node { address, readable, .. })| NodeFormats {
            node,
            address: address.clone(),
            readable: *readable,
        });
        StoreFormats { writable: self.writable, nodes: nodes.take(NODES_MAX).collect() }
    }

    /// The highest store time that any life has reached.
    pub fn reached(&self) -> Timestamp {
        self.nodes.values().map(|node| node.reached).max().unwrap_or_default()
    }

    pub fn is_live(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| !node.closed)
    }

    pub fn owner(&self, execution: ExecutionId) -> Option<NodeId> {
        let owner = self.executions.get(&execution)?.owner;
        self.is_live(owner).then_some(owner)
    }

    /// The quarantine in force, if there is one.
    pub fn quarantine(&self, execution: ExecutionId) -> Option<&Quarantine> {
        let row = &self.quarantines.get(&execution)?.row;
        row.in_force().then_some(&row.quarantine)
    }

    /// The outcome that a request id settled, within its day.
    pub fn request(&self, namespace: &Namespace, id: &str, now: Timestamp) -> Option<Request> {
        let request = self.requests.get(&(namespace.clone(), id.to_owned()))?;
        (request.at + REQUEST_KEPT > now).then_some(*request)
    }

    pub fn retention(&self, namespace: &Namespace) -> Duration {
        self.namespaces.get(namespace).map_or(RETENTION_DEFAULT, |row| row.retention)
    }

    pub fn events(&self) -> Vec<Positioned> {
        let mut events: Vec<_> = self
            .nodes
            .iter()
            .flat_map(|(&lane, node)| node.lane.events.iter().map(move |(n, row)| (lane, *n, row)))
            .map(|(lane, number, row)| Positioned {
                position: Position { number, lane },
                row: row.clone(),
            })
            .collect();
        events.sort_by_key(|event| event.position);
        events
    }
}
