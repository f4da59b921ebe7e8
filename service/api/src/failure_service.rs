//! FailureService.

use std::sync::Arc;
use std::time::Duration;

use recoup_core::error::TaskError;
use recoup_core::event::Event;
use recoup_core::evolve::{Transition, fold};
use recoup_core::payload::Payload;
use recoup_core::subscription::Filter;
use recoup_core::time::Timestamp;
use recoup_proto::v1::failure_service_server::FailureService;
use recoup_proto::v1::{self, ErrorReason};
use recoup_store::{Cursor, FailureFilter, NodeId, Position, StoredTransition};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::context::Context;
use crate::convert::inline::PayloadId;
use crate::convert::{failure, payload, text, time};
use crate::page::{Page, SCAN_MAX};
use crate::status::{Error, Result};
use crate::{digest, durable, feed, metadata, subscriptions};

/// How many responses may be queued for one stream. If the reader accepts none, its stream stops here.
const RESPONSES_MAX: usize = 1;
/// The most tokens in one acknowledgement.
const TOKENS_MAX: usize = 1_000;
const NACK_DELAY_MAX: Duration = Duration::from_secs(24 * 3600);
const EVENTS_MAX: u32 = 1_000;
const EVENTS: u32 = 100;
/// The longest event id that is looked up, in characters.
const ID_MAX: usize = 255;

pub struct Service {
    context: Arc<Context>,
}

/// Where a reader starts.
enum Start {
    Ephemeral { filter: Filter, cursor: Cursor },
    Durable(durable::Name),
}

/// The start as it comes in the two requests that have one.
enum GivenStart {
    Position(i32),
    Cursor(String),
    Subscription(v1::SubscriptionRef),
}

impl Service {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    async fn start(
        &self,
        filter: Option<v1::FailureFilter>,
        start: Option<GivenStart>,
    ) -> Result<Start> {
        let context = &self.context;
        let cursor = match start {
            Some(GivenStart::Subscription(reference)) => {
                if filter.is_some() {
                    let message = "must not be set with `subscription`, which has its own filter";
                    return Err(Error::invalid("filter", message));
                }
                let name = subscriptions::name(Some(reference), "subscription")?;
                context.check_namespace(&name.namespace).await?;
                return Ok(Start::Durable(name));
            }
            Some(GivenStart::Cursor(text)) => feed::cursor(context, &text, "cursor").await?,
            Some(GivenStart::Position(position)) => {
                feed::position(context, position, "position").await?
            }
            None => context.store().feed_end().await?,
        };
        let filter = failure::filter_from(filter, "filter")?;
        self.check_pattern(&filter.namespace).await?;
        Ok(Start::Ephemeral { filter, cursor })
    }

    /// A name must be that of an existing namespace. A pattern may cover namespaces that do not exist yet.
    async fn check_pattern(&self, pattern: &str) -> Result<()> {
        match pattern.contains('*') {
            true => Ok(()),
            false => self.context.check_namespace(&pattern.into()).await,
        }
    }

    async fn subscribe(
        &self,
        request: v1::SubscribeFailuresRequest,
    ) -> Result<ReceiverStream<Result<v1::SubscribeFailuresResponse, Status>>> {
        use v1::subscribe_failures_request::Start as Proto;
        if self.context.is_stopping() {
            return Err(recoup_engine::Refusal::Stopping.into());
        }
        let consumer = text::optional(request.consumer, "consumer", text::LABEL_BYTES_MAX)?;
        let start = request.start.map(|start| match start {
            Proto::Position(position) => GivenStart::Position(position),
            Proto::Cursor(cursor) => GivenStart::Cursor(cursor),
            Proto::Subscription(subscription) => GivenStart::Subscription(subscription),
        });
        // Checked before a durable subscription is taken over, so that a refused reader has not displaced
        // another.
        let open = self.context.feed_streams.open()?;
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        let context = self.context.clone();
        match self.start(request.filter, start).await? {
            Start::Ephemeral { filter, cursor } => {
                tokio::spawn(async move {
                    feed::stream(context, filter, cursor, responses).await;
                    drop(open);
                });
            }
            Start::Durable(name) => {
                let epoch = durable::open(&context, &name, &consumer).await?;
                tokio::spawn(async move {
                    durable::stream(context, name, epoch, responses).await;
                    drop(open);
                });
            }
        }
        Ok(ReceiverStream::new(stream))
    }

