//! Accepts connections: how many there may be, how soon each must speak HTTP/2, and a pause when the
//! system has no room for another one.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::{Stream, stream};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::cli::parse_duration;
use crate::connection::Connection;

/// File descriptors that connections leave to the store and the rest of the process.
const RESERVED_FILES: u64 = 64;
/// Connections that are accepted however few files the process may open.
const CONNECTIONS_MIN: usize = 16;
/// How long to wait before accepting again after the system refused.
const PAUSE: Duration = Duration::from_secs(1);
/// The same thing is logged at most this often, with the number of times that it happened.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Args, Clone, Debug)]
pub struct ConnectionLimits {
    /// Connections that are open at the same time; further ones are closed at once. The limit of open
    /// files may lower it.
    #[arg(long, env = "RECOUP_CONNECTIONS_MAX", value_name = "N", default_value_t = Self::DEFAULT.connections_max)]
    pub connections_max: usize,

    /// Connections of one peer, which is an IPv4 address or the /64 network of an IPv6 address. All
    /// clients behind a proxy are one peer [default: half of all connections].
    #[arg(long, env = "RECOUP_CONNECTIONS_PER_PEER_MAX", value_name = "N")]
    pub connections_per_peer_max: Option<usize>,

    /// How soon a new connection must have sent the HTTP/2 preface; it is closed otherwise.
    #[arg(long, env = "RECOUP_PREFACE_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub preface_timeout: Duration,
}

impl ConnectionLimits {
    pub const DEFAULT: Self = Self {
        connections_max: 8192,
        connections_per_peer_max: None,
        preface_timeout: Duration::from_secs(10),
    };

    /// What a process that may have this many files open accepts: (in all, per peer).
    fn resolve(&self, open_files_max: Option<u64>) -> (usize, usize) {
        let left = open_files_max.map(|files| files.saturating_sub(RESERVED_FILES));
        let left = left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let all = self.connections_max.min(left.max(CONNECTIONS_MIN));
        let per_peer = self.connections_per_peer_max.unwrap_or(all.div_ceil(2));
        (all, per_peer)
    }
}

/// The connections of a listener, each within the limits. The stream never ends and has no errors.
pub fn connections(
    listener: TcpListener,
    limits: &ConnectionLimits,
) -> impl Stream<Item = io::Result<Connection>> + use<> {
    let open_files_max = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let (all, per_peer) = limits.resolve(open_files_max);
    if all < limits.connections_max {
        tracing::info!(
            connections = all,
            open_files = open_files_max,
            "the limit of open files lowers the number of connections"
        );
    }
    let gate = Arc::new(Gate::new(all, per_peer));
    let preface_timeout = limits.preface_timeout;
    stream::unfold((listener, gate), move |(listener, gate)| async move {
        let (socket, slot) = next(&listener, &gate).await;
        let connection = Connection::new(socket, slot, preface_timeout);
        Some((Ok(connection), (listener, gate)))
    })
}

/// Where connections come from.
trait Accept {
    type Socket;
    async fn accept(&self) -> io::Result<(Self::Socket, SocketAddr)>;
}

impl Accept for TcpListener {
    type Socket = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (socket, address) = TcpListener::accept(self).await?;
        // An error means that the peer has gone already.
        socket.set_nodelay(true)?;
        Ok((socket, address))
    }
}

