//! Tasks and notices that leave this process in the answer to a call. By the time the answer is ready the
//! caller may be gone, or its connection may close before it accepts the answer. Then the answer is
//! dropped, its tasks are handed out again at once, and its notices are sent again. Once the connection has
//! accepted the whole answer, only the worker can tell what arrived.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use recoup_core::command::TaskId;
use recoup_core::time::Timestamp;
use recoup_engine::node::io::{Notice, SessionKey};
use recoup_engine::{Engine, HandedTask};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

/// Confirms an answer once the connection has accepted all of it. The guard travels in the extensions of
/// the answer. If it is dropped with the answer, whatever is unconfirmed is given back to the engine.
#[derive(Clone)]
pub struct DeliveryGuard(Arc<Mutex<Undelivered>>);

/// The tasks and notices of an answer that no connection has accepted yet. Dropping it gives them back to
/// the engine.
pub struct Undelivered {
    engine: Engine,
    /// The session that polls.
    session: Option<SessionKey>,
    /// Tasks, each with the time of its hand-over.
    tasks: Vec<(TaskId, Timestamp)>,
    notices: Vec<(TaskId, Notice)>,
}

impl DeliveryGuard {
    pub fn new(undelivered: Undelivered) -> Self {
        Self(Arc::new(Mutex::new(undelivered)))
    }

    fn confirm(&self) {
        // A panic cannot leave the lists half changed, so a poisoned lock is safe to use.
        let mut undelivered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        undelivered.tasks.clear();
        undelivered.notices.clear();
    }
}

impl Undelivered {
    pub fn new(engine: Engine, session: Option<SessionKey>) -> Self {
        Self { engine, session, tasks: Vec::new(), notices: Vec::new() }
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.notices.is_empty()
    }

    pub fn task(&mut self, hand_over: (TaskId, Timestamp)) {
        self.tasks.push(hand_over);
    }

    pub fn notice(&mut self, task: TaskId, notice: Notice) {
        self.notices.push((task, notice));
    }

    /// Moves everything out, so that dropping `self` gives nothing back.
    pub fn take(&mut self) -> Self {
        Self {
            engine: self.engine.clone(),
            session: self.session.clone(),
            tasks: std::mem::take(&mut self.tasks),
            notices: std::mem::take(&mut self.notices),
        }
    }
}

impl Drop for Undelivered {
    fn drop(&mut self) {
        self.engine.undelivered(std::mem::take(&mut self.tasks));
        if let Some(session) = self.session.take() {
            self.engine.untold(session, std::mem::take(&mut self.notices));
        }
    }
}

/// A service whose answers are tracked until the connection has accepted them.
#[derive(Clone)]
pub struct Delivery<S>(pub S);

impl<S: NamedService> NamedService for Delivery<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Delivery<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answering = self.0.call(request);
        Box::pin(async move { answering.await.map(follow) })
    }
}

fn follow(mut response: http::Response<Body>) -> http::Response<Body> {
    match response.extensions_mut().remove::<DeliveryGuard>() {
        Some(guard) => response.map(|body| Body::new(Followed { body, guard })),
        None => response,
    }
}

struct Followed {
    body: Body,
    guard: DeliveryGuard,
}

impl http_body::Body for Followed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        // Trailers end the answer to a call, and the transport does not poll again after them.
        let is_whole = match &polled {
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers(),
            Poll::Ready(None) => true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if is_whole {
            self.guard.confirm();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The task and the time of a hand-over, which together identify the hand-over.
pub fn hand_over(handed: HandedTask) -> (TaskId, Timestamp) {
    (handed.id, handed.handed_at)
}
