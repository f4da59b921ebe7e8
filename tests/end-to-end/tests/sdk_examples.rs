//! The examples of the Rust SDK, run as a reader of the documentation runs them.

use std::time::Duration;

use recoup_end_to_end::process::Process;
use recoup_end_to_end::server::{Folder, Server, connected, sdk_example};
use recoup_sdk::{Client, TaskContext, TaskError, Worker};
use serde_json::{Value, json};

/// How long the tests wait before they fail.
const PATIENCE: Duration = Duration::from_secs(30);

struct Site {
    server: Server,
    client: Client,
    folder: Folder,
}

impl Site {
    /// Starts a server and a worker of the order workflow. The worker declines the payment of every order whose
    /// name contains a `d`.
    async fn start(name: &str) -> Self {
        let (folder, server, client) = connected(name).await;
        let done = |_: TaskContext, _: Value| async { Ok::<_, TaskError>(json!({})) };
        let worker = Worker::builder(client.clone())
            .queue("orders")
            .task("stock.reserve", done)
            .task("stock.release", done)
            .task("mail.notify", done)
            .task("payment.charge", |_: TaskContext, order: Value| async move {
                if order["order"].as_str().is_some_and(|order| order.contains('d')) {
                    let declined = TaskError::new("payment.card_declined");
                    return Err(declined.message("insufficient funds"));
                }
                Ok(json!({"receipt": format!("R-{}", order["order"].as_str().unwrap_or("?"))}))
            })
            .task("parcel.ship", |_: TaskContext, _: Value| async {
                Ok::<_, TaskError>(json!({"parcel": "P-1"}))
            });
        tokio::spawn(worker.run(std::future::pending()));
        Self { server, client, folder }
    }

    fn example(&self, name: &str, arguments: &[&str]) -> Process {
        let log = self.folder.path().join(format!("{name}.log"));
        sdk_example(name, arguments, &self.server.url(), &log)
    }

    /// The lines printed by an example that ends by itself.
    fn printed(&self, name: &str, arguments: &[&str]) -> Vec<String> {
        let mut example = self.example(name, arguments);
        let mut lines = Vec::new();
        while let Some(line) = example.line(PATIENCE) {
            lines.push(line);
        }
        let exit = example.exit(PATIENCE).expect("it ends");
        assert_eq!((exit.code(), example.log().as_str()), (Some(0), ""), "{lines:?}");
        lines
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hello_worker_greets() {
    let site = Site::start("example-hello").await;
    assert_eq!(site.printed("hello_worker", &[]), ["Hello, world!"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_client_prints_how_its_order_ended() {
    let site = Site::start("example-order").await;
    let lines = site.printed("order_client", &["7"]);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(lines[0], "order is at version 1");
    let id = lines[1]
        .strip_prefix("execution ")
        .and_then(|rest| rest.strip_suffix(" ended as SUCCEEDED"));
    let id = id.unwrap_or_else(|| panic!("{lines:?}"));
    let output: Value = serde_json::from_str(&lines[2]).expect("JSON");
    assert_eq!(output, json!({"order": "7", "parcel": "P-1", "receipt": "R-7"}));
    // The client recognises the order by its key, so it is not started twice.
    let again = site.printed("order_client", &["7"]);
    let held = format!("the execution key is held by {id}, which is SUCCEEDED");
    assert_eq!(again[1..], [held]);

    let lines = site.printed("order_client", &["7d"]);
    assert!(lines[1].ends_with(" ended as FAILED"), "{lines:?}");
    assert_eq!(
        lines[2..],
        ["because of payment.card_declined: insufficient funds", "what was done is undone"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failure_alert_resumes_where_it_was_stopped() {
    let site = Site::start("example-alert").await;
    let mut alert = site.example("failure_alert", &[]);
    let subscribed = async {
        while site.client.subscription("order-alerts").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, subscribed).await.expect("it subscribes");
    let fail = |order: &'static str| {
        let lines = site.printed("order_client", &[order]);
        let id = lines[1].split(' ').nth(1).expect("an id").to_owned();
        // The decline, the start and the end of the compensation, and the end of the execution.
        [
            format!("[know] STEP_FAILED: order {id} charge: payment.card_declined"),
            format!("[know] COMPENSATION_STARTED: order {id} charge: payment.card_declined"),
            format!("[know] COMPENSATION_DONE: order {id} charge: payment.card_declined"),
            format!("[look] EXECUTION_FAILED: order {id} charge: payment.card_declined"),
        ]
    };
    for expected in fail("1d") {
        assert_eq!(alert.line(PATIENCE), Some(expected), "{}", alert.log());
    }
    alert.kill();
    let missed = fail("2d");
    let alert = site.example("failure_alert", &[]);
    let mut lines = Vec::new();
    while lines.last() != Some(&missed[3]) {
        lines.push(alert.line(PATIENCE).unwrap_or_else(|| panic!("{lines:?} {}", alert.log())));
    }
    // The first subscriber may not have acknowledged the last line that it printed.
    assert!(lines.len() <= 5 && lines.ends_with(&missed), "{lines:?}");
}
