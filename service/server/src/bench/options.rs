//! The options of a measurement. The parent and both child processes read the same ones.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use recoup_sdk::proto::{Payload, payload};

use crate::serve::StoreKind;

/// The definition of the workflow that is measured.
pub const WORKFLOW: &str = include_str!("bench.yaml");
/// [`PAYLOAD`] as a message of the protocol.
pub fn payload() -> Payload {
    let content = Some(payload::Content::Json(PAYLOAD.to_owned()));
    Payload { content, ..Payload::default() }
}

/// About 100 bytes of JSON: the input, and the result of every step.
const PAYLOAD: &str = r#"{"order":"ord-000123","amount":1999,"currency":"EUR","state":"ok","note":"abcdefghijklmnopqrstuvwx"}"#;

#[derive(Args, Clone, Debug)]
pub struct BenchOptions {
    /// Store of the server that is measured.
    #[arg(long, value_enum, default_value = "sqlite")]
    pub store: StoreKind,

    /// Database for --store postgres. Use a separate database: the measurement fills it.
    #[arg(long, env = "RECOUP_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,

    /// Folder in which a temporary data folder is made for --store sqlite [default: the current
    /// folder].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// How workers get their tasks.
    #[arg(long, value_enum, default_value = "stream")]
    pub mode: Mode,

    /// Executions in flight; with --rate, the most that may be in flight.
    #[arg(long, default_value = "256", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clients: u32,

    /// Connections of the worker.
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub workers: u32,

    /// Tasks that each connection of the worker may hold at a time.
    #[arg(long, default_value = "64", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub slots: u32,

    /// Seconds to measure, after two seconds of warm-up.
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,

    /// Open loop: starts per second, whether or not earlier ones have ended [default: closed loop].
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,

    /// Share of attempts that fail and are retried, 0 to 1.
    #[arg(long, default_value = "0")]
    pub fail_share: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One bidirectional stream per connection.
    Stream,
    /// One call per task and one per result.
    Unary,
}
