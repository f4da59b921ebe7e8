//! A connection pooler between the store and the server, which gives each transaction any free server
//! connection. In this respect it behaves like PgBouncer in transaction mode.

use std::sync::Arc;

use recoup_store::Error;
use recoup_store::postgres::{Options, PostgresStore};
use recoup_test_postgres::{Database, Server};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

/// The types of messages after which the server answers with ReadyForQuery: Query and Sync.
const ASKS: [u8; 2] = *b"QS";

/// The connections to the server. Each transaction of a client uses the next one in turn.
struct Pool {
    servers: Vec<Mutex<TcpStream>>,
    /// The messages with which the server greets a new client, up to ReadyForQuery.
    greeting: Vec<u8>,
}

async fn message(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut message = vec![0; 5];
    from.read_exact(&mut message).await.ok()?;
    let length = u32::from_be_bytes(message[1..5].try_into().expect("four bytes"));
    message.resize(length as usize + 1, 0);
    from.read_exact(&mut message[5..]).await.ok()?;
    Some(message)
}

/// Reads the first message of a connection, which has no type.
async fn startup(from: &mut TcpStream) -> Option<Vec<u8>> {
    let length = from.read_u32().await.ok()?;
    let mut message = length.to_be_bytes().to_vec();
    message.resize(length as usize, 0);
    from.read_exact(&mut message[4..]).await.ok()?;
    Some(message)
}

/// Relays the server's messages up to ReadyForQuery. Returns the transaction status that it reports.
async fn answer(server: &mut TcpStream, client: &mut (impl AsyncWrite + Unpin)) -> Option<u8> {
    loop {
        let message = message(server).await?;
        client.write_all(&message).await.ok()?;
        if message[0] == b'Z' {
            return message.get(5).copied();
        }
    }
}

/// Serves one client. Between transactions the client has no server connection.
async fn serve(mut client: TcpStream, pool: Arc<Pool>, mut turn: usize) -> Option<()> {
    startup(&mut client).await?;
    client.write_all(&pool.greeting).await.ok()?;
    loop {
        let mut next = message(&mut client).await?;
        if next[0] == b'X' {
            return None;
        }
        let mut server = pool.servers[turn % pool.servers.len()].lock().await;
        turn += 1;
        loop {
            server.write_all(&next).await.ok()?;
            if ASKS.contains(&next[0]) && answer(&mut server, &mut client).await? == b'I' {
                break;
            }
            next = message(&mut client).await?;
        }
    }
}

/// Starts a pooler on a free port, with this many connections to the server.
async fn pooler(database: &Database, connections: usize) -> u16 {
    let mut pool = Pool { servers: Vec::new(), greeting: Vec::new() };
    for _ in 0..connections {
        let mut server = TcpStream::connect(("127.0.0.1", database.port)).await.expect("it is up");
        let parameters = format!("user\0recoup\0database\0{}\0\0", database.name);
        let length = u32::try_from(8 + parameters.len()).expect("is short");
        server.write_u32(length).await.expect("connected");
        server.write_u32(196_608).await.expect("connected");
        server.write_all(parameters.as_bytes()).await.expect("connected");
        pool.greeting.clear();
        answer(&mut server, &mut pool.greeting).await.expect("it lets everybody in");
        pool.servers.push(Mutex::new(server));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let pool = Arc::new(pool);
    tokio::spawn(async move {
        let mut clients = 0;
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(serve(client, Arc::clone(&pool), clients));
            clients += 1;
        }
    });
    port
}

/// With one server connection the clients share it. With two, each client switches between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_is_not_in_session_mode_is_refused() {
    let database = Server::shared().database().await;
    for connections in [1, 2] {
        let port = pooler(&database, connections).await;
        let url = database.url_through(port);
        let refused = PostgresStore::connect(&url, Options::default()).await;
        match refused {
            Err(Error::Incompatible(reason)) => {
                assert!(reason.contains("session mode"), "{connections}: {reason}");
            }
            other => panic!("{connections}: {other:?}"),
        }
    }
    PostgresStore::connect(&database.url(), Options::default()).await.expect("without a pooler");
}
