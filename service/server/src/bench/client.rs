//! The client process: registers the workflow, then keeps executions in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use recoup_sdk::Client;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::options::{BenchOptions, WORKFLOW, payload};

const CONNECTIONS_MIN: u32 = 2;
/// Half the number of calls that the server lets one connection have open.
const CALLS_PER_CONNECTION: u32 = 500;
const WARM_UP: Duration = Duration::from_secs(2);

/// Microseconds from each call to its answer.
type Latencies = Mutex<Histogram<u64>>;

/// Prints `registered`, then `measuring` after the warm-up, then the measurements.
pub async fn run(address: &str, options: &BenchOptions) -> Result<()> {
    let mut connections = Vec::new();
    for _ in 0..options.clients.div_ceil(CALLS_PER_CONNECTION).max(CONNECTIONS_MIN) {
        connections.push(Client::connect(address).await?);
    }
    connections[0].register_workflow(WORKFLOW).await?;
    println!("registered");

    let latencies = Arc::new(Latencies::new(Histogram::new(3)?));
    let mut load = JoinSet::new();
    match options.rate {
        None => {
            for client in connections.iter().cycle().take(options.clients as usize) {
                load.spawn(closed_loop(client.clone(), latencies.clone()));
            }
        }
        Some(rate) => {
            ensure!(rate > 0.0, "--rate must be above 0, not {rate}");
            load.spawn(open_loop(connections, options.clients, rate, latencies.clone()));
        }
    }
    tokio::select! {
        measured = measure(&latencies, Duration::from_secs(options.seconds)) => {
            println!("{measured}");
            Ok(())
        }
        Some(ended) = load.join_next() => ended?,
    }
}

async fn closed_loop(client: Client, latencies: Arc<Latencies>) -> Result<()> {
    loop {
        let began = Instant::now();
        execute(&client).await?;
        latencies.lock().record(micros(began))?;
    }
}

/// Starts executions at a fixed rate. Latency counts from the moment at which the start was due, so that a
/// server that falls behind gets no advantage.
async fn open_loop(
    clients: Vec<Client>,
    in_flight_max: u32,
    rate: f64,
    latencies: Arc<Latencies>,
) -> Result<()> {
    let places = Arc::new(Semaphore::new(in_flight_max as usize));
    let failed = Arc::new(AtomicU64::new(0));
    let origin = Instant::now();
    for (number, client) in (0_u64..).zip(clients.iter().cycle()) {
        let due = origin + Duration::from_secs_f64(number as f64 / rate);
        tokio::time::sleep_until(due.into()).await;
        let place = places.clone().acquire_owned().await?;
        let (client, latencies, failures) = (client.clone(), latencies.clone(), failed.clone());
        tokio::spawn(async move {
            match execute(&client).await {
                Ok(()) => drop(latencies.lock().record(micros(due))),
                Err(_) => drop(failures.fetch_add(1, Ordering::Relaxed)),
            }
            drop(place);
        });
        ensure!(failed.load(Ordering::Relaxed) == 0, "an execution failed");
    }
    Ok(())
}

async fn execute(client: &Client) -> Result<()> {
    let ended = client.run("bench").payload(payload()).send().await?;
    ensure!(ended.succeeded(), "an execution ended as {:?}", ended.outcome);
    Ok(())
}

async fn measure(latencies: &Latencies, duration: Duration) -> String {
    sleep(WARM_UP).await;
    latencies.lock().reset();
    println!("measuring");
    let began = Instant::now();
    sleep(duration).await;
    let latencies = latencies.lock();
    let quantile = |q| latencies.value_at_quantile(q) as f64 / 1000.0;
    format!(
        "executions_per_s={:.0} p50_ms={:.2} p99_ms={:.2} p99.9_ms={:.2} ended={}",
        latencies.len() as f64 / began.elapsed().as_secs_f64(),
        quantile(0.50),
        quantile(0.99),
        quantile(0.999),
        latencies.len(),
    )
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