    async fn pull(
        &self,
        request: v1::PullFailuresRequest,
        wait: Duration,
    ) -> Result<v1::PullFailuresResponse> {
        use v1::pull_failures_request::Start as Proto;
        let consumer = text::optional(request.consumer, "consumer", text::LABEL_BYTES_MAX)?;
        let limit = match request.max_events {
            0 => EVENTS,
            max if max <= EVENTS_MAX => max,
            max => {
                let message = format!("must be from 1 to {EVENTS_MAX}, not {max}");
                return Err(Error::invalid("max_events", message));
            }
        } as usize;
        let start = request.start.map(|start| match start {
            Proto::Position(position) => GivenStart::Position(position),
            Proto::Cursor(cursor) => GivenStart::Cursor(cursor),
            Proto::Subscription(subscription) => GivenStart::Subscription(subscription),
        });
        match self.start(request.filter, start).await? {
            Start::Ephemeral { filter, cursor } => {
                self.pull_ephemeral(filter, cursor, limit, wait).await
            }
            Start::Durable(name) => {
                let fetched = durable::pull(&self.context, &name, &consumer, limit, wait).await?;
                // Deliveries that do not fit into the answer are given back, and are due again at once.
                // Fetches are small enough that this happens only to events at the size limit.
                let mut chunks = feed::chunks(fetched.deliveries).into_iter();
                let deliveries = chunks.next().unwrap_or_default();
                let late: Vec<_> =
                    chunks.flatten().map(|delivery| (delivery.ack_token, Duration::ZERO)).collect();
                if !late.is_empty() {
                    durable::nack(&self.context, &name, &late).await?;
                }
                Ok(v1::PullFailuresResponse { deliveries, cursor: fetched.watermark })
            }
        }
    }

    async fn pull_ephemeral(
        &self,
        filter: Filter,
        mut cursor: Cursor,
        limit: usize,
        wait: Duration,
    ) -> Result<v1::PullFailuresResponse> {
        let context = &*self.context;
        let mut written = context.engine.feed_written();
        let deadline = Instant::now() + wait;
        loop {
            written.borrow_and_update();
            let page = feed::page(context, &cursor, &filter).await?;
            let (read, has_more) = (page.read.clone(), page.has_more);
            let all = feed::deliveries(page, context.engine.now())?;
            let count = all.len();
            let mut deliveries = feed::chunks(all).into_iter().next().unwrap_or_default();
            deliveries.truncate(limit);
            if let Some(last) = deliveries.last() {
                let is_whole = deliveries.len() == count;
                let cursor = if is_whole { read.encode() } else { last.cursor.clone() };
                return Ok(v1::PullFailuresResponse { deliveries, cursor });
            }
            cursor = read;
            if Instant::now() >= deadline {
                return Ok(v1::PullFailuresResponse { deliveries, cursor: cursor.encode() });
            }
            if !has_more {
                tokio::select! {
                    () = feed::changed(&mut written, deadline) => {}
                    () = context.stopping() => {
                        let cursor = cursor.encode();
                        return Ok(v1::PullFailuresResponse { deliveries, cursor });
                    }
                }
            }
        }
    }

