//! The worker process: completes each task at once, or fails the share that it was told to fail.

use anyhow::{Context, Result};
use recoup_sdk::{Client, TaskError, Transport, Worker};
use tokio::task::JoinSet;

use super::options::{BenchOptions, Mode, payload};

/// Prints `ready`, then works until something fails.
pub async fn run(address: &str, options: &BenchOptions) -> Result<()> {
    let fail_share = options.fail_share.clamp(0.0, 1.0);
    let mut working = JoinSet::new();
    for _ in 0..options.workers {
        let client = Client::connect(address).await?;
        let transport = match options.mode {
            Mode::Stream => Transport::Stream,
            Mode::Unary => Transport::Unary,
        };
        let worker = Worker::builder(client)
            .queue("bench")
            .slots(options.slots)
            .transport(transport)
            .inline_task("bench.step", move |task| {
                if fails(&task.idempotency_key, task.attempt, fail_share) {
                    return Err(TaskError::new("bench.chosen").message("chosen to fail"));
                }
                Ok(payload())
            });
        working.spawn(worker.run(std::future::pending()));
    }
    println!("ready");
    working.join_next().await.context("there is at least one worker")???;
    Ok(())
}

/// Whether an attempt fails. It depends only on the key and the attempt, so that the share holds and an
/// attempt that runs twice has the same result both times.
fn fails(key: &str, attempt: u32, share: f64) -> bool {
    if share <= 0.0 {
        return false;
    }
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in key.bytes().chain(attempt.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash >> 11) as f64 / ((1_u64 << 53) as f64) < share
}
