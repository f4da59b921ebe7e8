//! The subscriber to the failure feed.

use std::collections::VecDeque;
use std::time::Duration;

use recoup_proto::v1::subscribe_failures_request::Start;
use recoup_proto::v1::{
    FailureDelivery, FailureEvent, FailureFilter, FailureKind, FeedPosition,
    SubscribeFailuresRequest, SubscribeFailuresResponse,
    failure_service_client::FailureServiceClient,
};
use tonic::Streaming;

use crate::Error;
use crate::backoff::Backoff;
use crate::client::{AckOutcome, Client, MESSAGE_BYTES_MAX};

/// The service sends a message at least every 15 s. After three times that without one, the stream counts
/// as dead.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// Configures a subscriber to the failure feed. Made by [`Client::failures`].
#[must_use = "nothing is read before `subscribe`"]
pub struct FailuresBuilder {
    client: Client,
    filter: FailureFilter,
    start: Start,
    consumer: String,
}

/// A subscriber to the failure feed. It connects when it is first asked for a delivery. If the stream
/// breaks or falls silent, it waits for a jittered time, reconnects and resumes where it stopped, so it
/// skips no event. Delivery is at least once. An event has the same id each time it is delivered.
///
/// ```no_run
/// # async fn example(client: recoup_sdk::Client) -> Result<(), recoup_sdk::Error> {
/// let mut failures = client.failures().workflow("order").durable("order-alerts").subscribe()?;
/// loop {
///     let delivery = failures.next().await?;
///     println!("{}: {:?}", delivery.event.workflow, delivery.event.error);
///     delivery.ack().await?;
/// }
/// # }
/// ```
pub struct Failures {
    client: Client,
    filter: FailureFilter,
    start: Start,
    consumer: String,
    stream: Option<Streaming<SubscribeFailuresResponse>>,
    ready: VecDeque<FailureDelivery>,
    /// The cursor of the last delivery that `next` returned, or of a later response without deliveries.
    cursor: String,
    /// Failed tries since the stream last delivered a message.
    retry: u32,
    backoff: Backoff,
}

/// A failure event as it was delivered to this subscriber.
pub struct Delivery {
    /// The event.
    pub event: FailureEvent,
    /// The cursor after this event, from which an ephemeral subscriber can resume. Opaque.
    pub cursor: String,
    /// The number of this delivery of the event, from 1.
    pub delivery: u32,
    ack: Option<Ack>,
}

struct Ack {
    client: Client,
    subscription: String,
    token: String,
}

impl Client {
    /// Prepares a subscriber to the failure feed. By default it is ephemeral and reads all new events of
    /// the client's namespace, starting now.
    pub fn failures(&self) -> FailuresBuilder {
        FailuresBuilder {
            client: self.clone(),
            filter: FailureFilter::default(),
            start: Start::Position(FeedPosition::Now.into()),
            consumer: String::new(),
        }
    }
}

impl FailuresBuilder {
    /// Selects the events of a namespace: a name, `company.*` for the namespaces below `company`, or `*`
    /// for all. Default: the client's namespace.
    pub fn namespace(mut self, pattern: impl Into<String>) -> Self {
        self.filter.namespace = pattern.into();
        self
    }

    /// Selects the events of a workflow. Call it again for more workflows, 100 at most. Default: all
    /// workflows.
    pub fn workflow(mut self, workflow: impl Into<String>) -> Self {
        self.filter.workflows.push(workflow.into());
        self
    }

    /// Selects the events of a kind. Call it again for more kinds. Default: all kinds.
    pub fn kind(mut self, kind: FailureKind) -> Self {
        self.filter.kinds.push(kind.into());
        self
    }

    /// Selects the events whose error is of this type or of a type below it. Call it again for more types,
    /// 100 at most. Default: all types.
    pub fn error_type(mut self, pattern: impl Into<String>) -> Self {
        self.filter.error_types.push(pattern.into());
        self
    }

    /// Starts at the oldest event that retention has kept.
    pub fn from_beginning(mut self) -> Self {
        self.start = Start::Position(FeedPosition::Beginning.into());
        self
    }

    /// Starts after a cursor: that of a [`Delivery`], or [`Failures::cursor`].
    pub fn after(mut self, cursor: impl Into<String>) -> Self {
        self.start = Start::Cursor(cursor.into());
        self
    }

    /// Reads as the consumer of a durable subscription, which must have been created with
    /// [`Client::create_subscription`]. The subscription has its own filter, the service keeps its
    /// position, and every delivery must be acknowledged.
    pub fn durable(mut self, subscription: impl AsRef<str>) -> Self {
        self.start = Start::Subscription(self.client.subscription_ref(subscription.as_ref()));
        self
    }