    async fn list(&self, request: v1::ListFailuresRequest) -> Result<v1::ListFailuresResponse> {
        let filter = failure::filter_from(request.filter.clone(), "filter")?;
        self.check_pattern(&filter.namespace).await?;
        let execution = match request.execution_id.as_str() {
            "" => None,
            id => Some(text::execution_id(id, "execution_id")?),
        };
        let identity = digest::of_message(&v1::ListFailuresRequest {
            page_size: 0,
            page_token: String::new(),
            ..request.clone()
        });
        let page = Page::read(request.page_size, &request.page_token, identity)?;
        let from = request.after.as_ref().map(time::timestamp_from);
        let to = request.before.as_ref().map(time::timestamp_from);
        let is_within =
            |at: Timestamp| from.is_none_or(|from| at >= from) && to.is_none_or(|to| at < to);
        let filter = FailureFilter {
            namespace: filter.namespace,
            workflows: filter.workflows,
            kinds: filter.kinds,
            error_types: filter.error_types,
            execution,
        };
        let mut before = page.after_exactly::<16>()?.map(position_from);
        let mut failures: Vec<v1::FailureEvent> = Vec::new();
        let mut bytes = 0;
        let mut scanned = 0;
        while scanned < SCAN_MAX {
            let store = self.context.store();
            let rows = store.list_failures(&filter, before, feed::PAGE).await?;
            let is_last = rows.len() < feed::PAGE;
            scanned += feed::PAGE;
            for row in rows {
                if is_within(row.row.at) {
                    let (event, own) = failure::to_proto(&failure::stored(&row.row)?);
                    bytes += own + 8;
                    let is_full = page.is_full(failures.len(), bytes);
                    if let (true, Some(before)) = (is_full, before) {
                        let next_page_token = page.token(&position_bytes(before));
                        return Ok(v1::ListFailuresResponse { failures, next_page_token });
                    }
                    failures.push(event);
                }
                before = Some(row.position);
            }
            if is_last {
                return Ok(v1::ListFailuresResponse { failures, ..Default::default() });
            }
        }
        let next_page_token =
            before.map_or(String::new(), |before| page.token(&position_bytes(before)));
        Ok(v1::ListFailuresResponse { failures, next_page_token })
    }

    async fn get(&self, id: &str) -> Result<v1::GetFailureResponse> {
        if id.is_empty() {
            return Err(Error::required("id"));
        }
        let missing =
            || Error::new(ErrorReason::FailureNotFound, "there is no failure event with that id");
        if id.len() > ID_MAX || id.contains('\0') {
            return Err(missing());
        }
        let found = self.context.store().failure(id).await?.ok_or_else(missing)?;
        let (event, _) = failure::to_proto(&failure::stored(&found.row)?);
        let mut cursor = self.context.store().feed_start().await?;
        if found.position.lane >= cursor.floor {
            feed::advance(&mut cursor, found.position);
        }
        Ok(v1::GetFailureResponse { failure: Some(event), cursor: cursor.encode() })
    }

    async fn payload(&self, id: &str) -> Result<v1::Payload> {
        if id.is_empty() {
            return Err(Error::required("payload_id"));
        }
        let missing = || {
            let message = "there is no payload with that id, or retention has deleted it";
            Error::new(ErrorReason::PayloadNotFound, message)
        };
        let id = PayloadId::decode(id).ok_or_else(missing)?;
        let mut has_joined = false;
        let find = |row: &StoredTransition| {
            if row.sequence > id.sequence {
                return Ok(Some(None));
            }
            let data = row.decode(id.execution).map_err(unreadable)?;
            let mut found = None;
            for event in &data.events {
                has_joined |=
                    matches!(event, Event::ParallelCompleted { .. } | Event::LoopCompleted { .. });
                payloads(event, &mut |own| {
                    if found.is_none() && id.is_of(own) {
                        found = Some(payload::to_proto(own));
                    }
                });
            }
            Ok(found.map(Some))
        };
        let found = self.context.find_in_history(id.execution, 0, find).await?.flatten();
        match found {
            None if has_joined => self.joined(&id).await?.ok_or_else(missing),
            found => found.ok_or_else(missing),
        }
    }

    /// Finds a payload among the outputs of steps with branches or items. The history holds only the outputs of
    /// these, so the state is folded from it.
    async fn joined(&self, id: &PayloadId) -> Result<Option<v1::Payload>> {
        let mut state = None;
        let find = |row: &StoredTransition| {
            if row.sequence > id.sequence {
                return Ok(Some(None));
            }
            let data = row.decode(id.execution).map_err(unreadable)?;
            let (sequence, decided_at) = (row.sequence, data.decided_at);
            let transition = Transition { sequence, decided_at, events: data.events };
            let folded = fold(state.take(), id.execution, &transition).map_err(unreadable)?;
            let outputs = transition.events.iter().filter_map(|event| match event {
                Event::ParallelCompleted { path } | Event::LoopCompleted { path } => {
                    Some(folded.output(path)?.to_payload())
                }
                _ => None,
            });
            let found =
                outputs.filter(|own| id.is_of(own)).map(|own| payload::to_proto(&own)).next();
            state = Some(folded);
            Ok(found.map(Some))
        };
        Ok(self.context.find_in_history(id.execution, 0, find).await?.flatten())
    }
}

