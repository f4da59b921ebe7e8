//! Tasks and notices on their way out of this process in the answer to a call. The answer may be made
//! when its caller has gone, or go no further than the connection that is being closed: then it is
//! dropped, the tasks in it are handed out again at once, and its notices are told again. Once the connection has taken all of it, only the
//! worker can tell.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use recoup_core::command::TaskId;
use recoup_core::time::Timestamp;
use recoup_engine::Engine;
use recoup_engine::node::io::{Notice, SessionKey};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

/// An answer that is followed to the connection. Travels in the answer's extensions.
#[derive(Clone)]
pub struct Parcel(Arc<Mutex<Contents>>);

/// What in an answer must be taken back if the answer does not arrive. Dropping it takes it back.
pub struct Contents {
    engine: Engine,
    /// The session that polls.
    session: Option<SessionKey>,
    /// Tasks, with the times of their hand-overs.
    tasks: Vec<(TaskId, Timestamp)>,
    notices: Vec<(TaskId, Notice)>,
}

impl Parcel {
    pub fn new(contents: Contents) -> Self {
        Self(Arc::new(Mutex::new(contents)))
    }

    fn is_delivered(&self) {
        // No panic leaves the lists half changed.
        let mut contents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        contents.tasks.clear();
        contents.notices.clear();
    }
}

impl Contents {
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

    /// All of it; nothing stays behind.
    pub fn take(&mut self) -> Self {
        Self {
            engine: self.engine.clone(),
            session: self.session.clone(),
            tasks: std::mem::take(&mut self.tasks),
            notices: std::mem::take(&mut self.notices),
        }
    }
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.engine.undelivered(std::mem::take(&mut self.tasks));
        if let Some(session) = self.session.take() {
            self.engine.untold(session, std::mem::take(&mut self.notices));
        }
    }
}

/// A service whose answers are followed to the connection.
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
    match response.extensions_mut().remove::<Parcel>() {
        Some(parcel) => response.map(|body| Body::new(Followed { body, parcel })),
        None => response,
    }
}

struct Followed {
    body: Body,
    parcel: Parcel,
}

impl http_body::Body for Followed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        // Trailers end the answer to a call: nobody asks for more.
        let is_whole = match &polled {
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers(),
            Poll::Ready(None) => true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if is_whole {
            self.parcel.is_delivered();
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