    /// The name of the consumer. On a durable subscription, a new subscriber replaces a connected
    /// subscriber that has the same consumer name. With another name it is refused as long as that
    /// subscriber reads. Default: empty.
    pub fn consumer(mut self, name: impl Into<String>) -> Self {
        self.consumer = name.into();
        self
    }

    /// Makes the subscriber. It connects with the first call of [`Failures::next`].
    ///
    /// # Errors
    /// [`Error::Setup`] if a filter was set for a durable subscription, which has its own.
    pub fn subscribe(self) -> Result<Failures, Error> {
        let filter = match &self.start {
            Start::Subscription(_) if self.filter != FailureFilter::default() => {
                let message = "a durable subscription has its own filter, set when it was created";
                return Err(Error::Setup(message.to_owned()));
            }
            Start::Subscription(_) => self.filter,
            Start::Position(_) | Start::Cursor(_) => self.client.in_own_namespace(self.filter),
        };
        let cursor = match &self.start {
            Start::Cursor(cursor) => cursor.clone(),
            Start::Position(_) | Start::Subscription(_) => String::new(),
        };
        Ok(Failures {
            client: self.client,
            filter,
            start: self.start,
            consumer: self.consumer,
            stream: None,
            ready: VecDeque::new(),
            cursor,
            retry: 0,
            backoff: Backoff::default(),
        })
    }
}

