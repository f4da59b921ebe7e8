//! Limits how many connections are open, in total and per peer, and logs the ones that are refused.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The shortest interval between two log lines about the same thing. Each line says how often it has
/// happened.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Counts the open connections.
pub struct Gate {
    all_max: usize,
    per_peer_max: usize,
    open: Mutex<Open>,
    pub log: Log,
}

#[derive(Default)]
struct Open {
    all: usize,
    by_peer: HashMap<Peer, usize>,
}

impl Gate {
    pub fn new(all_max: usize, per_peer_max: usize) -> Self {
        Self { all_max, per_peer_max, open: Mutex::default(), log: Log::default() }
    }

    /// Returns a place for one more connection, unless a limit has been reached.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Slot> {
        let peer = Peer::of(address);
        let mut open = self.open.lock();
        if open.all >= self.all_max {
            self.log.full(self.all_max);
            return None;
        }
        let of_peer = open.by_peer.entry(peer).or_default();
        if *of_peer >= self.per_peer_max {
            if *of_peer == 0 {
                open.by_peer.remove(&peer);
            }
            self.log.full_for_peer(address, self.per_peer_max);
            return None;
        }
        *of_peer += 1;
        open.all += 1;
        drop(open);
        Some(Slot { gate: self.clone(), peer })
    }
}

/// The place of an open connection. Dropping it frees the place.
pub struct Slot {
    gate: Arc<Gate>,
    peer: Peer,
}

impl Slot {
    /// Logs that the connection is closed because it sent no preface in time.
    pub fn log_silence(&self) {
        self.gate.log.silent();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.gate.open.lock();
        open.all -= 1;
        if let Some(of_peer) = open.by_peer.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                open.by_peer.remove(&self.peer);
            }
        }
    }
}

/// The peer to which a connection is attributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Peer(IpAddr);

impl Peer {
    /// A host with an IPv6 address usually controls the whole /64 network of the address.
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & (u128::MAX << 64);
                Self(Ipv6Addr::from_bits(network).into())
            }
            address => Self(address),
        }
    }
}

/// The log of refused connections. It is throttled, so that it does not fill up during an attack.
#[derive(Default)]
pub struct Log {
    accept_failed: Mutex<Seldom>,
    full: Mutex<Seldom>,
    full_for_peer: Mutex<Seldom>,
    silent: Mutex<Seldom>,
}

impl Log {
    pub fn accept_failed(&self, error: &io::Error) {
        if let Some(times) = self.accept_failed.lock().count() {
            tracing::error!(times, %error, "connections cannot be accepted; trying again every second");
        }
    }

    fn full(&self, max: usize) {
        if let Some(times) = self.full.lock().count() {
            tracing::warn!(times, max, "connections were refused: too many are open");
        }
    }

    fn full_for_peer(&self, address: IpAddr, max: usize) {
        if let Some(times) = self.full_for_peer.lock().count() {
            tracing::warn!(
                times,
                max,
                last = %address,
                "connections were refused: their peers have too many open"
            );
        }
    }

    fn silent(&self) {
        if let Some(times) = self.silent.lock().count() {
            tracing::warn!(times, "connections were closed: they sent no HTTP/2 preface in time");
        }
    }
}

/// Counts how often an event happens between two log lines about it.
#[derive(Default)]
struct Seldom {
    logged_at: Option<Instant>,
    times: u64,
}

impl Seldom {
    /// Counts the event. If it is time to log again, returns how often it has happened since the last line.
    fn count(&mut self) -> Option<u64> {
        self.times += 1;
        if self.logged_at.is_some_and(|at| at.elapsed() < LOG_INTERVAL) {
            return None;
        }
        self.logged_at = Some(Instant::now());
        Some(std::mem::take(&mut self.times))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn v4(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    #[test]
    fn one_peer_cannot_take_all_connections() {
        let gate = Arc::new(Gate::new(3, 2));
        let first = gate.admit(v4(1)).expect("there is room");
        let _second = gate.admit(v4(1)).expect("there is room");
        assert!(gate.admit(v4(1)).is_none(), "the peer has reached its limit");
        let _other = gate.admit(v4(2)).expect("there is room for others");
        assert!(gate.admit(v4(3)).is_none(), "all three are in use");
        drop(first);
        let _again = gate.admit(v4(1)).expect("a closed connection frees its place");
    }

    #[test]
    fn peers_without_connections_are_forgotten() {
        let gate = Arc::new(Gate::new(10, 10));
        for last in 0..=255 {
            drop(gate.admit(v4(last)));
        }
        assert!(gate.open.lock().by_peer.is_empty());
        let none_allowed = Arc::new(Gate::new(10, 0));
        assert!(none_allowed.admit(v4(1)).is_none());
        assert!(none_allowed.open.lock().by_peer.is_empty());
    }

    #[test]
    fn ipv6_network_is_one_peer_and_a_mapped_address_counts_as_ipv4() {
        let peer = |text: &str| Peer::of(text.parse().expect("an address"));
        assert_eq!(peer("2001:db8:0:1::1"), peer("2001:db8:0:1:ffff::2"));
        assert_ne!(peer("2001:db8:0:1::1"), peer("2001:db8:0:2::1"));
        assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn flood_of_refusals_is_logged_once_per_interval() {
        let mut seldom = Seldom::default();
        assert_eq!(seldom.count(), Some(1));
        assert!((0..1000).all(|_| seldom.count().is_none()));
        tokio::time::advance(LOG_INTERVAL).await;
        assert_eq!(seldom.count(), Some(1001));
    }
}
