//! `recoup bench`: measures how fast this machine runs executions of three durable steps, in the way that
//! users run them.
//!
//! A server, a worker and a client run as three processes on loopback. The client keeps executions in
//! flight. Each call is the SDK's `run` with a request id, the definition is a YAML file that the client
//! registers, and the feed is on. Each step is durable before the next one begins.

mod client;
mod options;
mod process;
mod worker;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};

use crate::serve::{NO_DATABASE_URL, StoreKind, WrongSetting};
pub use options::BenchOptions;
use process::Process;

/// The two child processes besides the server.
#[derive(Subcommand, Clone, Debug)]
pub enum Role {
    Worker {
        #[arg(long)]
        address: String,
        #[command(flatten)]
        options: BenchOptions,
    },
    Client {
        #[arg(long)]
        address: String,
        #[command(flatten)]
        options: BenchOptions,
    },
}

/// Runs one of the child processes until its parent ends.
pub async fn run_role(role: Role) -> Result<()> {
    process::end_with_parent();
    match role {
        Role::Worker { address, options } => worker::run(&address, &options).await,
        Role::Client { address, options } => client::run(&address, &options).await,
    }
}

/// Takes one measurement and prints it as a line.
pub async fn run(options: BenchOptions) -> Result<()> {
    let base = options.data_dir.clone().unwrap_or_else(|| PathBuf::from("."));
    let folder = tempfile::Builder::new().prefix("recoup-bench-").tempdir_in(&base);
    let folder = folder.with_context(|| format!("cannot make a folder in {}", base.display()))?;
    let mut arguments = vec!["serve".to_owned(), "--listen".into(), "127.0.0.1:0".into()];
    match options.store {
        StoreKind::Sqlite => {
            arguments.extend(["--store".into(), "sqlite".into(), "--data-dir".into()]);
            arguments.push(folder.path().display().to_string());
        }
        StoreKind::Postgres => {
            let url = options.database_url.clone();
            let url = url.ok_or_else(|| WrongSetting(NO_DATABASE_URL.to_owned()))?;
            arguments.extend(["--store".into(), "postgres".into(), "--database-url".into(), url]);
        }
    }
    let mut server = Process::spawn("server", &arguments)?;
    let line = server.line().await?;
    let address = line.rsplit(' ').next().context("the server says where it listens")?.to_owned();

    let role = |name: &str| {
        let own = std::env::args().skip_while(|argument| argument != "bench").skip(1);
        let mut arguments = vec!["bench-role".to_owned(), name.to_owned(), "--address".into()];
        arguments.push(address.clone());
        arguments.extend(own);
        arguments
    };
    let mut client = Process::spawn("client", &role("client"))?;
    // The client registers the workflow first, then prints a line.
    client.line().await?;
    let mut worker = Process::spawn("worker", &role("worker"))?;
    worker.line().await?;

    client.line().await?;
    let began = Instant::now();
    let cpu = [server.cpu_seconds()?, worker.cpu_seconds()?, client.cpu_seconds()?];
    let written = written(&options, &server).await?;
    let measured = client.line().await?;
    let seconds = began.elapsed().as_secs_f64();
    let after = [server.cpu_seconds()?, worker.cpu_seconds()?, client.cpu_seconds()?];
    let bytes = self::written(&options, &server).await?.saturating_sub(written);

    let ended = measured.split_whitespace().find_map(|field| field.strip_prefix("ended="));
    let ended: f64 = ended.and_then(|count| count.parse().ok()).unwrap_or(0.0);
    let [server_cpu, worker_cpu, client_cpu] =
        std::array::from_fn(|index| (after[index] - cpu[index]) / seconds);
    println!(
        "recoup store={} mode={} clients={} {measured} server_cpu={server_cpu:.2} \
         worker_cpu={worker_cpu:.2} client_cpu={client_cpu:.2} bytes_per_execution={:.0}",
        name(options.store),
        name(options.mode),
        options.clients,
        bytes as f64 / ended.max(1.0),
    );
    // The server is stopped last, so that neither of the others reports that it is gone.
    drop(client);
    drop(worker);
    drop(server);
    Ok(())
}

/// The bytes that the store has written so far: for the embedded store, what the server process wrote; for
/// Postgres, its write-ahead log.
async fn written(options: &BenchOptions, server: &Process) -> Result<u64> {
    match (options.store, &options.database_url) {
        (StoreKind::Postgres, Some(url)) => {
            let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
            let connection = tokio::spawn(connection);
            let sql = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8";
            let bytes: i64 = client.query_one(sql, &[]).await?.get(0);
            connection.abort();
            Ok(bytes.unsigned_abs())
        }
        _ => server.bytes_written(),
    }
}

/// The name of a value on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}
