//! A consumer of a durable subscription to the failure feed. It reads deliveries from one server and
//! acknowledges them at another, and every few messages it reconnects without acknowledging what it has just
//! received.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use recoup_proto::v1::subscribe_failures_request::Start;
use recoup_proto::v1::{
    AckFailuresRequest, CreateSubscriptionRequest, ErrorReason, FailureEvent, FeedPosition,
    GetSubscriptionRequest, SubscribeFailuresRequest, Subscription, SubscriptionRef, subscription,
};
use tokio::task::JoinHandle;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::connect;

/// Longer than any test. A repeated delivery is therefore caused by a reconnect, never by this deadline.
const ACK_DEADLINE: Duration = Duration::from_secs(3600);
/// The consumer reconnects after this many messages.
const MESSAGES: usize = 7;
const SILENCE_MAX: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
pub struct Audited {
    /// The events, in the order of their first arrival.
    pub events: Vec<FailureEvent>,
    /// The number of the latest delivery of each event, by event id.
    pub deliveries: BTreeMap<String, u32>,
    pub acknowledged: BTreeSet<String>,
    /// How many deliveries were repeats, caused by a reconnect of the consumer.
    pub repeated: usize,
    pub connections: usize,
    /// Violations that were found, one sentence each.
    pub wrong: Vec<String>,
}

/// Reads the subscription in a background task until it is stopped.
#[derive(Debug)]
pub struct Auditor {
    audited: Arc<Mutex<Audited>>,
    reading: JoinHandle<()>,
    channel: Channel,
}

fn reference() -> SubscriptionRef {
    SubscriptionRef { name: "auditor".into(), ..Default::default() }
}

impl Auditor {
    /// Creates the subscription, starting at the beginning of the feed, and reads it.
    pub async fn start(deliverer: Channel, acknowledger: Channel) -> Self {
        let subscription = Subscription {
            name: reference().name,
            start: Some(subscription::Start::Position(FeedPosition::Beginning.into())),
            ack_deadline: Some(ACK_DEADLINE.into()),
            window: 200,
            ..Default::default()
        };
        let request =
            CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
        let created = connect::failures(deliverer.clone()).create_subscription(request).await;
        created.expect("it is new");
        let audited: Arc<Mutex<Audited>> = Arc::default();
        let channel = acknowledger.clone();
        let reading = tokio::spawn(read(deliverer, acknowledger, Arc::clone(&audited)));
        Self { audited, reading, channel }
    }

    pub fn acknowledged(&self) -> usize {
        self.audited.lock().expect("nothing panics while it is held").acknowledged.len()
    }

    /// Stops reading. Also returns the number of deliveries that are still outstanding.
    pub async fn stop(self) -> (Audited, u32) {
        self.reading.abort();
        let request = GetSubscriptionRequest { subscription: Some(reference()) };
        let got = connect::failures(self.channel).get_subscription(request).await;
        let got = got.expect("it exists").into_inner().subscription.expect("always set");
        let audited = self.audited.lock().map(|mut audited| std::mem::take(&mut *audited));
        (audited.expect("nothing panics while it is held"), got.outstanding)
    }
}

async fn read(deliverer: Channel, acknowledger: Channel, audited: Arc<Mutex<Audited>>) {
    let mut before: Option<Streaming<_>> = None;
    loop {
        let request = SubscribeFailuresRequest {
            start: Some(Start::Subscription(reference())),
            consumer: "auditor".into(),
            ..Default::default()
        };
        let opened = connect::failures(deliverer.clone()).subscribe_failures(request).await;
        let mut stream = opened.expect("its own name takes over").into_inner();
        // The previous stream stayed open until now, so the new one has taken the subscription over from it.
        drop(before.take());
        audited.lock().expect("nothing panics while it is held").connections += 1;
        let mut messages = 0;
        while messages < MESSAGES {
            let message = tokio::time::timeout(SILENCE_MAX, stream.message()).await;
            let message = message
                .expect("keep-alives come")
                .expect("no other consumer reads the subscription");
            let deliveries = message.expect("the server runs").deliveries;
            if deliveries.is_empty() {
                continue;
            }
            messages += 1;
            let tokens: Vec<(String, String)> = {
                let mut audited = audited.lock().expect("nothing panics while it is held");
                let tokens = deliveries.into_iter().map(|delivery| {
                    let event = delivery.event.expect("a delivery has an event");
                    let token = (event.id.clone(), delivery.ack_token);
                    audited.take(event, delivery.delivery);
                    token
                });
                tokens.collect()
            };
            // The last message before a reconnect is not acknowledged: its deliveries are the ones that must
            // come again.
            if messages < MESSAGES {
                acknowledge(&acknowledger, tokens, &audited).await;
            }
        }
        before = Some(stream);
    }
}

async fn acknowledge(channel: &Channel, tokens: Vec<(String, String)>, audited: &Mutex<Audited>) {
    let (ids, ack_tokens): (Vec<String>, Vec<String>) = tokens.into_iter().unzip();
    let request = AckFailuresRequest { subscription: Some(reference()), ack_tokens };
    let acked = connect::failures(channel.clone()).ack_failures(request).await;
    let acked = acked.expect("it exists").into_inner();
    let mut audited = audited.lock().expect("nothing panics while it is held");
    for (id, result) in ids.into_iter().zip(acked.results) {
        if result.reason() != ErrorReason::Unspecified {
            audited.wrong.push(format!("{id} was not acknowledged: {:?}", result.reason()));
        }
        audited.acknowledged.insert(id);
    }
}

impl Audited {
    fn take(&mut self, event: FailureEvent, delivery: u32) {
        if self.acknowledged.contains(&event.id) {
            self.wrong.push(format!("{} came again after it was acknowledged", event.id));
        }
        // An event that was in flight during the reconnect is first seen here as its second delivery.
        match self.deliveries.insert(event.id.clone(), delivery) {
            None => self.events.push(event),
            Some(before) if before < delivery => self.repeated += 1,
            Some(before) => {
                self.wrong.push(format!("{}: delivery {delivery} after {before}", event.id));
            }
        }
    }
}