fn unreadable(error: impl std::fmt::Display) -> Error {
    Error::internal("a history cannot be read", &error)
}

/// Calls `see` for every payload of an event that an answer may refer to.
fn payloads(event: &Event, see: &mut impl FnMut(&Payload)) {
    match event {
        Event::ExecutionStarted(started) => see(&started.input),
        // A payload that is not inline is stored elsewhere in the history, or is put together from payloads
        // there.
        Event::StepStarted { input: source, .. }
        | Event::BlockCompleted { output: source, .. }
        | Event::BranchCompleted { output: source, .. }
        | Event::LoopStarted { items: source, .. }
        | Event::ItemCompleted { output: source, .. }
        | Event::ScopeReturned { output: source, .. }
        | Event::StepCaught { output: source, .. }
        | Event::RunSucceeded { output: source } => {
            if let Some(own) = source.inline() {
                see(own);
            }
        }
        Event::StepCompleted { output, .. } => see(output),
        Event::AttemptFailed(failed) => details(&failed.error, see),
        Event::StepFailed { error, .. }
        | Event::StepIgnored { error, .. }
        | Event::HandlerStarted { error, .. }
        | Event::BranchFailed { error, .. }
        | Event::ItemFailed { error, .. }
        | Event::RunStopped { error, .. }
        | Event::CompensationParked { error, .. }
        | Event::HandlerFailed { error, .. } => details(error, see),
        Event::ExecutionEnded { error, .. } | Event::BlockStopped { error, .. } => {
            if let Some(error) = error {
                details(error, see);
            }
        }
        Event::RequestRecorded { .. }
        | Event::StepSkipped { .. }
        | Event::BlockStarted { .. }
        | Event::ParallelStarted { .. }
        | Event::ParallelCompleted { .. }
        | Event::LoopCompleted { .. }
        | Event::AttemptScheduled { .. }
        | Event::AttemptStarted { .. }
        | Event::AttemptWithdrawn { .. }
        | Event::CancelRequested { .. }
        | Event::CompensationStarted { .. }
        | Event::CompensationRetried { .. }
        | Event::CompensationSkipped { .. }
        | Event::CompensationEnded { .. }
        | Event::OnFailureStarted { .. }
        | Event::FinallyStarted { .. } => {}
    }
}

fn details(error: &TaskError, see: &mut impl FnMut(&Payload)) {
    for link in error.chain() {
        if let Some(details) = &link.details {
            see(details);
        }
    }
}

fn position_bytes(position: Position) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&position.number.to_be_bytes());
    bytes[8..].copy_from_slice(&position.lane.0.to_be_bytes());
    bytes
}

fn position_from(bytes: [u8; 16]) -> Position {
    let [number, lane] = [0, 8].map(|at| {
        let eight: [u8; 8] = bytes[at..at + 8].try_into().expect("half of sixteen");
        i64::from_be_bytes(eight)
    });
    Position { number, lane: NodeId(lane) }
}

fn count(tokens: usize, field: &str) -> Result<()> {
    if (1..=TOKENS_MAX).contains(&tokens) {
        return Ok(());
    }
    Err(Error::invalid(field, format!("must have from 1 to {TOKENS_MAX} entries, not {tokens}")))
}

fn results(tokens: Vec<String>, reasons: Vec<ErrorReason>) -> Vec<v1::AckResult> {
    let pairs = tokens.into_iter().zip(reasons);
    pairs.map(|(ack_token, reason)| v1::AckResult { ack_token, reason: reason.into() }).collect()
}

#[tonic::async_trait]
impl FailureService for Service {
    type SubscribeFailuresStream = ReceiverStream<Result<v1::SubscribeFailuresResponse, Status>>;

    async fn subscribe_failures(
        &self,
        request: Request<v1::SubscribeFailuresRequest>,
    ) -> Result<Response<Self::SubscribeFailuresStream>, Status> {
        Ok(Response::new(self.subscribe(request.into_inner()).await?))
    }

