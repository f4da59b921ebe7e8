use std::time::Duration;

use recoup_proto::v1::failure_service_client::FailureServiceClient;
use recoup_proto::v1::{self, ErrorReason, FailureFilter, SubscriptionRef};

use super::{Client, Pages, new_request_id, rpc};
use crate::Error;

/// The outcome of one acknowledgement token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckOutcome {
    /// The service accepted the token.
    Accepted,
    /// The token came too late: the event has been, or will be, delivered again.
    Expired,
    /// The text is not a token that the service issued.
    Invalid,
}

impl From<ErrorReason> for AckOutcome {
    fn from(reason: ErrorReason) -> Self {
        match reason {
            ErrorReason::Unspecified => Self::Accepted,
            ErrorReason::AckExpired => Self::Expired,
            _ => Self::Invalid,
        }
    }
}

fn outcomes(results: &[v1::AckResult]) -> Vec<AckOutcome> {
    results.iter().map(|result| result.reason().into()).collect()
}

impl Client {
    /// Lists the failure events that match the filter, latest first. If the filter has no namespace, the
    /// client's is used. With `execution_id`, lists only the events of that execution.
    pub fn failure_events(
        &self,
        filter: FailureFilter,
        execution_id: Option<String>,
    ) -> Pages<v1::FailureEvent> {
        let client = self.clone();
        let filter = self.in_own_namespace(filter);
        Pages::new(move |page_token| {
            let request = v1::ListFailuresRequest {
                filter: Some(filter.clone()),
                execution_id: execution_id.clone().unwrap_or_default(),
                page_token,
                ..v1::ListFailuresRequest::default()
            };
            let client = client.clone();
            async move {
                let response = rpc!(client, FailureServiceClient.list_failures(request)).await?;
                Ok((response.failures, response.next_page_token))
            }
        })
    }

    pub(crate) fn in_own_namespace(&self, mut filter: FailureFilter) -> FailureFilter {
        if filter.namespace.is_empty() {
            self.namespace().clone_into(&mut filter.namespace);
        }
        filter
    }

    /// Reads one failure event.
    ///
    /// # Errors
    /// `FAILURE_NOT_FOUND`, and the errors of every call.
    pub async fn failure_event(&self, id: impl Into<String>) -> Result<v1::FailureEvent, Error> {
        let request = v1::GetFailureRequest { id: id.into() };
        let response = rpc!(self, FailureServiceClient.get_failure(request)).await?;
        response.failure.ok_or(Error::Incomplete("failure"))
    }

    /// Reads events without a stream, for callers that poll; [`Self::failures`](Client::failures) reads
    /// them with a stream. Returns at once, or waits for at most 60 s until there are events. Pass the
    /// cursor of the answer to the next call.
    ///
    /// # Errors
    /// `CURSOR_INVALID`, `CURSOR_FOREIGN`, `SUBSCRIPTION_NOT_FOUND`, `SUBSCRIPTION_IN_USE`,
    /// and the errors of every call.
    pub async fn pull_failures(
        &self,
        request: v1::PullFailuresRequest,
    ) -> Result<v1::PullFailuresResponse, Error> {
        let wait = request.wait.and_then(|wait| wait.try_into().ok()).unwrap_or(super::WAIT_MAX);
        let options = super::CallOptions { wait, trace: None };
        rpc!(self, FailureServiceClient.pull_failures(request), options).await
    }

    /// Acknowledges deliveries of a durable subscription, from 1 to 1,000 tokens per call. Returns one
    /// outcome per token, in the order of the tokens.
    ///
    /// # Errors
    /// `SUBSCRIPTION_NOT_FOUND`, and the errors of every call.
    pub async fn ack_failures(
        &self,
        subscription: &str,
        ack_tokens: Vec<String>,
    ) -> Result<Vec<AckOutcome>, Error> {
        let subscription = Some(self.subscription_ref(subscription));
        let request = v1::AckFailuresRequest { subscription, ack_tokens };
        Ok(outcomes(&rpc!(self, FailureServiceClient.ack_failures(request)).await?.results))
    }

