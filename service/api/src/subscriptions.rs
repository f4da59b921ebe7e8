//! Durable subscriptions: creating, reading, listing and deleting them.

use std::time::Duration;

use prost::Message;
use recoup_core::id::Namespace;
use recoup_core::subscription::{ACK_DEADLINE, Subscription, WINDOW, WINDOW_MAX};
use recoup_proto::v1::{self, ErrorReason, subscription::Start};
use recoup_store::format::{Encoded, Row, encode_subscription};
use recoup_store::{RegistryAnswer, RegistryOperation, RegistryRequest, SubscriptionRow};

use crate::context::Context;
use crate::convert::{failure, text, time};
use crate::durable::{self, Name, no_subscription, stored};
use crate::mutation::registry_request;
use crate::page::Page;
use crate::status::{Error, Result};
use crate::{digest, feed};

const NAME_BYTES_MAX: usize = 128;
/// The most subscriptions of one namespace.
const SUBSCRIPTIONS_MAX: usize = 1_000;
const ACK_DEADLINES: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);
/// The stored form of the start, as the caller asked for it.
const NOW: &str = "now";
const BEGINNING: &str = "beginning";
const CURSOR: &str = "cursor:";

/// The subscription that a reference names. It is not checked whether it exists.
pub fn name(reference: Option<v1::SubscriptionRef>, field: &str) -> Result<Name> {
    let reference = reference.ok_or_else(|| Error::required(field))?;
    let namespace = text::namespace(&reference.namespace, &format!("{field}.namespace"))?;
    let name = checked_name(reference.name, &format!("{field}.name"))?;
    Ok(Name { namespace, name })
}

fn checked_name(name: String, field: &str) -> Result<String> {
    if name.is_empty() {
        return Err(Error::required(field));
    }
    let is_letter =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.-".contains(&byte);
    let is_name = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(is_letter);
    if is_name {
        return Ok(name);
    }
    Err(Error::invalid(
        field,
        "must match `[a-z][a-z0-9_.-]*`, such as `billing-alerts`, and have at most 128 bytes",
    ))
}

pub async fn create(
    context: &Context,
    request: v1::CreateSubscriptionRequest,
) -> Result<v1::Subscription> {
    let given = request.subscription.ok_or_else(|| Error::required("subscription"))?;
    let namespace = text::namespace(&given.namespace, "subscription.namespace")?;
    let name = checked_name(given.name.clone(), "subscription.name")?;
    let body = v1::Subscription {
        created_at: None,
        watermark: String::new(),
        outstanding: 0,
        consumer: String::new(),
        ..given
    };
    let digest = || digest::of_message(&body);
    let keyed = registry_request(namespace.clone(), request.request_id, digest)?;
    let keyed = keyed.as_ref();
    let before = context.answered(RegistryOperation::CreateSubscription, keyed).await?;
    if let Some(RegistryAnswer::SubscriptionCreated(row)) = before {
        return to_proto(context, &row);
    }
    context.check_namespace(&namespace).await?;
    let state = wanted(context, &namespace, &body).await?;
    let row = match there(context, &namespace, &name, &state, keyed).await? {
        Some(row) => row,
        None => made(context, &namespace, &name, &state, keyed).await?,
    };
    to_proto(context, &row)
}

async fn wanted(
    context: &Context,
    namespace: &Namespace,
    given: &v1::Subscription,
) -> Result<Subscription> {
    let mut filter = given.filter.clone().unwrap_or_default();
    if filter.namespace.is_empty() {
        filter.namespace = namespace.as_str().to_owned();
    }
    let filter = failure::filter_from(Some(filter), "subscription.filter")?;
    let (start, cursor) = match &given.start {
        Some(Start::Cursor(cursor)) => {
            let read = feed::cursor(context, cursor, "subscription.cursor").await?;
            (format!("{CURSOR}{cursor}"), read)
        }
        Some(Start::Position(position)) => {
            let is_beginning = *position == i32::from(v1::FeedPosition::Beginning);
            let start = if is_beginning { BEGINNING } else { NOW };
            let cursor = feed::position(context, *position, "subscription.position").await?;
            (start.to_owned(), cursor)
        }
        None => (NOW.to_owned(), context.store().feed_end().await?),
    };
    let field = "subscription.ack_deadline";
    let mut state = Subscription::new(filter, start, cursor.encode());
    state.ack_deadline =
        time::duration_between(given.ack_deadline, field, ACK_DEADLINE, ACK_DEADLINES)?;
    state.window = match given.window {
        0 => WINDOW,
        window if window <= WINDOW_MAX => window,
        window => {
            let message = format!("must be from 1 to {WINDOW_MAX}, not {window}");
            return Err(Error::invalid("subscription.window", message));
        }
    };
    Ok(state)
}

