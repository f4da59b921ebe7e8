//! Registers the order workflow and runs one order, as the service of a shop would. It uses a key, so that an order is
//! never started twice, and it checks how the execution ended.
//!
//! ```sh
//! cargo run -p recoup-sdk --example order_client -- 7
//! ```

use recoup_sdk::proto::{CompensationState, ErrorReason, OnEnded, OnRunning};
use recoup_sdk::{Client, Error};

const WORKFLOW: &str = include_str!("../../../examples/order/order.yaml");

#[tokio::main]
async fn main() -> Result<(), Error> {
    let address = std::env::var("RECOUP_ADDRESS").unwrap_or("http://127.0.0.1:7430".to_owned());
    let order = std::env::args().nth(1).unwrap_or("7".to_owned());
    let client = Client::connect(address).await?;
    let registered = client.register_workflow(WORKFLOW).await?;
    println!("{} is at version {}", registered.name, registered.version);

    let input = serde_json::json!({
        "order": order,
        "items": [{"sku": "mug", "quantity": 2}],
        "amount": 2_400,
        "scenario": "",
    });
    let ended = client
        .run("order")
        .input(&input)
        .key(format!("order-{order}"))
        .on_running(OnRunning::UseExisting)
        .on_ended(OnEnded::AllowAfterFailure)
        .send()
        .await;
    let ended = match ended {
        // An execution with this key has already succeeded, so the order is not started again.
        Err(error) if error.reason() == ErrorReason::ExecutionKeyTaken => {
            println!("{error}");
            return Ok(());
        }
        ended => ended?,
    };

    let state = ended.outcome.state().as_str_name().trim_start_matches("EXECUTION_STATE_");
    println!("execution {} ended as {state}", ended.execution_id);
    if ended.succeeded() {
        println!("{}", ended.output::<serde_json::Value>()?);
        return Ok(());
    }
    if let Some(error) = &ended.outcome.error {
        println!("because of {}: {}", error.r#type, error.message);
    }
    match ended.outcome.compensation_state() {
        CompensationState::Done => println!("what was done is undone"),
        CompensationState::Parked => println!("a person must act: see `recoup show`"),
        _ => {}
    }
    Ok(())
}
