//! The child processes of a measurement: this program, started with other arguments.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStdout;

/// The unit of the times in `/proc/PID/stat`, the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A child process. It is killed and waited for when dropped.
pub struct Process {
    name: &'static str,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub fn spawn(name: &'static str, arguments: &[String]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start the {name}"))?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        let lines = BufReader::new(ChildStdout::from_std(stdout)?).lines();
        Ok(Self { name, child, lines })
    }

    /// The next line that the process prints.
    pub async fn line(&mut self) -> Result<String> {
        let line = self.lines.next_line().await?;
        line.with_context(|| format!("the {} has ended", self.name))
    }

    /// The user and system time that the process has used so far.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name is in parentheses and may contain anything.
        let (_, fields) = stat.rsplit_once(')').context("a name in /proc/PID/stat")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        Ok(ticks.sum::<Result<u64, _>>()? as f64 / TICKS_PER_SECOND)
    }

    /// The bytes that the process has caused to be written to storage so far.
    pub fn bytes_written(&self) -> Result<u64> {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.child.id()))?;
        let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        Ok(line.context("write_bytes in /proc/PID/io")?.parse()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Killing fails only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends this process when its parent ends in any way, because that closes the pipe to standard input.
pub fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
}
