//! A reader of the failure feed that resumes from its cursor each time it is cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use recoup_proto::v1::subscribe_failures_request::Start;
use recoup_proto::v1::{FailureEvent, FeedPosition, SubscribeFailuresRequest};
use tokio::task::JoinHandle;

use crate::connect;

/// The server sends a keep-alive at least every 15 s, so a stream that is silent for longer is dead.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// The events that the subscriber has received, and how it received them.
#[derive(Debug, Default)]
pub struct Received {
    /// The events, each once, in the order of their arrival.
    pub events: Vec<FailureEvent>,
    /// The ids of these events.
    pub ids: BTreeSet<String>,
    /// How many events arrived more than once.
    pub repeated: usize,
    /// How many times a stream was opened.
    pub connections: usize,
    /// Refusals for which repeating the call cannot help.
    pub refusals: Vec<String>,
}

/// Reads the feed in a background task until it is dropped.
#[derive(Debug)]
pub struct Subscriber {
    received: Arc<Mutex<Received>>,
    reading: JoinHandle<()>,
}

impl Subscriber {
    /// Reads all events of the namespace `default`, from the beginning, at the first server that answers.
    pub fn start(urls: &[String]) -> Self {
        let received: Arc<Mutex<Received>> = Arc::default();
        let reading = tokio::spawn(read(urls.to_vec(), Arc::clone(&received)));
        Self { received, reading }
    }

    /// The ids of the events received so far.
    pub fn ids(&self) -> BTreeSet<String> {
        self.received.lock().expect("nothing panics while it is held").ids.clone()
    }

    /// Stops reading, and returns what was received.
    pub fn stop(self) -> Received {
        self.reading.abort();
        std::mem::take(&mut self.received.lock().expect("nothing panics while it is held"))
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Received {
    /// Executions whose events arrived in an order other than that of their history.
    pub fn out_of_order(&self) -> Vec<String> {
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        let mut wrong = Vec::new();
        for event in &self.events {
            if event.execution_id.is_empty() {
                continue;
            }
            let before = last.insert(&event.execution_id, event.history_sequence);
            if before.is_some_and(|before| before > event.history_sequence) {
                wrong.push(event.execution_id.clone());
            }
        }
        wrong
    }

    fn take(&mut self, event: FailureEvent) {
        if self.ids.insert(event.id.clone()) {
            self.events.push(event);
        } else {
            self.repeated += 1;
        }
    }
}

async fn read(urls: Vec<String>, received: Arc<Mutex<Received>>) {
    let mut cursor = String::new();
    for turn in 0.. {
        let url = &urls[turn % urls.len()];
        if let Err(status) = read_stream(url, &mut cursor, &received).await
            && !connect::passes_by_itself(&status)
        {
            let mut received = received.lock().expect("nothing panics while it is held");
            received.refusals.push(format!("{status}: {}", connect::reason(&status)));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn read_stream(
    url: &str,
    cursor: &mut String,
    received: &Mutex<Received>,
) -> Result<(), tonic::Status> {
    let start = match cursor.as_str() {
        "" => Start::Position(FeedPosition::Beginning.into()),
        cursor => Start::Cursor(cursor.to_owned()),
    };
    let request = SubscribeFailuresRequest { start: Some(start), ..Default::default() };
    let mut client = connect::failures(connect::channel(url));
    let silent = |_| tonic::Status::deadline_exceeded("the stream is silent");
    let answer = tokio::time::timeout(SILENCE_MAX, client.subscribe_failures(request)).await;
    let mut stream = answer.map_err(silent)??.into_inner();
    received.lock().expect("nothing panics while it is held").connections += 1;
    loop {
        let message = tokio::time::timeout(SILENCE_MAX, stream.message()).await;
        let Some(message) = message.map_err(silent)?? else { return Ok(()) };
        let mut received = received.lock().expect("nothing panics while it is held");
        for delivery in message.deliveries {
            *cursor = delivery.cursor;
            received.take(delivery.event.expect("a delivery has an event"));
        }
        if !message.cursor.is_empty() {
            *cursor = message.cursor;
        }
    }
}
