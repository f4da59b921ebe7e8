//! Private Postgres servers for tests. Each has a folder of its own, listens on a free port of 127.0.0.1 and
//! runs with fsync on. When the process that started a server ends, for whatever reason, the server ends too
//! and its folder is removed.
//!
//! The binaries are those of `$RECOUP_TEST_POSTGRES_BIN`, or the newest ones below `/usr/lib/postgresql`.
//! Postgres refuses to run as root. Under root the server therefore runs as `postgres` or, if there is no such
//! user, as `nobody`.
//!
//! # Map
//!
//! | module | holds |
//! | --- | --- |
//! | `proxy` | a proxy that cuts connections at a chosen moment of a commit |

pub mod proxy;

use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

/// How long a server may take to accept connections.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How many ports are tried in case another process takes the free port first.
const PORTS_TRIED: usize = 5;

/// Environment variables of the caller's shell that must not reach the server.
const FOREIGN: [&str; 6] = ["PGDATA", "PGPORT", "PGHOST", "PGUSER", "PGDATABASE", "PGOPTIONS"];

/// A script that stops the server when its standard input ends, which happens when the process that started it
/// is gone.
const WATCHDOG: &str = r#"
    trap '' INT TERM HUP
    folder=$1; shift
    "$@" </dev/null &
    cat >/dev/null
    kill -INT $! 2>/dev/null
    wait $!
    rm -rf "$folder"
"#;

/// A running server. It stops when this is dropped.
#[derive(Debug)]
pub struct Server {
    bin: PathBuf,
    folder: PathBuf,
    port: u16,
    settings: Vec<(String, String)>,
    databases: AtomicU32,
    watchdog: Child,
}

/// A database that no other test uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    pub name: String,
    pub port: u16,
}

impl Database {
    /// A connection string.
    pub fn url(&self) -> String {
        format!("postgres://recoup@127.0.0.1:{}/{}", self.port, self.name)
    }

    /// A connection string for the same database through a proxy on another port. It disables TLS, because the
    /// proxy does not support the start of encryption.
    pub fn url_through(&self, port: u16) -> String {
        format!("postgres://recoup@127.0.0.1:{port}/{}?sslmode=disable", self.name)
    }

    /// A connection for the test's own statements. It ends when the client is dropped.
    ///
    /// # Panics
    ///
    /// If the server does not accept the connection.
    pub async fn client(&self) -> Client {
        let connected = tokio_postgres::connect(&self.url(), NoTls).await;
        let (client, connection) = connected.expect("the test server accepts connections");
        tokio::spawn(connection);
        client
    }
}

