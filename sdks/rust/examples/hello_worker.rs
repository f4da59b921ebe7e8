//! Registers a workflow of one step, serves it, runs it once and prints its output.
//!
//! ```sh
//! cargo run -p recoup-server -- dev &
//! cargo run -p recoup-sdk --example hello_worker
//! ```

use recoup_sdk::{Client, TaskContext, TaskError, Worker};

const WORKFLOW: &str = r#"
name: hello
steps:
  - id: greet
    task: {type: greeting.say, queue: hello, input: "${input}"}
"#;

async fn greet(context: TaskContext, name: String) -> Result<String, TaskError> {
    if name.is_empty() {
        // The worker reports that a retry cannot help, so no policy retries this error.
        return Err(TaskError::new("greeting.nobody").message("no name").non_retryable());
    }
    if context.attempt() == 1 {
        // The default policy retries this error after about a second.
        return Err(TaskError::new("greeting.shy").message("not at the first try"));
    }
    Ok(format!("Hello, {name}!"))
}

#[tokio::main]
async fn main() -> Result<(), recoup_sdk::Error> {
    let address = std::env::var("RECOUP_ADDRESS").unwrap_or("http://127.0.0.1:7430".to_owned());
    let client = Client::connect(address).await?;
    client.register_workflow(WORKFLOW).await?;

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = Worker::builder(client.clone()).queue("hello").task("greeting.say", greet);
    let serving = tokio::spawn(worker.run(async {
        // The worker stops when the sender sends, and also when it is dropped.
        let _ = stopped.await;
    }));

    let ended = client.run("hello").input("world").send().await?;
    println!("{}", ended.output::<String>()?);

    let _ = stop.send(());
    serving.await.expect("the worker does not panic")
}
