//! Accepts connections. Limits how many there may be and how soon each must speak HTTP/2, and pauses when
//! the system has no room for another one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::{Stream, stream};
use tokio::net::{TcpListener, TcpStream};

use crate::cli::parse_duration;
use crate::connection::Connection;
use crate::gate::{Gate, Slot};

/// File descriptors that are reserved for the store and the rest of the process.
const RESERVED_FILES: u64 = 64;
/// The number of connections that are accepted even if the process may open very few files.
const CONNECTIONS_MIN: usize = 16;
/// How long to wait before accepting again after the system has refused.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Args, Clone, Debug)]
pub struct ConnectionLimits {
    /// Connections that may be open at the same time. Further ones are closed at once. The limit of open
    /// files may lower it.
    #[arg(long, env = "RECOUP_CONNECTIONS_MAX", value_name = "N", default_value_t = Self::DEFAULT.connections_max)]
    pub connections_max: usize,

    /// Connections of one peer, which is an IPv4 address or the /64 network of an IPv6 address. All clients
    /// behind a proxy are one peer [default: half of all connections].
    #[arg(long, env = "RECOUP_CONNECTIONS_PER_PEER_MAX", value_name = "N")]
    pub connections_per_peer_max: Option<usize>,

    /// Close a new connection that has not sent the HTTP/2 preface after this time.
    #[arg(long, env = "RECOUP_PREFACE_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub preface_timeout: Duration,
}

impl ConnectionLimits {
    pub const DEFAULT: Self = Self {
        connections_max: 8192,
        connections_per_peer_max: None,
        preface_timeout: Duration::from_secs(10),
    };

    /// How many connections a process with this limit of open files accepts: (in total, per peer).
    fn resolve(&self, open_files_max: Option<u64>) -> (usize, usize) {
        let left = open_files_max.map(|files| files.saturating_sub(RESERVED_FILES));
        let left = left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let all = self.connections_max.min(left.max(CONNECTIONS_MIN));
        let per_peer = self.connections_per_peer_max.unwrap_or(all.div_ceil(2));
        (all, per_peer)
    }
}

/// The connections of a listener that are within the limits. The stream never ends and yields no errors.
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

/// A source of connections.
trait Accept {
    type Socket;
    async fn accept(&self) -> io::Result<(Self::Socket, SocketAddr)>;
}

impl Accept for TcpListener {
    type Socket = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (socket, address) = TcpListener::accept(self).await?;
        // An error means that the peer is already gone.
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

/// Whether the error concerns only one connection, so that accepting again may succeed at once. Any other
/// error, such as too many open files, would occur again.
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::{IpAddr, Ipv4Addr};

    use tokio::time::Instant;

    use super::*;

    fn v4(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    #[test]
    fn open_file_limit_lowers_the_number_of_connections() {
        let limits = ConnectionLimits { connections_max: 1000, ..ConnectionLimits::DEFAULT };
        assert_eq!(limits.resolve(None), (1000, 500));
        assert_eq!(limits.resolve(Some(65_536)), (1000, 500));
        assert_eq!(limits.resolve(Some(256)), (192, 96));
        assert_eq!(limits.resolve(Some(20)), (CONNECTIONS_MIN, CONNECTIONS_MIN / 2));
        let per_peer = ConnectionLimits { connections_per_peer_max: Some(7), ..limits };
        assert_eq!(per_peer.resolve(Some(256)), (192, 7));
    }

    /// Fails a number of times before it returns a connection.
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
}
