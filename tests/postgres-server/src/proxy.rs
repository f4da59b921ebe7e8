//! A proxy that understands enough of the Postgres protocol to cut a connection at a chosen moment of a commit.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What happens to the connection that sends the next commit: COMMIT, or the one statement that writes a whole
/// batch and is a transaction of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Both sides are closed, and the server never receives COMMIT.
    CutBeforeCommit,
    /// The server receives COMMIT and answers. Both sides are closed before the client receives the answer.
    CutBeforeAnswer,
    /// The server receives half of a message that precedes COMMIT. After that nothing is relayed in either
    /// direction, and nothing is closed.
    HalfOpen,
    /// The server receives everything but the Sync message at the end: it has run the commit, keeps its locks and
    /// waits. After that nothing is relayed in either direction, and nothing is closed.
    HalfOpenBeforeSync,
}

/// How the server's answer to COMMIT begins, and that to a statement that writes a whole batch.
const COMMITTED: &[u8] = b"COMMIT";
const WRITTEN: &[u8] = b"SELECT";

/// How the answer to a statement begins, if the statement commits.
fn answer_to(sql: &[u8]) -> Option<&'static [u8]> {
    match sql {
        b"commit" => Some(COMMITTED),
        sql if sql.starts_with(b"with part") => Some(WRITTEN),
        _ => None,
    }
}

/// A proxy between clients and servers. Dropping it leaves its connections open.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    /// The ports of the servers to which connections are led, in turn.
    servers: Arc<Mutex<VecDeque<u16>>>,
    armed: Arc<Mutex<Option<Fault>>>,
    /// How many of the next connections are closed as soon as they arrive.
    refused: Arc<AtomicUsize>,
}

impl Proxy {
    /// Starts a proxy on a free port of 127.0.0.1.
    ///
    /// # Panics
    ///
    /// If no port is free.
    pub async fn start(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let armed: Arc<Mutex<Option<Fault>>> = Arc::default();
        let faults = Arc::clone(&armed);
        let refused: Arc<AtomicUsize> = Arc::default();
        let left = Arc::clone(&refused);
        let servers = Arc::new(Mutex::new(VecDeque::from([server_port])));
        let turns = Arc::clone(&servers);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let one_less = |left: usize| left.checked_sub(1);
                if left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
                    continue;
                }
                let server = {
                    let mut turns = turns.lock().expect("nothing panics while it is held");
                    turns.rotate_left(1);
                    SocketAddr::from(([127, 0, 0, 1], *turns.back().expect("there is one")))
                };
                // If the server is down, the proxy closes the client's connection, as the server itself would.
                let Ok(server) = TcpStream::connect(server).await else { continue };
                for stream in [&client, &server] {
                    stream.set_nodelay(true).expect("TCP can");
                }
                tokio::spawn(relay(client, server, Arc::clone(&faults)));
            }
        });
        Self { port, servers, armed, refused }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Leads new connections to these servers in turn, starting with the first. Open connections stay with
    /// their server.
    ///
    /// # Panics
    ///
    /// If the list is empty.
    pub fn lead_to(&self, server_ports: &[u16]) {
        assert!(!server_ports.is_empty(), "connections must lead somewhere");
        let mut servers = self.servers.lock().expect("nothing panics while it is held");
        *servers = server_ports.iter().copied().collect();
    }

    /// Closes the next `connections` connections as soon as they arrive.
    pub fn refuse(&self, connections: usize) {
        self.refused.store(connections, Ordering::SeqCst);
    }

    /// How many of the connections to refuse have not arrived yet.
    pub fn refuses(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    /// Makes the fault strike at the next COMMIT on any connection.
    pub fn arm(&self, fault: Fault) {
        *self.armed.lock().expect("nothing panics while it is held") = Some(fault);
    }

    /// Whether the armed fault has not struck yet.
    pub fn is_armed(&self) -> bool {
        self.armed.lock().expect("nothing panics while it is held").is_some()
    }
}

