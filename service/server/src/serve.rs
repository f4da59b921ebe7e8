//! `recoup serve` and `recoup dev`: a store, an engine on it, and the API on a port.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use recoup_engine::Engine;
use recoup_store::postgres::PostgresStore;
use recoup_store::sqlite::SqliteStore;
use recoup_store::{Expired, Store, until_available};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::listen::{self, ConnectionLimits};

use crate::cli::{parse_count, parse_duration};
use crate::waiting::Waiting;

pub const NO_DATABASE_URL: &str = "--store postgres needs --database-url or RECOUP_DATABASE_URL";

/// How often the server looks for data that has outlived its retention.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(60);
const EXPIRE_BATCH: usize = 1000;
/// The default of `--store-wait`.
const STORE_WAIT: Duration = Duration::from_secs(60);
/// How long streams may take to end when the server stops.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// The last part of the help of `serve` and `dev`.
const EXIT_CODES: &str = "\
Exit codes:
  0  stopped as requested
  1  could not start (the port is taken, the folder is in use, the database cannot be used), or
     stopped before all calls were answered
  2  a flag or a variable is wrong: starting again cannot help";

/// A flag or a variable that is wrong on any machine, so that starting again cannot help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongSetting(pub String);

#[derive(Args, Clone, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct ServeOptions {
    /// Address to listen on. Port 0 chooses a free one.
    #[arg(long, env = "RECOUP_LISTEN", default_value = "127.0.0.1:7430")]
    pub listen: SocketAddr,

    /// Listen on an address that other machines can reach, without keys and without TLS.
    #[arg(long, env = "RECOUP_INSECURE_LISTEN")]
    pub insecure_listen: bool,

    /// Database that holds all data [default: postgres with --database-url, else sqlite].
    #[arg(long, env = "RECOUP_STORE", value_enum)]
    pub store: Option<StoreKind>,

    /// Folder of the embedded database; created if it does not exist.
    #[arg(long, env = "RECOUP_DATA_DIR", default_value = "recoup-data", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Postgres database that holds all data, unless the store is set to sqlite:
    /// postgres://USER:PASSWORD@HOST:PORT/DATABASE, or the `key=value` form of libpq.
    #[arg(long, env = "RECOUP_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,

    /// How long a starting server waits for a database that does not answer.
    #[arg(long, env = "RECOUP_STORE_WAIT", default_value = "60s", value_parser = parse_duration, value_name = "DURATION")]
    pub store_wait: Duration,

    /// Start even if the database does not flush the writes that it acknowledges.
    #[arg(long, env = "RECOUP_ALLOW_UNSAFE_DURABILITY")]
    pub allow_unsafe_durability: bool,

    /// Streams of the failure feed that may be open at the same time. Further readers are asked to try
    /// again later.
    #[arg(
        long,
        env = "RECOUP_FEED_STREAMS_MAX",
        default_value_t = recoup_api::FEED_STREAMS_MAX,
        value_parser = parse_count
    )]
    pub feed_streams_max: usize,

    /// Bytes of failure events that are read at a time for one reader. A reader that accepts nothing holds
    /// about twice as much.
    #[arg(
        long,
        env = "RECOUP_FEED_PAGE_BYTES",
        default_value_t = recoup_api::FEED_PAGE_BYTES,
        value_parser = parse_count
    )]
    pub feed_page_bytes: usize,

    #[command(flatten)]
    pub connections: ConnectionLimits,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct DevOptions {
    /// Port on 127.0.0.1; 0 chooses a free one.
    #[arg(long, default_value = "7430")]
    port: u16,

    /// Folder of the embedded database; created if it does not exist.
    #[arg(long, default_value = "recoup-data", value_name = "DIR")]
    data_dir: PathBuf,
}

impl From<DevOptions> for ServeOptions {
    fn from(DevOptions { port, data_dir }: DevOptions) -> Self {
        Self::embedded(port, data_dir)
    }
}

impl ServeOptions {
    /// The store to use. If a database URL is given and no store, the URL implies Postgres.
    fn store(&self) -> StoreKind {
        let implied = match self.database_url {
            Some(_) => StoreKind::Postgres,
            None => StoreKind::Sqlite,
        };
        self.store.unwrap_or(implied)
    }

    /// The options of a server on loopback with the embedded database.
    pub fn embedded(port: u16, data_dir: PathBuf) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], port)),
            insecure_listen: false,
            store: Some(StoreKind::Sqlite),
            data_dir,
            database_url: None,
            store_wait: STORE_WAIT,
            allow_unsafe_durability: false,
            feed_streams_max: recoup_api::FEED_STREAMS_MAX,
            feed_page_bytes: recoup_api::FEED_PAGE_BYTES,
            connections: ConnectionLimits::DEFAULT,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// Embedded: no setup, one process.
    Sqlite,
    /// Any number of servers on one database.
    Postgres,
}

/// A server that runs until it is stopped.
pub struct Running {
    pub address: SocketAddr,
    engine: Engine,
    shutdown: watch::Sender<bool>,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    expiring: JoinHandle<()>,
}

/// Serves until a signal asks the process to stop.
pub async fn serve(options: ServeOptions) -> anyhow::Result<()> {
    let mut stopped = Stopped::listen()?;
    let running = tokio::select! {
        running = start(&options) => running?,
        // The signal came while the server was still waiting for its database.
        () = stopped.wait() => return Ok(()),
    };
    println!("recoup listens on http://{}", running.address);
    if !running.address.ip().is_loopback() {
        eprintln!(
            "warning: other machines can reach this server, which does not authenticate callers"
        );
    }
    stopped.wait().await;
    eprintln!("stopping after the calls under way are answered; a second signal stops at once");
    tokio::select! {
        done = running.stop() => done,
        // This loses nothing that was acknowledged.
        () = stopped.wait() => bail!("stopped before all calls were answered"),
    }
}