/// The answer to a create request if a subscription with the same settings exists already.
async fn there(
    context: &Context,
    namespace: &Namespace,
    name: &str,
    wanted: &Subscription,
    request: Option<&RegistryRequest>,
) -> Result<Option<SubscriptionRow>> {
    let Some(row) = context.store().subscription(namespace, name).await? else {
        return Ok(None);
    };
    let there = stored(&row)?;
    let settings =
        |own: &Subscription| (own.filter.clone(), own.start.clone(), own.ack_deadline, own.window);
    if settings(&there) == settings(wanted) {
        return Ok(Some(match request {
            Some(request) => context.store().accept_subscription(&row, request).await?,
            None => row,
        }));
    }
    let message = format!("the subscription `{name}` exists with other settings");
    Err(Error::new(ErrorReason::SubscriptionExists, message))
}

async fn made(
    context: &Context,
    namespace: &Namespace,
    name: &str,
    state: &Subscription,
    request: Option<&RegistryRequest>,
) -> Result<SubscriptionRow> {
    let store = context.store();
    if store.list_subscriptions(namespace, None, SUBSCRIPTIONS_MAX).await?.len()
        >= SUBSCRIPTIONS_MAX
    {
        return Err(Error::limit_reached("subscriptions", SUBSCRIPTIONS_MAX));
    }
    let Encoded { format, data } = encode_subscription(state);
    context.permit(Row::Subscription, format).await?;
    match store.create_subscription(namespace, name, format, &data, request).await {
        Ok(row) => Ok(row),
        Err(recoup_store::Error::AlreadyExists) => {
            let row = there(context, namespace, name, state, request).await?;
            row.ok_or_else(|| no_subscription(name))
        }
        Err(error) => Err(error.into()),
    }
}

pub async fn get(context: &Context, name: &Name) -> Result<v1::Subscription> {
    context.check_namespace(&name.namespace).await?;
    let (row, _) = durable::load(context, name).await?;
    to_proto(context, &row)
}

pub async fn list(
    context: &Context,
    request: &v1::ListSubscriptionsRequest,
) -> Result<v1::ListSubscriptionsResponse> {
    let namespace = text::namespace(&request.namespace, "namespace")?;
    context.check_namespace(&namespace).await?;
    let filter = digest::of(format!("subscriptions {namespace}").as_bytes());
    let page = Page::read(request.page_size, &request.page_token, filter)?;
    let after = page.after_text()?;
    let rows = context.store().list_subscriptions(&namespace, after, page.size + 1).await?;
    let mut subscriptions: Vec<v1::Subscription> = Vec::new();
    let mut bytes = 0;
    for row in &rows {
        let listed = to_proto(context, row)?;
        bytes += listed.encoded_len() + 8;
        if page.is_full(subscriptions.len(), bytes) {
            let last = subscriptions.last().map_or("", |last| &last.name);
            let next_page_token = page.token(last.as_bytes());
            return Ok(v1::ListSubscriptionsResponse { subscriptions, next_page_token });
        }
        subscriptions.push(listed);
    }
    Ok(v1::ListSubscriptionsResponse { subscriptions, ..Default::default() })
}

pub async fn delete(context: &Context, request: v1::DeleteSubscriptionRequest) -> Result<()> {
    let name = name(request.subscription, "subscription")?;
    let digest = || digest::of(name.name.as_bytes());
    let keyed = registry_request(name.namespace.clone(), request.request_id, digest)?;
    context.check_namespace(&name.namespace).await?;
    let store = context.store();
    let deleted = store.delete_subscription(&name.namespace, &name.name, keyed.as_ref()).await;
    deleted.map_err(|error| match error {
        recoup_store::Error::NotFound => no_subscription(&name.name),
        other => other.into(),
    })
}

fn to_proto(context: &Context, row: &SubscriptionRow) -> Result<v1::Subscription> {
    let state = stored(row)?;
    let now = context.engine.now();
    let start = match state.start.strip_prefix(CURSOR) {
        Some(cursor) => Start::Cursor(cursor.to_owned()),
        None if state.start == BEGINNING => Start::Position(v1::FeedPosition::Beginning.into()),
        None => Start::Position(v1::FeedPosition::Now.into()),
    };
    let consumer = state.consumer.as_ref().filter(|consumer| consumer.until > now);
    Ok(v1::Subscription {
        namespace: row.namespace.as_str().to_owned(),
        name: row.name.clone(),
        filter: Some(failure::filter(&state.filter)),
        start: Some(start),
        ack_deadline: Some(time::duration(state.ack_deadline)),
        window: state.window,
        created_at: Some(time::timestamp(row.created_at)),
        watermark: state.watermark.clone(),
        outstanding: u32::try_from(state.outstanding.len()).unwrap_or(u32::MAX),
        consumer: consumer.map(|consumer| consumer.name.clone()).unwrap_or_default(),
    })
}
