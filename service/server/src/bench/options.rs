//! What is measured, and with which options: the parent and both children read the same.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use recoup_sdk::proto::{Payload, payload};

use crate::serve::StoreKind;

/// The definition that is measured.
pub const WORKFLOW: &str = include_str!("bench.yaml");
/// [`PAYLOAD`] on the wire.
pub fn payload() -> Payload {
    let content = Some(payload::Content::Json(PAYLOAD.to_owned()));
    Payload { content, ..Payload::default() }
}

/// About 100 bytes of JSON: the input, and the result of every step.
const PAYLOAD: &str = r#"{"order":"ord-000123","amount":1999,"currency":"EUR","state":"ok","note":"abcdefghijklmnopqrstuvwx"}"#;

#[derive(Args, Clone, Debug)]
pub struct BenchOptions {
    /// What makes each transition durable.
    #[arg(long, value_enum, default_value = "sqlite")]
    pub store: StoreKind,

    /// For postgres: a database of its own, which is filled.
    #[arg(long, env = "RECOUP_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,

    /// For sqlite: a folder that is made for the run, and removed [default: in the current folder].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// How workers get their tasks.
    #[arg(long, value_enum, default_value = "stream")]
    pub mode: Mode,

    /// Executions in flight; with --rate, the most that may be.
    #[arg(long, default_value = "256", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clients: u32,

    /// Connections of the worker.
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub workers: u32,

    /// Tasks that each of these connections has at a time.
    #[arg(long, default_value = "64", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub slots: u32,

    /// Measured after two seconds of warm-up.
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,

    /// Open loop: starts per second, whether earlier ones have ended or not [default: closed loop].
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,

    /// Share of attempts that fail and are retried, 0 to 1.
    #[arg(long, default_value = "0")]
    pub fail_share: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One bidirectional stream for each connection.
    Stream,
    /// A call for each task and each result.
    Unary,
}
