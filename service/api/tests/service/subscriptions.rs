//! A durable subscription that one consumer takes over from another.

use std::time::Duration;

use recoup_proto::v1;
use tonic::{Code, Status, Streaming};

use crate::server::{ORDER, PATIENCE, Server, assert_refused, refusal};

type Responses = Streaming<v1::SubscribeFailuresResponse>;

fn reference() -> v1::SubscriptionRef {
    v1::SubscriptionRef { name: "ops".into(), ..Default::default() }
}

/// Creates a subscription whose deadline is longer than any test, so that it is never the cause of a
/// redelivery.
async fn create(server: &Server) {
    let subscription = v1::Subscription {
        name: "ops".into(),
        ack_deadline: Some(Duration::from_secs(3600).into()),
        ..Default::default()
    };
    let request =
        v1::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
    server.failures().create_subscription(request).await.expect("it is new");
}

async fn subscribe(server: &Server, consumer: &str) -> Result<Responses, Status> {
    let start = v1::subscribe_failures_request::Start::Subscription(reference());
    let request = v1::SubscribeFailuresRequest {
        start: Some(start),
        consumer: consumer.into(),
        ..Default::default()
    };
    Ok(server.failures().subscribe_failures(request).await?.into_inner())
}

async fn delivered(responses: &mut Responses, count: usize) -> Vec<v1::FailureDelivery> {
    let mut all = Vec::new();
    while all.len() < count {
        let next = tokio::time::timeout(PATIENCE, responses.message()).await.expect("in time");
        let message = next.expect("the stream is open").expect("the stream is open");
        all.extend(message.deliveries);
    }
    all
}

/// Reads until the stream ends, and returns the code and the reason of the end.
async fn end(mut responses: Responses) -> (Code, String) {
    loop {
        let next = tokio::time::timeout(PATIENCE, responses.message()).await.expect("in time");
        match next {
            Ok(Some(message)) => {
                assert_eq!(message.deliveries, [], "the stream has lost the subscription")
            }
            Ok(None) => panic!("the stream ended without a status"),
            Err(status) => {
                let (code, reason, _) = refusal(Err::<(), _>(status));
                return (code, reason);
            }
        }
    }
}

fn numbered(deliveries: &[v1::FailureDelivery]) -> Vec<(String, u32)> {
    let events = deliveries.iter().map(|delivery| {
        let event = delivery.event.as_ref().expect("always set");
        (event.id.clone(), delivery.delivery)
    });
    events.collect()
}

async fn ack(server: &Server, delivery: &v1::FailureDelivery) -> v1::ErrorReason {
    let ack_tokens = vec![delivery.ack_token.clone()];
    let request = v1::AckFailuresRequest { subscription: Some(reference()), ack_tokens };
    let acked = server.failures().ack_failures(request).await.expect("it exists").into_inner();
    acked.results[0].reason()
}

#[tokio::test]
async fn reconnecting_consumer_gets_its_unacknowledged_events_at_once() {
    for consumer in ["", "pager"] {
        let server = Server::start().await;
        server.register(ORDER).await;
        create(&server).await;
        let mut first = subscribe(&server, consumer).await.expect("no consumer is reading");
        server.failed_execution().await;
        server.failed_execution().await;
        let had = delivered(&mut first, 4).await;
        assert_eq!(ack(&server, &had[0]).await, v1::ErrorReason::Unspecified);

        let mut second = subscribe(&server, consumer).await.expect("the consumer reconnects");
        assert_eq!(end(first).await, (Code::Aborted, "SUBSCRIPTION_TAKEN".into()));
        // Each execution has two events. Of the first execution only the second event is unacknowledged. Of the
        // other execution both are, and the second is held back until the first is acknowledged.
        let again = delivered(&mut second, 2).await;
        let expected = [&had[1], &had[2]]
            .map(|delivery| numbered(std::slice::from_ref(delivery))[0].0.clone());
        assert_eq!(numbered(&again), expected.map(|event| (event, 2)));
        assert_eq!(ack(&server, &had[1]).await, v1::ErrorReason::AckExpired);
        assert_eq!(
            ack(&server, &had[3]).await,
            v1::ErrorReason::Unspecified,
            "it was not redelivered yet"
        );
        for delivery in &again {
            assert_eq!(ack(&server, delivery).await, v1::ErrorReason::Unspecified);
        }
        let request = v1::GetSubscriptionRequest { subscription: Some(reference()) };
        let got = server.failures().get_subscription(request).await.expect("it exists");
        assert_eq!(got.into_inner().subscription.expect("always set").outstanding, 0);
    }
}

#[tokio::test]
async fn next_consumer_gets_the_events_that_its_predecessor_left() {
    let server = Server::start().await;
    server.register(ORDER).await;
    create(&server).await;
    let mut first = subscribe(&server, "one").await.expect("no consumer is reading");
    server.failed_execution().await;
    let had = delivered(&mut first, 2).await;
    let refused = subscribe(&server, "two").await.map(drop);
    assert_refused(refused, Code::FailedPrecondition, "SUBSCRIPTION_IN_USE", &[]);
    drop(first);
    let coming = async {
        loop {
            match subscribe(&server, "two").await {
                Ok(responses) => return responses,
                // The server has not noticed yet that the first consumer has left.
                Err(status) => assert_eq!(status.code(), Code::FailedPrecondition),
            }
        }
    };
    let mut second = tokio::time::timeout(PATIENCE, coming).await.expect("it is free again");
    let again = delivered(&mut second, 1).await;
    assert_eq!(numbered(&again), [(numbered(&had)[0].0.clone(), 2)]);
}

#[tokio::test]
async fn pulled_event_keeps_its_deadline_when_a_stream_opens() {
    let server = Server::start().await;
    server.register(ORDER).await;
    create(&server).await;
    server.failed_execution().await;
    server.failed_execution().await;
    let start = v1::pull_failures_request::Start::Subscription(reference());
    let request =
        v1::PullFailuresRequest { start: Some(start), max_events: 1, ..Default::default() };
    let pulled = server
        .failures()
        .pull_failures(request)
        .await
        .expect("no consumer is reading")
        .into_inner();
    assert_eq!(pulled.deliveries.len(), 1);
    let mut stream = subscribe(&server, "").await.expect("no consumer is streaming");
    let execution = |delivery: &v1::FailureDelivery| {
        delivery.event.as_ref().map(|event| event.execution_id.clone()).unwrap_or_default()
    };
    let of_pulled = execution(&pulled.deliveries[0]);
    // The next event of the same execution waits until the pulled one is acknowledged.
    let streamed = delivered(&mut stream, 2).await;
    assert!(streamed.iter().all(|delivery| execution(delivery) != of_pulled));
    assert!(streamed.iter().all(|delivery| delivery.delivery == 1));
    assert_eq!(ack(&server, &pulled.deliveries[0]).await, v1::ErrorReason::Unspecified);
    let behind = delivered(&mut stream, 1).await;
    assert_eq!((execution(&behind[0]), behind[0].delivery), (of_pulled, 1));
}