impl Server {
    /// The server that all tests of this process share. The first caller starts it.
    ///
    /// # Panics
    ///
    /// If the server cannot be started: no test can work without it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[]))
    }

    /// Starts a separate server, with additional settings for `postgresql.conf`.
    ///
    /// # Panics
    ///
    /// If the server cannot be started.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let bin = binaries();
        let mut log = String::new();
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        let settings: Vec<(String, String)> = settings.iter().map(owned).collect();
        for _ in 0..PORTS_TRIED {
            let folder = make_folder();
            let data = folder.join("data");
            let init = as_user(bin.join("initdb"))
                .args(["--auth=trust", "--username=recoup", "--encoding=UTF8", "--no-locale"])
                .args(["--no-sync", "--no-instructions", "--pgdata"])
                .arg(&data)
                .output();
            succeed("initdb", init);
            let port = free_port();
            let watchdog = spawn(&bin, &folder, &data, port, &settings);
            let databases = AtomicU32::new(0);
            let (bin, settings) = (bin.clone(), settings.clone());
            let server = Self { bin, folder, port, settings, databases, watchdog };
            if server.is_ready() {
                return server;
            }
            log = server.log();
        }
        panic!("no Postgres server could be started:\n{log}");
    }

    /// The folder that holds `pg_dump`, `psql` and the other client programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends the server as a crash would, with `pg_ctl stop -m immediate`, and starts it again on the same port.
    /// The server then recovers from its write-ahead log.
    ///
    /// # Panics
    ///
    /// If the server cannot be stopped or started.
    pub fn crash(&mut self) {
        let data = self.folder.join("data");
        let mut stop = as_user(self.bin.join("pg_ctl"));
        stop.args(["stop", "--mode=immediate", "--silent", "--pgdata"]).arg(&data);
        succeed("pg_ctl", stop.output());
        // The watchdog removes the folder when it ends normally. It is killed here, so that the next one keeps
        // the folder.
        self.watchdog.kill().expect("our own child can be killed");
        self.watchdog.wait().expect("our own child can be waited for");
        self.watchdog = spawn(&self.bin, &self.folder, &data, self.port, &self.settings);
        assert!(self.is_ready(), "the server did not come back: {}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Creates an empty database.
    ///
    /// # Panics
    ///
    /// If the server refuses to create it.
    pub async fn database(&self) -> Database {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let database = Database { name: format!("test_{number}"), port: self.port };
        let maintenance = Database { name: "postgres".into(), port: self.port };
        let (client, connection) = tokio_postgres::connect(&maintenance.url(), NoTls)
            .await
            .expect("the test server accepts connections");
        let driver = tokio::spawn(connection);
        let create = format!("create database {} template template0", database.name);
        client.batch_execute(&create).await.expect("a new name is free");
        drop(client);
        driver
            .await
            .expect("the driver does not panic")
            .expect("the connection ends without an error");
        database
    }

    fn is_ready(&self) -> bool {
        let deadline = Instant::now() + READY_WITHIN;
        while Instant::now() < deadline {
            let port = self.port.to_string();
            let asked = Command::new(self.bin.join("pg_isready"))
                .args(["--quiet", "--host=127.0.0.1", "--username=recoup", "--port", &port])
                .status();
            if asked.is_ok_and(|status| status.success()) {
                return true;
            }
            let log = self.log();
            if log.contains("FATAL") && !log.contains("the database system is") {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ending its input tells the watchdog to stop the server.
        drop(self.watchdog.stdin.take());
        if let Err(error) = self.watchdog.wait() {
            eprintln!("the test server was not waited for: {error}");
        }
    }
}

fn spawn(
    bin: &Path,
    folder: &Path,
    data: &Path,
    port: u16,
    settings: &[(String, String)],
) -> Child {
    let log = std::fs::File::create(folder.join("log")).expect("the folder is ours");
    // The watchdog runs as the test's own user, so that it can remove the folder.
    let postgres = as_user(bin.join("postgres"));
    let mut server = Command::new("sh");
    server.args(["-c", WATCHDOG, "watchdog"]).arg(folder);
    server.arg(postgres.get_program()).args(postgres.get_args()).arg("-D").arg(data);
    for name in FOREIGN {
        server.env_remove(name);
    }
    let mut all = vec![
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", ""),
        ("max_connections", "200"),
        ("shared_buffers", "64MB"),
        ("max_wal_size", "256MB"),
        ("fsync", "on"),
        ("autovacuum_naptime", "10s"),
    ];
    all.extend(settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let mut port_setting = String::from("port=");
    write!(port_setting, "{port}").expect("writing to a string cannot fail");
    server.arg("-c").arg(port_setting);
    for (name, value) in all {
        server.arg("-c").arg(format!("{name}={value}"));
    }
    let copy = log.try_clone().expect("a file handle can be copied");
    server.stdin(Stdio::piped()).stdout(log).stderr(copy).spawn().expect("a shell can be started")
}

fn binaries() -> PathBuf {
    if let Some(bin) = std::env::var_os("RECOUP_TEST_POSTGRES_BIN") {
        return bin.into();
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .max();
    newest
        .expect("Postgres is installed, or RECOUP_TEST_POSTGRES_BIN says where it is")
        .1
        .join("bin")
}

/// A command that runs a program as the user that Postgres runs as.
fn as_user(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = match user() {
        None => Command::new(program),
        Some((uid, gid)) => {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
            command.arg("--clear-groups").arg(program);
            command
        }
    };
    for name in FOREIGN {
        command.env_remove(name);
    }
    command
}

/// The user and group as which root runs Postgres. None if the tests do not run as root.
fn user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| {
        let id = succeed("id", Command::new("id").arg("-u").output());
        if id.trim() != "0" {
            return None;
        }
        let users = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd can be read");
        let find = |name: &str| {
            let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut fields = line.split(':').skip(2);
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        };
        find("postgres").or_else(|| find("nobody")).or(Some((65534, 65534)))
    })
}

/// Creates the server's folder: below the target directory, where the test binary is, or in the folder for
/// temporary files if the user of the server cannot access that.
fn make_folder() -> PathBuf {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let name = format!("postgres-{}-{number}", std::process::id());
    let binary = std::env::current_exe().ok();
    let target = binary.as_deref().and_then(|path| {
        let debug = path.ancestors().find(|folder| folder.join("deps").is_dir())?;
        Some(debug.parent()?.join("tmp"))
    });
    let places = target.into_iter().chain([std::env::temp_dir()]);
    for place in places {
        let folder = place.join(&name);
        if std::fs::create_dir_all(&folder).is_err() {
            continue;
        }
        if let Some((uid, gid)) = user() {
            std::os::unix::fs::chown(&folder, Some(uid), Some(gid))
                .expect("root may change the owner");
        }
        let reached = as_user("test").arg("-w").arg(&folder).status();
        if reached.is_ok_and(|status| status.success()) {
            return folder;
        }
        std::fs::remove_dir(&folder).expect("the folder was just created");
    }
    panic!("there is no folder that the user of the server can write to");
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

fn succeed(program: &str, output: io::Result<Output>) -> String {
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn committed_data_and_settings_survive_a_crash() {
        let mut server = Server::start(&[("work_mem", "1MB")]);
        let database = server.database().await;
        let connect = async || {
            let connected = tokio_postgres::connect(&database.url(), NoTls).await;
            let (client, connection) = connected.expect("it is ready");
            (client, tokio::spawn(connection))
        };
        let (client, driver) = connect().await;
        client
            .batch_execute("create table kept as select 7 as number")
            .await
            .expect("the table is created");
        server.crash();
        assert!(driver.await.expect("no panic").is_err(), "the connection outlived the server");
        let (client, _driver) = connect().await;
        let row = client.query_one("select number from kept", &[]).await.expect("it is there");
        assert_eq!(row.get::<_, i32>(0), 7);
        let row = client.query_one("show work_mem", &[]).await.expect("it answers");
        assert_eq!(row.get::<_, &str>(0), "1MB");
    }

    #[tokio::test]
    async fn a_dropped_server_closes_connections_and_removes_its_folder() {
        let server = Server::start(&[("work_mem", "1MB")]);
        let database = server.database().await;
        let (client, connection) =
            tokio_postgres::connect(&database.url(), NoTls).await.expect("it is ready");
        let driver = tokio::spawn(connection);
        for (setting, wanted) in [("fsync", "on"), ("work_mem", "1MB")] {
            let row = client.query_one(&format!("show {setting}"), &[]).await.expect("it answers");
            assert_eq!(row.get::<_, &str>(0), wanted);
        }
        let folder = server.folder.clone();
        assert!(folder.is_dir());
        drop(server);
        assert!(driver.await.expect("no panic").is_err(), "the connection outlived the server");
        assert!(!folder.exists());
    }
}
