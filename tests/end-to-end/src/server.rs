//! `recoup serve` as a process, with a port and a folder of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use recoup_sdk::Client;
use tempfile::TempDir;

use crate::binary;
use crate::process::{Process, forget_settings};

/// How long a server may take until it listens. A debug build that runs beside other tests is slow to start.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a server may take to stop. On SIGTERM it gives its workers 30 s to finish.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

/// A server that can be killed, stopped and started again on the same port.
#[derive(Debug)]
pub struct Server {
    pub process: Process,
    address: SocketAddr,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    starts: usize,
}

impl Server {
    /// Starts a server on an embedded database below `folder`.
    pub fn embedded(folder: &Path) -> Self {
        Self::embedded_with(folder, &[])
    }

    /// As [`Self::embedded`], with additional settings.
    pub fn embedded_with(folder: &Path, settings: &[&str]) -> Self {
        let data = folder.join("data").display().to_string();
        let arguments = [&["--store", "sqlite", "--data-dir", &data], settings].concat();
        Self::start(folder, binary::recoup().to_path_buf(), &[], &arguments)
    }

    /// As [`Self::embedded_with`], in a process that may have at most `files_max` files open.
    pub fn embedded_with_files(folder: &Path, files_max: u32, settings: &[&str]) -> Self {
        let data = folder.join("data").display().to_string();
        let arguments = [&["--store", "sqlite", "--data-dir", &data], settings].concat();
        let limit = format!("--nofile={files_max}");
        let program = binary::recoup().display().to_string();
        Self::start(folder, "prlimit".into(), &[&limit, &program], &arguments)
    }

    /// Starts a server on a Postgres database.
    pub fn on_postgres(folder: &Path, url: &str) -> Self {
        let program = binary::recoup().to_path_buf();
        Self::start(folder, program, &[], &["--store", "postgres", "--database-url", url])
    }

    /// As [`Self::on_postgres`], but starts the older version; [`Self::update`] then replaces it.
    pub fn older_on_postgres(folder: &Path, url: &str) -> Self {
        let settings = ["--store", "postgres", "--database-url", url];
        Self::start(folder, binary::older_recoup(), &[], &settings)
    }

    /// Starts a server on a Postgres database that does not answer yet.
    pub fn not_ready_on_postgres(folder: &Path, url: &str) -> Self {
        let program = binary::recoup().to_path_buf();
        Self::begin(folder, program, &[], &["--store", "postgres", "--database-url", url])
    }

    fn start(folder: &Path, program: PathBuf, before: &[&str], settings: &[&str]) -> Self {
        let server = Self::begin(folder, program, before, settings);
        server.until_it_listens();
        server
    }

    /// Starts the process. `before` is the command line of a program that replaces itself with the server; it
    /// may be empty.
    fn begin(folder: &Path, program: PathBuf, before: &[&str], settings: &[&str]) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let listen = address.to_string();
        let arguments = [before, &["serve", "--listen", &listen], settings].concat();
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let log = folder.join(format!("server-{}.log", address.port()));
        let process = Process::start(&program, &arguments, &log);
        Self { process, address, program, arguments, log, starts: 1 }
    }

    /// Starts the server again after it was killed or stopped.
    pub fn restart(&mut self) {
        self.process = Process::start(&self.program, &self.arguments, &self.log);
        self.starts += 1;
        self.until_it_listens();
    }

    /// Stops the server with SIGTERM, and starts the version under test in its place.
    pub fn update(&mut self) {
        self.program = binary::recoup().to_path_buf();
        self.replace();
    }

    /// Stops the server with SIGTERM, and starts the older version in its place.
    pub fn roll_back(&mut self) {
        self.program = binary::older_recoup();
        self.replace();
    }

    fn replace(&mut self) {
        self.process.terminate();
        let status = self.process.exit(STOPPED_WITHIN);
        assert!(
            status.is_some_and(|status| status.success()),
            "{status:?}: {}",
            self.process.log()
        );
        self.restart();
    }

    /// Sends SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self) {
        assert!(self.process.is_alive(), "the server ended by itself:\n{}", self.process.log());
        self.process.kill();
    }

    /// The server's address as `http://ADDRESS`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many times the server has been started.
    pub fn starts(&self) -> usize {
        self.starts
    }

    /// Waits until the server reports that it is ready.
    pub fn until_it_listens(&self) {
        let line = self.process.line(READY_WITHIN);
        let wanted = format!("recoup listens on {}", self.url());
        assert_eq!(line, Some(wanted), "{}", self.process.log());
    }
}

/// Starts `recoup` with any arguments.
pub fn recoup(arguments: &[&str], log: &Path) -> Process {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    Process::start(binary::recoup(), &arguments, log)
}

/// Starts a server on an embedded database in a folder of its own, and connects a client of the SDK to it.
pub async fn connected(name: &str) -> (Folder, Server, Client) {
    let folder = Folder::new(name);
    let server = Server::embedded(folder.path());
    let client = Client::connect(server.url()).await.expect("it listens");
    (folder, server, client)
}

/// Runs `recoup` until it exits, with empty standard input.
pub fn recoup_once(arguments: &[&str]) -> std::process::Output {
    recoup_with(arguments, &[])
}

/// As [`recoup_once`], with additional environment variables.
pub fn recoup_with(arguments: &[&str], variables: &[(&str, &str)]) -> std::process::Output {
    recoup_in(Path::new("."), arguments, variables)
}

/// As [`recoup_with`], with `folder` as the current folder.
pub fn recoup_in(
    folder: &Path,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> std::process::Output {
    let mut command = Command::new(binary::recoup());
    command.current_dir(folder);
    forget_settings(&mut command);
    command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null());
    command.output().expect("the binary can be started")
}

/// Starts an example of the Rust SDK.
pub fn sdk_example(name: &str, arguments: &[&str], server: &str, log: &Path) -> Process {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let variables = [("RECOUP_ADDRESS", server)];
    Process::start_with(&binary::sdk_example(name), &arguments, &variables, log)
}

/// A folder that is removed at the end of the test, unless the test fails: its logs are then worth reading.
#[derive(Debug)]
pub struct Folder(Option<TempDir>);

impl Folder {
    pub fn new(name: &str) -> Self {
        let made =
            tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(binary::scratch());
        Self(Some(made.expect("the target folder can be written to")))
    }

    pub fn path(&self) -> &Path {
        self.0.as_ref().expect("it is there until it is dropped").path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(folder) = self.0.take()
        {
            eprintln!("logs and data stay in {}", folder.keep().display());
        }
    }
}

/// A free port below the range that the operating system assigns to clients. Otherwise a client that tries to
/// reach a server which is down could itself be given that server's port.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = (std::process::id() % 1000) as u16 * 11;
    loop {
        let port = 20_000 + (spread + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