/// Waits for a connection that the limits admit.
async fn next<A: Accept>(listener: &A, gate: &Arc<Gate>) -> (A::Socket, Slot) {
    loop {
        match listener.accept().await {
            Ok((socket, address)) => {
                if let Some(slot) = gate.admit(address.ip()) {
                    return (socket, slot);
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                gate.log.accept_failed(&error);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether another attempt to accept may succeed at once. Anything else, such as too many open files,
/// would fail again.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::ConnectionRefused
            | Kind::Interrupted
            | Kind::InvalidInput
            | Kind::NotConnected
    )
}

/// Counts open connections.
struct Gate {
    all_max: usize,
    per_peer_max: usize,
    open: Mutex<Open>,
    log: Log,
}

#[derive(Default)]
struct Open {
    all: usize,
    by_peer: HashMap<Peer, usize>,
}

impl Gate {
    fn new(all_max: usize, per_peer_max: usize) -> Self {
        Self { all_max, per_peer_max, open: Mutex::default(), log: Log::default() }
    }

    /// A place for one more connection, unless the limits are reached.
    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Slot> {
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

/// The place of an open connection; dropping it frees the place.
pub struct Slot {
    gate: Arc<Gate>,
    peer: Peer,
}

impl Slot {
    /// The connection is closed because no preface came.
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

/// Whom a connection is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Peer(IpAddr);

impl Peer {
    /// A host with an IPv6 address usually commands the whole /64 that the address is in.
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

/// What the operator is told of refused connections, seldom enough not to fill the log in an attack.
#[derive(Default)]
struct Log {
    accept_failed: Mutex<Seldom>,
    full: Mutex<Seldom>,
    full_for_peer: Mutex<Seldom>,
    silent: Mutex<Seldom>,
}

impl Log {
    fn accept_failed(&self, error: &io::Error) {
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

/// Counts an event between two lines about it.
#[derive(Default)]
struct Seldom {
    logged_at: Option<Instant>,
    times: u64,
}

impl Seldom {
    /// How often it has happened since it was logged, when it is time to log it again.
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
    use std::cell::Cell;
    use std::net::Ipv4Addr;

    use super::*;

    fn v4(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    #[test]
    fn one_peer_leaves_room_for_others() {
        let gate = Arc::new(Gate::new(3, 2));
        let first = gate.admit(v4(1)).expect("there is room");
        let _second = gate.admit(v4(1)).expect("there is room");
        assert!(gate.admit(v4(1)).is_none(), "the peer has two");
        let _other = gate.admit(v4(2)).expect("there is room for others");
        assert!(gate.admit(v4(3)).is_none(), "three are open");
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
    fn a_network_of_ipv6_is_one_peer_and_a_mapped_address_is_that_of_ipv4() {
        let peer = |text: &str| Peer::of(text.parse().expect("an address"));
        assert_eq!(peer("2001:db8:0:1::1"), peer("2001:db8:0:1:ffff::2"));
        assert_ne!(peer("2001:db8:0:1::1"), peer("2001:db8:0:2::1"));
        assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
    }

    #[test]
    fn open_files_lower_the_number_of_connections() {
        let limits = ConnectionLimits { connections_max: 1000, ..ConnectionLimits::DEFAULT };
        assert_eq!(limits.resolve(None), (1000, 500));
        assert_eq!(limits.resolve(Some(65_536)), (1000, 500));
        assert_eq!(limits.resolve(Some(256)), (192, 96));
        assert_eq!(limits.resolve(Some(20)), (CONNECTIONS_MIN, CONNECTIONS_MIN / 2));
        let per_peer = ConnectionLimits { connections_per_peer_max: Some(7), ..limits };
        assert_eq!(per_peer.resolve(Some(256)), (192, 7));
    }

    /// Fails some times before a connection comes.
    struct Failing {
        errno: i32,
        failures: Cell<u32>,
    }

    impl Accept for Failing {
        type Socket = ();

        async fn accept(&self) -> io::Result<((), SocketAddr)> {
            match self.failures.get() {
                0 => Ok(((), SocketAddr::new(v4(1), 1))),
                left => {
                    self.failures.set(left - 1);
                    Err(io::Error::from_raw_os_error(self.errno))
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn accepting_pauses_while_no_file_can_be_opened() {
        let gate = Arc::new(Gate::new(10, 10));
        for (error, pauses) in [
            (rustix::io::Errno::MFILE, 5),
            (rustix::io::Errno::NFILE, 5),
            (rustix::io::Errno::CONNABORTED, 0),
        ] {
            let listener = Failing { errno: error.raw_os_error(), failures: Cell::new(5) };
            let began = Instant::now();
            let ((), _slot) = next(&listener, &gate).await;
            assert_eq!(began.elapsed(), pauses * PAUSE, "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_logged_once_in_a_while() {
        let mut seldom = Seldom::default();
        assert_eq!(seldom.count(), Some(1));
        assert!((0..1000).all(|_| seldom.count().is_none()));
        tokio::time::advance(LOG_INTERVAL).await;
        assert_eq!(seldom.count(), Some(1001));
    }
}
