//! The subscriber of the failure feed.

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

/// The service says something every 15 s at least; after three times that the stream is dead.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// Sets up a subscriber of the failure feed; made by [`Client::failures`].
#[must_use = "nothing is read before `subscribe`"]
pub struct FailuresBuilder {
    client: Client,
    filter: FailureFilter,
    start: Start,
    consumer: String,
}

/// A subscriber of the failure feed. It connects when it is first asked for a delivery, connects again
/// when the stream breaks or falls silent, with a jittered wait, and goes on where it was: nothing is
/// skipped. Delivery is at least once: the same event has the same id.
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
    /// Where the last delivery that was given out stands.
    cursor: String,
    /// Tries since the stream last said something.
    retry: u32,
    backoff: Backoff,
}

/// One event, delivered.
pub struct Delivery {
    /// The event.
    pub event: FailureEvent,
    /// Where an ephemeral subscriber goes on after this event. Opaque.
    pub cursor: String,
    /// Which delivery of the event this is, from 1.
    pub delivery: u32,
    ack: Option<Ack>,
}

struct Ack {
    client: Client,
    subscription: String,
    token: String,
}

impl Client {
    /// A subscriber of the failure feed: by default of all events of the client's namespace, from now on,
    /// ephemeral.
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
    /// Events of this namespace, `company.*` for those below `company`, `*` for all. Default: the client's.
    pub fn namespace(mut self, pattern: impl Into<String>) -> Self {
        self.filter.namespace = pattern.into();
        self
    }

    /// Events of this workflow; call it again for more, 100 at most. Default: all.
    pub fn workflow(mut self, workflow: impl Into<String>) -> Self {
        self.filter.workflows.push(workflow.into());
        self
    }

    /// Events of this kind; call it again for more. Default: all.
    pub fn kind(mut self, kind: FailureKind) -> Self {
        self.filter.kinds.push(kind.into());
        self
    }

    /// Events whose error is of this type or below it; call it again for more, 100 at most. Default: all.
    pub fn error_type(mut self, pattern: impl Into<String>) -> Self {
        self.filter.error_types.push(pattern.into());
        self
    }

    /// From the first event that retention has kept.
    pub fn from_beginning(mut self) -> Self {
        self.start = Start::Position(FeedPosition::Beginning.into());
        self
    }

    /// After this cursor: one of a [`Delivery`], or [`Failures::cursor`].
    pub fn after(mut self, cursor: impl Into<String>) -> Self {
        self.start = Start::Cursor(cursor.into());
        self
    }

    /// As the consumer of this durable subscription, which was made by
    /// [`Client::create_subscription`]: it has its own filter, its place is kept by the service, and
    /// every delivery wants to be acknowledged.
    pub fn durable(mut self, subscription: impl AsRef<str>) -> Self {
        self.start = Start::Subscription(self.client.subscription_ref(subscription.as_ref()));
        self
    }

    /// The name of the consumer. Of a durable subscription, a subscriber takes the place of one with the
    /// same name; with another name it is refused while that one reads. Default: empty.
    pub fn consumer(mut self, name: impl Into<String>) -> Self {
        self.consumer = name.into();
        self
    }