    /// Gives back deliveries of a durable subscription, from 1 to 1,000 tokens per call. The service
    /// delivers the events again after `delay`, which is at most 24 hours. Returns one outcome per token,
    /// in the order of the tokens.
    ///
    /// # Errors
    /// `SUBSCRIPTION_NOT_FOUND`, and the errors of every call.
    pub async fn nack_failures(
        &self,
        subscription: &str,
        ack_tokens: Vec<String>,
        delay: Duration,
    ) -> Result<Vec<AckOutcome>, Error> {
        let nack = |ack_token| v1::FailureNack { ack_token, delay: Some(delay.into()) };
        let request = v1::NackFailuresRequest {
            subscription: Some(self.subscription_ref(subscription)),
            nacks: ack_tokens.into_iter().map(nack).collect(),
        };
        Ok(outcomes(&rpc!(self, FailureServiceClient.nack_failures(request)).await?.results))
    }

    pub(crate) fn subscription_ref(&self, name: &str) -> SubscriptionRef {
        SubscriptionRef { namespace: self.namespace().to_owned(), name: name.to_owned() }
    }

    /// Creates a durable subscription. If one with the same name and the same settings exists, the call
    /// succeeds as if it had created it. If no namespace is given, the client's is used.
    ///
    /// # Errors
    /// `SUBSCRIPTION_EXISTS`, `CURSOR_INVALID`, `CURSOR_FOREIGN`, `LIMIT_REACHED`, and the errors of every call.
    pub async fn create_subscription(
        &self,
        mut subscription: v1::Subscription,
    ) -> Result<v1::Subscription, Error> {
        if subscription.namespace.is_empty() {
            self.namespace().clone_into(&mut subscription.namespace);
        }
        let request = v1::CreateSubscriptionRequest {
            subscription: Some(subscription),
            request_id: new_request_id(),
        };
        let response = rpc!(self, FailureServiceClient.create_subscription(request)).await?;
        response.subscription.ok_or(Error::Incomplete("subscription"))
    }

    /// Reads a durable subscription.
    ///
    /// # Errors
    /// `SUBSCRIPTION_NOT_FOUND`, and the errors of every call.
    pub async fn subscription(&self, name: &str) -> Result<v1::Subscription, Error> {
        let subscription = Some(self.subscription_ref(name));
        let request = v1::GetSubscriptionRequest { subscription };
        let response = rpc!(self, FailureServiceClient.get_subscription(request)).await?;
        response.subscription.ok_or(Error::Incomplete("subscription"))
    }

    /// Lists the durable subscriptions of the namespace by name.
    pub fn subscriptions(&self) -> Pages<v1::Subscription> {
        let client = self.clone();
        Pages::new(move |page_token| {
            let namespace = client.namespace().to_owned();
            let request = v1::ListSubscriptionsRequest { namespace, page_size: 0, page_token };
            let client = client.clone();
            async move {
                let response =
                    rpc!(client, FailureServiceClient.list_subscriptions(request)).await?;
                Ok((response.subscriptions, response.next_page_token))
            }
        })
    }

    /// Deletes a durable subscription. The stream of its consumer ends.
    ///
    /// # Errors
    /// `SUBSCRIPTION_NOT_FOUND`, and the errors of every call.
    pub async fn delete_subscription(&self, name: &str) -> Result<(), Error> {
        let request = v1::DeleteSubscriptionRequest {
            subscription: Some(self.subscription_ref(name)),
            request_id: new_request_id(),
        };
        rpc!(self, FailureServiceClient.delete_subscription(request)).await?;
        Ok(())
    }

    /// Reads the content of a payload that an event, an execution or a task holds as a reference. Handlers
    /// of a worker do not need it: they receive the content.
    ///
    /// # Errors
    /// `PAYLOAD_NOT_FOUND`, and the errors of every call.
    pub async fn read_payload(&self, payload_id: impl Into<String>) -> Result<v1::Payload, Error> {
        let request = v1::ReadPayloadRequest { payload_id: payload_id.into() };
        let response = rpc!(self, FailureServiceClient.read_payload(request)).await?;
        response.payload.ok_or(Error::Incomplete("payload"))
    }
}
