//! Reads the failure feed through a durable subscription, and prints every event with its urgency. After a
//! restart it continues with the first event that was not acknowledged.
//!
//! ```sh
//! cargo run -p recoup-sdk --example failure_alert
//! ```

use recoup_sdk::proto::{FailureFilter, FailureKind, Subscription};
use recoup_sdk::{Client, Delivery, Error};

const SUBSCRIPTION: &str = "order-alerts";

fn alert(delivery: &Delivery) {
    let event = &delivery.event;
    let error = event.error.as_ref().map_or("no error", |error| error.r#type.as_str());
    let urgency = match event.kind() {
        FailureKind::CompensationParked => "act now",
        FailureKind::ExecutionFailed | FailureKind::ExecutionTimedOut => "look",
        _ => "know",
    };
    let kind = event.kind().as_str_name().trim_start_matches("FAILURE_KIND_");
    println!(
        "[{urgency}] {kind}: {} {} {}: {error}",
        event.workflow, event.execution_id, event.step_path,
    );
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let address = std::env::var("RECOUP_ADDRESS").unwrap_or("http://127.0.0.1:7430".to_owned());
    let client = Client::connect(address).await?;
    let filter = FailureFilter { workflows: vec!["order".to_owned()], ..Default::default() };
    // Idempotent: if the subscription exists with the same settings, the call succeeds again.
    client
        .create_subscription(Subscription {
            name: SUBSCRIPTION.to_owned(),
            filter: Some(filter),
            ..Default::default()
        })
        .await?;

    let mut failures = client.failures().durable(SUBSCRIPTION).consumer("example").subscribe()?;
    loop {
        let delivery = failures.next().await?;
        alert(&delivery);
        // Acknowledge after the alert was printed. If the program ends before that, the event is delivered again.
        delivery.ack().await?;
    }
}
