//! The exchange of tasks between nodes: what other nodes have published, and how often this node exchanges with them.

use std::time::Duration;

use recoup_store::{Peers, QueueName};

use crate::clock::Tick;

/// How often a node that is alone looks for other nodes, and into the overflow.
const ALONE: Duration = Duration::from_secs(1);
/// After a task has changed nodes, more are expected for this long, and nodes exchange more often: between
/// two exchanges a node gives away no more tasks than the credit that it has read.
const TRADING: Duration = Duration::from_secs(1);
const TRADING_FASTER: u32 = 5;

#[derive(Default)]
pub(super) struct Trade {
    /// What other nodes have published, less the tasks that went to them since.
    peers: Peers,
    /// When a task last went to another node, or came from one.
    traded_at: Option<Tick>,
    /// Whether a timer to look into the overflow is set.
    claiming: bool,
}

impl Trade {
    /// How often this node exchanges tasks with others. `interval`: the configured interval.
    pub fn interval(&self, interval: Duration, now: Tick) -> Duration {
        let is_trading = self.traded_at.is_some_and(|at| at + TRADING > now);
        match (self.peers.nodes, is_trading) {
            (0, _) => ALONE.max(interval),
            (_, true) => interval / TRADING_FASTER,
            (_, false) => interval,
        }
    }

    /// Notes that a task has gone to another node, or has come from one.
    pub fn traded(&mut self, now: Tick) {
        self.traded_at = Some(now);
    }

    pub fn is_alone(&self) -> bool {
        self.peers.nodes == 0
    }

    pub fn read(&mut self, peers: Peers) {
        self.peers = peers;
    }

    /// The last exchange has failed, so the credit that was read before is too old to rely on.
    pub fn not_read(&mut self) {
        self.peers.idle.clear();
    }

    /// How many tasks of a type other nodes would take.
    pub fn credit(&self, name: &QueueName, task_type: &str) -> usize {
        let wanted = self.peers.idle.iter().filter(|idle| idle.takes(name, task_type));
        wanted.map(|idle| idle.credit as usize).sum()
    }

    /// Counts a task against the credit of other nodes. Returns false if they have none for it.
    pub fn use_credit(&mut self, name: &QueueName, task_type: &str) -> bool {
        let mut idle = self.peers.idle.iter_mut();
        let taker = idle.find(|idle| idle.credit > 0 && idle.takes(name, task_type));
        taker.map(|taker| taker.credit -= 1).is_some()
    }

    /// Notes that there are workers to claim tasks for. Returns true if the caller must set the first timer for it.
    pub fn begin_claiming(&mut self) -> bool {
        !std::mem::replace(&mut self.claiming, true)
    }

    pub fn end_claiming(&mut self) {
        self.claiming = false;
    }

    /// The lease was lost.
    pub fn end_life(&mut self) {
        self.claiming = false;
        self.peers = Peers::default();
    }
}

#[cfg(test)]
mod tests {
    use recoup_core::id::Namespace;
    use recoup_store::IdleCredit;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);

    fn queue() -> QueueName {
        QueueName { namespace: Namespace::from("default"), queue: "mail".into() }
    }

    fn peers(credit: u32) -> Peers {
        let idle = IdleCredit { queues: vec![queue()], task_types: vec!["send".into()], credit };
        Peers { nodes: 1, idle: vec![idle] }
    }

    #[test]
    fn exchanges_are_more_frequent_for_a_second_after_a_task_changed_nodes() {
        let mut trade = Trade::default();
        let now = Tick::after(Duration::from_secs(10));
        assert_eq!(trade.interval(INTERVAL, now), ALONE, "there is no other node");
        trade.read(peers(1));
        assert_eq!(trade.interval(INTERVAL, now), INTERVAL);
        trade.traded(now);
        assert_eq!(trade.interval(INTERVAL, now), INTERVAL / TRADING_FASTER);
        assert_eq!(trade.interval(INTERVAL, now + TRADING), INTERVAL);
    }

    #[test]
    fn no_more_tasks_are_given_away_than_other_nodes_have_credit_for() {
        let mut trade = Trade::default();
        trade.read(peers(2));
        assert_eq!(trade.credit(&queue(), "send"), 2);
        assert_eq!(trade.credit(&queue(), "other"), 0);
        let given = (0..3).filter(|_| trade.use_credit(&queue(), "send")).count();
        assert_eq!((given, trade.credit(&queue(), "send")), (2, 0));
    }

    #[test]
    fn claiming_is_set_up_only_once_until_the_lease_ends() {
        let mut trade = Trade::default();
        assert!(trade.begin_claiming());
        assert!(!trade.begin_claiming(), "one is set up already");
        trade.end_life();
        assert!(trade.begin_claiming(), "the last one ended with the lease");
    }
}