impl Failures {
    /// Returns the next delivery. Waits until there is one, and reconnects as many times as that takes. The
    /// future may be dropped at any await and `next` called again.
    ///
    /// # Errors
    /// Errors that do not go away by themselves: `CURSOR_INVALID`, `CURSOR_FOREIGN`, `NAMESPACE_NOT_FOUND`,
    /// `SUBSCRIPTION_NOT_FOUND`, `SUBSCRIPTION_IN_USE`, `SUBSCRIPTION_TAKEN` (another subscriber with the
    /// same consumer name has replaced this one), or a field that is wrong.
    pub async fn next(&mut self) -> Result<Delivery, Error> {
        loop {
            if let Some(delivery) = self.ready.pop_front() {
                return Ok(self.give(delivery));
            }
            match self.read().await {
                Ok(response) => {
                    self.retry = 0;
                    self.take(response);
                }
                Err(error) => {
                    self.stream = None;
                    if !error.is_transient() {
                        return Err(error);
                    }
                    self.retry += 1;
                    let wait = self.backoff.next(self.retry, error.retry_after());
                    tracing::debug!(%error, retry = self.retry, "the failure stream broke");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// The cursor after everything that `next` has returned. An ephemeral subscriber that has handled those
    /// events can store it and pass it to [`FailuresBuilder::after`] to resume. It also advances while
    /// there are no deliveries. Empty before the first answer of the service.
    pub fn cursor(&self) -> &str {
        &self.cursor
    }

    async fn read(&mut self) -> Result<SubscribeFailuresResponse, Error> {
        let dead = || Error::Unavailable {
            code: tonic::Code::Unavailable,
            message: "the service sent nothing on the failure stream in time".to_owned(),
        };
        if self.stream.is_none() {
            let mut service = FailureServiceClient::new(self.client.channel())
                .max_decoding_message_size(MESSAGE_BYTES_MAX);
            let opening = service.subscribe_failures(self.request());
            let opened = tokio::time::timeout(SILENCE_MAX, opening).await.map_err(|_| dead())??;
            self.stream = Some(opened.into_inner());
        }
        let stream = self.stream.as_mut().expect("it was opened above");
        let message = tokio::time::timeout(SILENCE_MAX, stream.message());
        let response = message.await.map_err(|_| dead())??;
        response.ok_or_else(|| Error::Unavailable {
            code: tonic::Code::Unavailable,
            message: "the service ended the failure stream".to_owned(),
        })
    }

    fn request(&self) -> SubscribeFailuresRequest {
        let durable = matches!(self.start, Start::Subscription(_));
        let start = if durable || self.cursor.is_empty() {
            self.start.clone()
        } else {
            Start::Cursor(self.cursor.clone())
        };
        SubscribeFailuresRequest {
            filter: (!durable).then(|| self.filter.clone()),
            start: Some(start),
            consumer: self.consumer.clone(),
        }
    }

    /// Called only when `ready` is empty, so the cursor of a response without deliveries comes after every
    /// event that was given out.
    fn take(&mut self, response: SubscribeFailuresResponse) {
        if response.deliveries.is_empty() && !response.cursor.is_empty() {
            self.cursor = response.cursor;
        }
        self.ready.extend(response.deliveries);
    }

    fn give(&mut self, delivery: FailureDelivery) -> Delivery {
        if !delivery.cursor.is_empty() {
            self.cursor.clone_from(&delivery.cursor);
        }
        let ack = match &self.start {
            Start::Subscription(subscription) => Some(Ack {
                client: self.client.clone(),
                subscription: subscription.name.clone(),
                token: delivery.ack_token,
            }),
            Start::Position(_) | Start::Cursor(_) => None,
        };
        Delivery {
            event: delivery.event.unwrap_or_default(),
            cursor: delivery.cursor,
            delivery: delivery.delivery,
            ack,
        }
    }
}

impl Delivery {
    /// Acknowledges the event, so that the service does not deliver it again. Does nothing for an ephemeral
    /// subscriber. It is more efficient to acknowledge in batches, with [`Client::ack_failures`] and
    /// [`Self::ack_token`].
    ///
    /// # Errors
    /// `SUBSCRIPTION_NOT_FOUND`, and the errors of every call.
    pub async fn ack(&self) -> Result<AckOutcome, Error> {
        let Some(Ack { client, subscription, token }) = &self.ack else {
            return Ok(AckOutcome::Accepted);
        };
        one(client.ack_failures(subscription, vec![token.clone()]).await?)
    }

    /// Gives the event back. The service delivers it again after `delay`, which is at most 24 hours. Does
    /// nothing for an ephemeral subscriber.
    ///
    /// # Errors
    /// `SUBSCRIPTION_NOT_FOUND`, and the errors of every call.
    pub async fn nack(&self, delay: Duration) -> Result<AckOutcome, Error> {
        let Some(Ack { client, subscription, token }) = &self.ack else {
            return Ok(AckOutcome::Accepted);
        };
        one(client.nack_failures(subscription, vec![token.clone()], delay).await?)
    }

    /// The token that acknowledges this delivery. Empty for an ephemeral subscriber.
    pub fn ack_token(&self) -> &str {
        self.ack.as_ref().map_or("", |ack| &ack.token)
    }
}

fn one(outcomes: Vec<AckOutcome>) -> Result<AckOutcome, Error> {
    outcomes.into_iter().next().ok_or(Error::Incomplete("result"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> FailuresBuilder {
        let client = Client::builder("http://127.0.0.1:1").namespace("shop").connect_lazy();
        client.expect("an address").failures()
    }

    fn response(cursors: &[&str], cursor: &str) -> SubscribeFailuresResponse {
        let delivery =
            |cursor: &&str| FailureDelivery { cursor: (*cursor).to_owned(), ..Default::default() };
        SubscribeFailuresResponse {
            deliveries: cursors.iter().map(delivery).collect(),
            cursor: cursor.to_owned(),
            time: None,
        }
    }

    #[tokio::test]
    async fn the_cursor_follows_the_deliveries_given_out_and_keep_alives() {
        let mut failures = builder().from_beginning().subscribe().expect("a valid set-up");
        let beginning = Start::Position(FeedPosition::Beginning.into());
        assert_eq!(failures.request().start, Some(beginning));

        failures.take(response(&["c1", "c2"], "c2"));
        assert_eq!(failures.cursor(), "", "no delivery was given out yet");
        for cursor in ["c1", "c2"] {
            let delivery = failures.next().await.expect("a delivery is buffered");
            assert_eq!((delivery.cursor.as_str(), failures.cursor()), (cursor, cursor));
            assert_eq!(failures.request().start, Some(Start::Cursor(cursor.to_owned())));
        }
        failures.take(response(&[], "c9"));
        assert_eq!(failures.cursor(), "c9", "a keep-alive advances the cursor");
    }

    #[tokio::test]
    async fn a_durable_subscriber_sends_its_subscription_and_cannot_have_a_filter() {
        let mut failures = builder().durable("alerts").subscribe().expect("a valid set-up");
        failures.take(response(&["c1"], "c1"));
        failures.next().await.expect("a delivery is buffered");
        let request = failures.request();
        assert_eq!(request.filter, None);
        let Some(Start::Subscription(subscription)) = request.start else { panic!("{request:?}") };
        assert_eq!((subscription.namespace.as_str(), &*subscription.name), ("shop", "alerts"));

        let error = builder().workflow("order").durable("alerts").subscribe().err();
        assert!(matches!(error, Some(Error::Setup(_))), "{error:?}");
    }

    #[tokio::test]
    async fn the_filter_defaults_to_the_clients_namespace() {
        let failures = builder().workflow("order").subscribe().expect("a valid set-up");
        let filter = failures.request().filter.expect("a filter");
        assert_eq!(filter.namespace, "shop");
        let failures = builder().namespace("*").subscribe().expect("a valid set-up");
        assert_eq!(failures.request().filter.expect("a filter").namespace, "*");
    }
}
