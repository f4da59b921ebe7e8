//! Clients that start orders. Each order has a request id, under which its client repeats the call until it has
//! an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use recoup_proto::v1::run_execution_response::Result as RunResult;
use recoup_proto::v1::{ExecutionSpec, ExecutionState, RunExecutionRequest, StartExecutionRequest};
use serde_json::json;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;

use crate::connect;
use crate::order::{Fate, WORKFLOW};

/// How long a client waits for an answer before it repeats the call.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// How long, in seconds, a client waits for the end of an order before it starts the next one.
const RUN_WAIT_S: i64 = 5;

/// An order whose start was acknowledged.
#[derive(Clone, Debug)]
pub struct Started {
    pub order: u64,
    pub fate: Fate,
    pub execution: String,
    /// The state in which it ended, if the answer included that.
    pub end: Option<ExecutionState>,
}

/// The clients, each running in a task of its own.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<Vec<Started>>,
}

#[derive(Debug, Default)]
struct Shared {
    next: AtomicU64,
    stopped: AtomicBool,
    repeated: AtomicUsize,
    acknowledged: AtomicUsize,
}

impl Load {
    /// Starts this many clients. Each waits for its order before it starts the next.
    pub fn start(urls: &[String], clients: usize) -> Self {
        let shared: Arc<Shared> = Arc::default();
        let mut set = JoinSet::new();
        for number in 0..clients {
            let channels = urls.iter().map(|url| connect::channel(url));
            let mut channels: Vec<Channel> = channels.collect();
            channels.rotate_left(number % urls.len());
            set.spawn(client(Arc::clone(&shared), channels));
        }
        Self { shared, clients: set }
    }

    /// How many starts have been acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// How many calls were repeated.
    pub fn repeated(&self) -> usize {
        self.shared.repeated.load(Ordering::Relaxed)
    }

    /// Makes the clients start no further orders, and waits until the starts that they have sent are
    /// acknowledged.
    pub async fn stop(self) -> Vec<Started> {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.clients.join_all().await.concat()
    }
}

/// The request id under which an order is started. Repeated calls use the same one.
pub fn request_id(order: u64) -> String {
    format!("order-{order}")
}

/// The execution to start for an order. Every fourth order has an execution key.
pub fn spec(order: u64) -> ExecutionSpec {
    let input = json!({"order": order, "fate": Fate::of(order).name()});
    ExecutionSpec {
        workflow: WORKFLOW.to_owned(),
        input: Some(connect::json(&input)),
        execution_key: if order.is_multiple_of(4) { format!("key-{order}") } else { String::new() },
        ..ExecutionSpec::default()
    }
}

async fn client(shared: Arc<Shared>, channels: Vec<Channel>) -> Vec<Started> {
    let mut all = Vec::new();
    while !shared.stopped.load(Ordering::Relaxed) {
        let order = shared.next.fetch_add(1, Ordering::Relaxed);
        for turn in 0.. {
            let channel = channels[turn % channels.len()].clone();
            let answer = tokio::time::timeout(ANSWER_WITHIN, start(channel, order)).await;
            match answer {
                Ok(Ok(started)) => {
                    all.push(started);
                    break;
                }
                Ok(Err(status)) if !connect::passes_by_itself(&status) => {
                    panic!("order {order} was refused: {} {status:?}", connect::reason(&status));
                }
                _ => {}
            }
            shared.repeated.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        shared.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    all
}

/// Starts an order. Every third one is only started; the others are started and awaited in one call.
async fn start(channel: Channel, order: u64) -> Result<Started, Status> {
    let (execution, request_id) = (Some(spec(order)), request_id(order));
    let mut client = connect::executions(channel);
    let fate = Fate::of(order);
    if order.is_multiple_of(3) {
        let request = StartExecutionRequest { execution, request_id };
        let answer = client.start_execution(request).await?.into_inner();
        return Ok(Started { order, fate, execution: answer.execution_id, end: None });
    }
    let wait = Some(recoup_proto::Duration { seconds: RUN_WAIT_S, nanos: 0 });
    let request = RunExecutionRequest { execution, request_id, wait };
    let answer = client.run_execution(request).await?.into_inner();
    let end = match answer.result {
        Some(RunResult::Ended(outcome)) => Some(outcome.state()),
        _ => None,
    };
    Ok(Started { order, fate, execution: answer.execution_id, end })
}