/// Receives the signals that ask the process to stop. None is missed after [`Self::listen`].
pub struct Stopped {
    interrupt: Signal,
    terminate: Signal,
}

impl Stopped {
    pub fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for SIGINT or SIGTERM.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Finds settings that are wrong by themselves, before anything is opened.
fn check(options: &ServeOptions) -> Result<(), WrongSetting> {
    if !options.listen.ip().is_loopback() && !options.insecure_listen {
        return Err(WrongSetting(format!(
            "{} can be reached from other machines, and the server does not authenticate \
             callers: pass --insecure-listen if that is what you want",
            options.listen
        )));
    }
    match (options.store(), &options.database_url) {
        (StoreKind::Postgres, Some(url)) => recoup_store::postgres::check_url(url)
            .map_err(|error| WrongSetting(format!("--database-url: {error}"))),
        (StoreKind::Postgres, None) => Err(WrongSetting(NO_DATABASE_URL.to_owned())),
        (StoreKind::Sqlite, _) => Ok(()),
    }
}

/// Opens the store, starts a new life of the engine on it, and listens.
pub async fn start(options: &ServeOptions) -> anyhow::Result<Running> {
    check(options)?;
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    let address = listener.local_addr()?;
    let mut waiting = Waiting::new(options.connections.clone());
    let store = open_store(options, &listener, &mut waiting).await?;
    let engine_options = recoup_engine::Options {
        address: address.to_string(),
        ..recoup_engine::Options::default()
    };
    let engine = until_available(options.store_wait, async || {
        let started = recoup_engine::driver::start(store.clone(), engine_options.clone()).await;
        waiting.after(started, &listener)
    });
    let engine = engine.await.context("the database does not answer")?;
    waiting.end().await;

    let (shutdown, stopping) = watch::channel(false);
    let api_options = recoup_api::ApiOptions {
        feed_streams_max: options.feed_streams_max,
        feed_page_bytes: options.feed_page_bytes,
        ..recoup_api::ApiOptions::new(stopping.clone())
    };
    let routes = recoup_api::router(engine.clone(), api_options);
    let incoming = listen::connections(listener, &options.connections);
    let mut stopped = stopping.clone();
    let serving = recoup_api::transport()
        .trace_fn(|request| {
            let traceparent = request.headers().get("traceparent");
            let traceparent = traceparent.and_then(|value| value.to_str().ok()).unwrap_or("");
            tracing::info_span!("rpc", method = request.uri().path(), traceparent)
        })
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, async move {
            // An error means that the sender is gone, which also means that the server must stop.
            let _ = stopped.wait_for(|stop| *stop).await;
        });
    let serving = tokio::spawn(serving);
    let expiring = tokio::spawn(expire(engine.clone(), stopping));
    Ok(Running { address, engine, shutdown, serving, expiring })
}

impl Running {
    /// Ends streams in an orderly way, answers pending calls, and gives the lease back.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.engine.close().await;
        self.shutdown.send_replace(true);
        let mut serving = self.serving;
        match tokio::time::timeout(DRAIN_MAX, &mut serving).await {
            Ok(served) => served??,
            Err(_) => {
                tracing::warn!("closing connections that did not end in time");
                serving.abort();
            }
        }
        self.engine.stop().await;
        self.expiring.abort();
        Ok(())
    }
}

async fn open_store(
    options: &ServeOptions,
    listener: &TcpListener,
    waiting: &mut Waiting,
) -> anyhow::Result<Arc<dyn Store>> {
    match options.store() {
        StoreKind::Sqlite => {
            let folder = &options.data_dir;
            let store = SqliteStore::open(folder)
                .with_context(|| format!("cannot open the database in {}", folder.display()))?;
            Ok(Arc::new(store))
        }
        StoreKind::Postgres => {
            let url = options.database_url.as_deref();
            let url = url.context(NO_DATABASE_URL)?;
            let store_options = recoup_store::postgres::Options {
                allow_unsafe_durability: options.allow_unsafe_durability,
                ..Default::default()
            };
            let store = until_available(options.store_wait, async || {
                waiting.after(PostgresStore::connect(url, store_options.clone()).await, listener)
            });
            Ok(Arc::new(store.await.context("cannot open the database")?))
        }
    }
}

/// Deletes data that has outlived its retention, for as long as the server runs.
async fn expire(engine: Engine, mut stopping: watch::Receiver<bool>) {
    let mut was_paused = false;
    loop {
        let expired = match engine.retention_time() {
            Some(now) => engine.store().expire(now, EXPIRE_BATCH).await,
            None => Ok(Expired { paused: true, ..Expired::default() }),
        };
        let more = match expired {
            Ok(Expired { more, paused, .. }) => {
                if paused && !was_paused {
                    tracing::warn!(
                        "retention is paused: nothing is deleted until `recoup namespace \
                         resume-retention`"
                    );
                }
                was_paused = paused;
                more
            }
            Err(error) => {
                tracing::warn!(%error, "data whose retention has passed could not be deleted");
                false
            }
        };
        let pause = if more { Duration::from_millis(100) } else { EXPIRE_INTERVAL };
        tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