    /// The subscriber. It connects with the first [`Failures::next`].
    ///
    /// # Errors
    /// [`Error::Setup`] for a durable subscription with a filter: that one has its own.
    pub fn subscribe(self) -> Result<Failures, Error> {
        let filter = match &self.start {
            Start::Subscription(_) if self.filter != FailureFilter::default() => {
                let message = "a durable subscription has its own filter, set when it was made";
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
    /// The next delivery; waits until there is one, however often it takes to connect again. May be
    /// dropped at any await and called again.
    ///
    /// # Errors
    /// What does not pass by itself: `CURSOR_INVALID`, `CURSOR_FOREIGN`, `NAMESPACE_NOT_FOUND`,
    /// `SUBSCRIPTION_NOT_FOUND`, `SUBSCRIPTION_IN_USE`, `SUBSCRIPTION_TAKEN` (another subscriber with
    /// this one's name of a consumer reads now), a field that is wrong.
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

    /// Where an ephemeral subscriber goes on that has handled everything `next` gave: keep it and pass it
    /// to [`FailuresBuilder::after`]. Moves on without deliveries too. Empty before the first answer.
    pub fn cursor(&self) -> &str {
        &self.cursor
    }

    async fn read(&mut self) -> Result<SubscribeFailuresResponse, Error> {
        let dead = || Error::Unavailable {
            code: tonic::Code::Unavailable,
            message: "the failure stream fell silent".to_owned(),
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

    /// Read only when `ready` is empty, so a response's cursor stands behind all that was given out.
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
    /// Acknowledges the event: it does not come again. Of an ephemeral subscriber this does nothing.
    /// Events are best acknowledged in batches, by [`Client::ack_failures`] with [`Self::ack_token`].
    ///
    /// # Errors
    /// `SUBSCRIPTION_NOT_FOUND`, and those of every call.
    pub async fn ack(&self) -> Result<AckOutcome, Error> {
        let Some(Ack { client, subscription, token }) = &self.ack else {
            return Ok(AckOutcome::Accepted);
        };
        one(client.ack_failures(subscription, vec![token.clone()]).await?)
    }

    /// Gives the event back: it comes again after `delay`, at most 24 hours. Of an ephemeral subscriber
    /// this does nothing.
    ///
    /// # Errors
    /// `SUBSCRIPTION_NOT_FOUND`, and those of every call.
    pub async fn nack(&self, delay: Duration) -> Result<AckOutcome, Error> {
        let Some(Ack { client, subscription, token }) = &self.ack else {
            return Ok(AckOutcome::Accepted);
        };
        one(client.nack_failures(subscription, vec![token.clone()], delay).await?)
    }

    /// The token that acknowledges this delivery; empty for an ephemeral subscriber.
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
    async fn goes_on_behind_what_was_given_out() {
        let mut failures = builder().from_beginning().subscribe().expect("a valid set-up");
        let beginning = Start::Position(FeedPosition::Beginning.into());
        assert_eq!(failures.request().start, Some(beginning));

        failures.take(response(&["c1", "c2"], "c2"));
        assert_eq!(failures.cursor(), "", "nothing was given out yet");
        for cursor in ["c1", "c2"] {
            let delivery = failures.next().await.expect("it is at hand");
            assert_eq!((delivery.cursor.as_str(), failures.cursor()), (cursor, cursor));
            assert_eq!(failures.request().start, Some(Start::Cursor(cursor.to_owned())));
        }
        failures.take(response(&[], "c9"));
        assert_eq!(failures.cursor(), "c9", "a keep-alive moves it on");
    }

    #[tokio::test]
    async fn a_durable_one_asks_for_its_place_and_has_no_filter() {
        let mut failures = builder().durable("alerts").subscribe().expect("a valid set-up");
        failures.take(response(&["c1"], "c1"));
        failures.next().await.expect("it is at hand");
        let request = failures.request();
        assert_eq!(request.filter, None);
        let Some(Start::Subscription(subscription)) = request.start else { panic!("{request:?}") };
        assert_eq!((subscription.namespace.as_str(), &*subscription.name), ("shop", "alerts"));

        let error = builder().workflow("order").durable("alerts").subscribe().err();
        assert!(matches!(error, Some(Error::Setup(_))), "{error:?}");
    }

    #[tokio::test]
    async fn the_filter_is_in_the_clients_namespace() {
        let failures = builder().workflow("order").subscribe().expect("a valid set-up");
        let filter = failures.request().filter.expect("a filter");
        assert_eq!(filter.namespace, "shop");
        let failures = builder().namespace("*").subscribe().expect("a valid set-up");
        assert_eq!(failures.request().filter.expect("a filter").namespace, "*");
    }
}