    async fn pull_failures(
        &self,
        request: Request<v1::PullFailuresRequest>,
    ) -> Result<Response<v1::PullFailuresResponse>, Status> {
        let wait = metadata::wait(request.get_ref().wait, request.metadata())?;
        Ok(Response::new(self.pull(request.into_inner(), wait).await?))
    }

    async fn ack_failures(
        &self,
        request: Request<v1::AckFailuresRequest>,
    ) -> Result<Response<v1::AckFailuresResponse>, Status> {
        let request = request.into_inner();
        let name = subscriptions::name(request.subscription, "subscription")?;
        count(request.ack_tokens.len(), "ack_tokens")?;
        let reasons = durable::ack(&self.context, &name, &request.ack_tokens).await?;
        let results = results(request.ack_tokens, reasons);
        Ok(Response::new(v1::AckFailuresResponse { results }))
    }

    async fn nack_failures(
        &self,
        request: Request<v1::NackFailuresRequest>,
    ) -> Result<Response<v1::NackFailuresResponse>, Status> {
        let request = request.into_inner();
        let name = subscriptions::name(request.subscription, "subscription")?;
        count(request.nacks.len(), "nacks")?;
        let mut nacks = Vec::with_capacity(request.nacks.len());
        for (index, nack) in request.nacks.into_iter().enumerate() {
            let field = format!("nacks[{index}].delay");
            let range = Duration::ZERO..=NACK_DELAY_MAX;
            let delay = time::duration_between(nack.delay, &field, Duration::ZERO, range)?;
            nacks.push((nack.ack_token, delay));
        }
        let reasons = durable::nack(&self.context, &name, &nacks).await?;
        let results = results(nacks.into_iter().map(|(token, _)| token).collect(), reasons);
        Ok(Response::new(v1::NackFailuresResponse { results }))
    }

    async fn list_failures(
        &self,
        request: Request<v1::ListFailuresRequest>,
    ) -> Result<Response<v1::ListFailuresResponse>, Status> {
        Ok(Response::new(self.list(request.into_inner()).await?))
    }

    async fn get_failure(
        &self,
        request: Request<v1::GetFailureRequest>,
    ) -> Result<Response<v1::GetFailureResponse>, Status> {
        Ok(Response::new(self.get(&request.get_ref().id).await?))
    }

    async fn create_subscription(
        &self,
        request: Request<v1::CreateSubscriptionRequest>,
    ) -> Result<Response<v1::CreateSubscriptionResponse>, Status> {
        let subscription = subscriptions::create(&self.context, request.into_inner()).await?;
        let subscription = Some(subscription);
        Ok(Response::new(v1::CreateSubscriptionResponse { subscription }))
    }

    async fn get_subscription(
        &self,
        request: Request<v1::GetSubscriptionRequest>,
    ) -> Result<Response<v1::GetSubscriptionResponse>, Status> {
        let name = subscriptions::name(request.into_inner().subscription, "subscription")?;
        let subscription = Some(subscriptions::get(&self.context, &name).await?);
        Ok(Response::new(v1::GetSubscriptionResponse { subscription }))
    }

    async fn list_subscriptions(
        &self,
        request: Request<v1::ListSubscriptionsRequest>,
    ) -> Result<Response<v1::ListSubscriptionsResponse>, Status> {
        Ok(Response::new(subscriptions::list(&self.context, request.get_ref()).await?))
    }

    async fn delete_subscription(
        &self,
        request: Request<v1::DeleteSubscriptionRequest>,
    ) -> Result<Response<v1::DeleteSubscriptionResponse>, Status> {
        subscriptions::delete(&self.context, request.into_inner()).await?;
        Ok(Response::new(v1::DeleteSubscriptionResponse {}))
    }

    async fn read_payload(
        &self,
        request: Request<v1::ReadPayloadRequest>,
    ) -> Result<Response<v1::ReadPayloadResponse>, Status> {
        let payload = self.payload(&request.get_ref().payload_id).await?;
        Ok(Response::new(v1::ReadPayloadResponse { payload: Some(payload) }))
    }
}
