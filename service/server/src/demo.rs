//! `recoup demo`: a server, workers whose payments fail in chosen ways, and the results of that.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use recoup_sdk::proto::FailureKind;
use recoup_sdk::{Client, TaskContext, TaskError, Worker};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cli;
use crate::serve::{self, ServeOptions};

const ORDER: &str = include_str!("../../../examples/order/order.yaml");

/// For each order, what happens to its payment and what there is to see.
const SCENARIOS: [(&str, &str); 5] = [
    ("smooth", "nothing fails"),
    ("transient", "the provider is down twice, then answers"),
    ("rate_limited", "the provider says how long to wait"),
    ("declined", "the card is declined: no retry, the stock is released"),
    ("hang", "the payment hangs: it may have been taken, so it is refunded"),
];

#[derive(Args, Clone, Debug)]
pub struct DemoOptions {
    /// Port on 127.0.0.1; 0 chooses a free one.
    #[arg(long, default_value = "7430")]
    port: u16,

    /// Keep the data in this folder [default: a temporary one, removed at the end].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// End once all orders have ended, instead of continuing to serve.
    #[arg(long)]
    once: bool,
}

pub async fn run(options: DemoOptions) -> Result<()> {
    let temporary = tempfile::Builder::new().prefix("recoup-demo-").tempdir()?;
    let folder = options.data_dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    let server = serve::start(&ServeOptions::embedded(options.port, folder)).await;
    let server = server.context("the demo needs its port; choose another with --port")?;
    let mut stopped = serve::Stopped::listen()?;
    let address = format!("http://{}", server.address);
    let client = Client::connect(&address).await.context("the server has just started")?;
    let style = cli::Style::detect(std::io::stdout().is_terminal());

    println!("{}", style.heading("Recoup demo"));
    println!("A server on an embedded database listens on {address}.\n");
    let version = client.register_workflow(ORDER).await?.version;
    println!("Registered workflow `order` version {version} from examples/order/order.yaml.");
    println!("Started workers for stock, payments, parcels and mail.\n");

    let (stop, stopping) = watch::channel(false);
    let mut working = tokio::spawn(worker(client.clone(), stopping));
    let mut failures = client.failures().from_beginning().subscribe()?;
    let (seen, mut told) = watch::channel(0);
    let watching = tokio::spawn(async move {
        while let Ok(delivery) = failures.next().await {
            for line in cli::event_summary(&delivery.event, style.after(2)) {
                println!("  {line}");
            }
            let ended = delivery.event.kind() == FailureKind::ExecutionFailed;
            seen.send_modify(|count| *count += usize::from(ended));
        }
    });

    println!("{}", style.heading("Five orders, and their failures as they happen:"));
    let mut orders = JoinSet::new();
    for (number, (scenario, _)) in SCENARIOS.iter().enumerate() {
        let order = format!("ord-{:03}", number + 1);
        let amount = 1999 + 500 * number;
        let input = json!({
            "order": order, "items": ["book", "pen"], "amount": amount, "scenario": scenario,
        });
        let run = client.run("order").key(&order).input(&input);
        orders.spawn(async move { (number, run.send().await) });
    }
    let mut ended = Vec::new();
    tokio::select! {
        all = async {
            while let Some(order) = orders.join_next().await {
                let (number, result) = order?;
                ended.push((number, result?));
            }
            anyhow::Ok(())
        } => all?,
        failed = &mut working => failed??,
        () = stopped.wait() => return end(server, stop, working).await,
    }
    ended.sort_by_key(|(number, _)| *number);
    // The feed arrives a little later than the answers. Let it print its events before the timelines.
    let failed = ended.iter().filter(|(_, one)| !one.succeeded()).count();
    let told = told.wait_for(|count| *count >= failed);
    let _ = tokio::time::timeout(Duration::from_secs(5), told).await?;
    for (number, one) in &ended {
        let (scenario, what) = SCENARIOS[*number];
        println!("\n{}", style.heading(&format!("{scenario}: {what}")));
        cli::print_timeline(&client, &one.execution_id, style)
            .await
            .map_err(anyhow::Error::from)?;
    }
    watching.abort();

    if !options.once {
        println!("\n{}", style.heading("Now you"));
        println!("The server keeps running at {address}. In another terminal:\n");
        let at = if options.port == 7430 { String::new() } else { format!(" --address {address}") };
        // Use the name under which this program was called, because it need not be installed.
        let recoup = std::env::args().next().unwrap_or_else(|| "recoup".to_owned());
        println!("  {recoup} list{at}");
        let declined = &ended[3].1.execution_id;
        println!("  {recoup} show{at} {declined}");
        println!("  {recoup} failures tail{at} --from-beginning");
        let input = r#"'{"order":"mine","items":[],"amount":5,"scenario":"declined"}'"#;
        println!("  {recoup} run{at} order --input {input}\n");
        println!("Ctrl-C stops it.");
        tokio::select! {
            () = stopped.wait() => {}
            failed = &mut working => failed??,
        }
    }
    end(server, stop, working).await
}

/// Stops the workers first, so that they finish the tasks that they hold.
async fn end(
    server: serve::Running,
    stop: watch::Sender<bool>,
    working: tokio::task::JoinHandle<Result<(), recoup_sdk::Error>>,
) -> Result<()> {
    stop.send_replace(true);
    // An error of a worker at the end of the demo does not matter.
    let _ = tokio::time::timeout(Duration::from_secs(5), working).await;
    server.stop().await
}

async fn worker(
    client: Client,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), recoup_sdk::Error> {
    let parcels = std::sync::Arc::new(AtomicU32::new(100));
    Worker::builder(client)
        .queue("orders")
        .task("stock.reserve", |_, order: Value| async move {
            work().await;
            Ok(json!({ "reserved": order["items"] }))
        })
        .task("payment.charge", charge)
        .task("parcel.ship", move |_, _: Value| {
            let parcel = parcels.fetch_add(1, Ordering::Relaxed);
            async move {
                work().await;
                Ok(json!({ "parcel": format!("P-{parcel}") }))
            }
        })
        .task("stock.release", undo)
        .task("payment.refund", undo)
        .task("parcel.recall", undo)
        .task("mail.notify", |_, _: Value| async move {
            work().await;
            Ok(json!({ "sent": true }))
        })
        .run(async move {
            // An error means that the sender is gone, which also means that the workers must stop.
            let _ = stopping.wait_for(|stop| *stop).await;
        })
        .await
}

/// A payment provider that fails in the way that the order chooses.
async fn charge(context: TaskContext, order: Value) -> Result<Value, TaskError> {
    work().await;
    let attempt = context.attempt();
    match order["scenario"].as_str() {
        Some("transient") if attempt <= 2 => {
            Err(TaskError::new("payment.unavailable").message("connection refused by the provider"))
        }
        Some("rate_limited") if attempt == 1 => Err(TaskError::new("payment.rate_limited")
            .message("too many requests")
            .retry_after(Duration::from_millis(1500))),
        Some("declined") => {
            Err(TaskError::new("payment.card_declined").message("insufficient funds"))
        }
        Some("hang") => {
            context.cancelled().await;
            Err(TaskError::new("payment.interrupted").message("the charge was interrupted"))
        }
        _ => Ok(json!({ "receipt": format!("R-{}", order["order"].as_str().unwrap_or("?")) })),
    }
}

async fn undo(_: TaskContext, _: Value) -> Result<Value, TaskError> {
    work().await;
    Ok(json!({ "undone": true }))
}

/// Takes as long as a quick call.
async fn work() {
    tokio::time::sleep(Duration::from_millis(40)).await;
}
