//! A proxy that knows enough of Postgres' protocol to cut a connection at a chosen moment of a
//! commit.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What happens to the connection that commits next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Both sides are closed; the server never gets COMMIT.
    CutBeforeCommit,
    /// The server gets COMMIT and answers; both sides are closed before the client has the answer.
    CutBeforeAnswer,
    /// The server gets half of a message in front of COMMIT; then nothing goes either way, and
    /// nothing is closed.
    HalfOpen,
}

/// Between clients and a server. Dropping it leaves its connections as they are.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    /// Of the servers that connections are led to, one after the other and from the beginning again.
    servers: Arc<Mutex<VecDeque<u16>>>,
    armed: Arc<Mutex<Option<Fault>>>,
    /// So many connections are closed as soon as they come.
    refused: Arc<AtomicUsize>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1.
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
                // A server that is down closes its clients' connections, and so does the proxy.
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

    /// From here on new connections are led to these servers in turn, beginning with the first. Those that
    /// are open stay where they are.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn lead_to(&self, server_ports: &[u16]) {
        assert!(!server_ports.is_empty(), "connections must lead somewhere");
        let mut servers = self.servers.lock().expect("nothing panics while it is held");
        *servers = server_ports.iter().copied().collect();
    }

    /// Closes this many connections as soon as they come.
    pub fn refuse(&self, connections: usize) {
        self.refused.store(connections, Ordering::SeqCst);
    }

    /// How many of those have not come yet.
    pub fn refuses(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    /// The fault strikes the next COMMIT of any connection.
    pub fn arm(&self, fault: Fault) {
        *self.armed.lock().expect("nothing panics while it is held") = Some(fault);
    }

    /// Whether it has not struck yet.
    pub fn is_armed(&self) -> bool {
        self.armed.lock().expect("nothing panics while it is held").is_some()
    }
}

/// Relays both directions until one side ends or a fault strikes.
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
    commit_sent: mpsc::UnboundedSender<()>,
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
    commit_sent: mpsc::UnboundedSender<()>,
) -> Option<Sockets> {
    // The first message has a length and no type.
    let length = client.read_u32().await.ok()?;
    let mut startup = vec![0; length as usize - 4];
    client.read_exact(&mut startup).await.ok()?;
    server.write_u32(length).await.ok()?;
    server.write_all(&startup).await.ok()?;

    let mut commit_name: Option<Vec<u8>> = None;
    loop {
        let message = read_message(&mut client).await?;
        let body = &message[5..];
        match message[0] {
            b'P' => {
                let mut strings = body.split(|byte| *byte == 0);
                let name = strings.next().unwrap_or_default();
                if strings.next() == Some(b"commit") {
                    commit_name = Some(name.to_vec());
                }
            }
            // The portal's name, then the statement's.
            b'B' if commit_name.is_some()
                && body.split(|byte| *byte == 0).nth(1) == commit_name.as_deref() =>
            {
                let fault = armed.lock().expect("nothing panics while it is held").take();
                match fault {
                    None => {}
                    Some(Fault::CutBeforeCommit) => return None,
                    Some(Fault::CutBeforeAnswer) => {
                        commit_sent.send(()).ok()?;
                    }
                    Some(Fault::HalfOpen) => {
                        server.write_all(&message[..message.len() / 2]).await.ok()?;
                        return Some((client, server));
                    }
                }
            }
            _ => {}
        }
        server.write_all(&message).await.ok()?;
    }
}

/// Ends when the server has answered a COMMIT whose answer must not arrive, or with either side; but
/// never once the connection has stalled, for that would close it.
async fn backward(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    mut commit_expected: mpsc::UnboundedReceiver<()>,
    is_stalled: &AtomicBool,
) {
    while let Some(message) = read_message(&mut server).await {
        if is_stalled.load(Ordering::SeqCst) {
            break;
        }
        let is_answer = message[0] == b'C' && message[5..].starts_with(b"COMMIT");
        if is_answer && commit_expected.try_recv().is_ok() {
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