/// Relays both directions until one side closes the connection or a fault strikes.
async fn relay(client: TcpStream, server: TcpStream, armed: Arc<Mutex<Option<Fault>>>) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (commit_sent, commit_expected) = mpsc::unbounded_channel();
    let is_stalled = AtomicBool::new(false);
    tokio::select! {
        () = forward(from_client, to_server, &armed, commit_sent, &is_stalled) => {}
        () = backward(from_server, to_client, commit_expected, &is_stalled) => {}
    }
}

async fn forward(
    client: OwnedReadHalf,
    server: OwnedWriteHalf,
    armed: &Mutex<Option<Fault>>,
    commit_sent: mpsc::UnboundedSender<&'static [u8]>,
    is_stalled: &AtomicBool,
) {
    if let Some(sockets) = forward_until_stalled(client, server, armed, commit_sent).await {
        is_stalled.store(true, Ordering::SeqCst);
        std::future::pending::<()>().await;
        drop(sockets);
    }
}

type Sockets = (OwnedReadHalf, OwnedWriteHalf);

async fn forward_until_stalled(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    armed: &Mutex<Option<Fault>>,
    commit_sent: mpsc::UnboundedSender<&'static [u8]>,
) -> Option<Sockets> {
    // The first message has a length but no type.
    let length = client.read_u32().await.ok()?;
    let mut startup = vec![0; length as usize - 4];
    client.read_exact(&mut startup).await.ok()?;
    server.write_u32(length).await.ok()?;
    server.write_all(&startup).await.ok()?;

    let mut commits: HashMap<Vec<u8>, &'static [u8]> = HashMap::new();
    let mut stalls_at_sync = false;
    loop {
        let message = read_message(&mut client).await?;
        let body = &message[5..];
        match message[0] {
            b'P' => {
                let mut strings = body.split(|byte| *byte == 0);
                let name = strings.next().unwrap_or_default();
                if let Some(answer) = strings.next().and_then(answer_to) {
                    commits.insert(name.to_vec(), answer);
                }
            }
            // A Bind message names the portal first, and then the statement.
            b'B' => {
                let statement = body.split(|byte| *byte == 0).nth(1).unwrap_or_default();
                if let Some(answer) = commits.get(statement) {
                    let fault = armed.lock().expect("nothing panics while it is held").take();
                    match fault {
                        None => {}
                        Some(Fault::CutBeforeCommit) => return None,
                        Some(Fault::CutBeforeAnswer) => {
                            commit_sent.send(answer).ok()?;
                        }
                        Some(Fault::HalfOpen) => {
                            server.write_all(&message[..message.len() / 2]).await.ok()?;
                            return Some((client, server));
                        }
                        Some(Fault::HalfOpenBeforeSync) => stalls_at_sync = true,
                    }
                }
            }
            b'S' if stalls_at_sync => return Some((client, server)),
            _ => {}
        }
        server.write_all(&message).await.ok()?;
    }
}

/// Relays what the server sends. It ends when the server has answered a COMMIT whose answer must not arrive, or
/// when either side closes. It never ends once the connection has stalled, because that would close the
/// connection.
async fn backward(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    mut commit_expected: mpsc::UnboundedReceiver<&'static [u8]>,
    is_stalled: &AtomicBool,
) {
    let mut expected = None;
    while let Some(message) = read_message(&mut server).await {
        if is_stalled.load(Ordering::SeqCst) {
            break;
        }
        expected = expected.or_else(|| commit_expected.try_recv().ok());
        if message[0] == b'C' && expected.is_some_and(|answer| message[5..].starts_with(answer)) {
            return;
        }
        if client.write_all(&message).await.is_err() {
            break;
        }
    }
    if is_stalled.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
}

async fn read_message(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut message = vec![0; 5];
    from.read_exact(&mut message).await.ok()?;
    let length = u32::from_be_bytes(message[1..5].try_into().expect("four bytes")) as usize;
    message.resize(length + 1, 0);
    from.read_exact(&mut message[5..]).await.ok()?;
    Some(message)
}
