//! Tasks on their way out of this process in the answer to a call. The answer may be made when its
//! caller has gone, or go no further than the connection that is being closed: then it is dropped,
//! and the tasks in it are handed out again at once. Once the connection has taken all of it, only the
//! worker can tell.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use recoup_core::command::TaskId;
use recoup_core::time::Timestamp;
use recoup_engine::Engine;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

/// Tasks in an answer, with the times of their hand-overs. Travels in the answer's extensions.
#[derive(Clone)]
pub struct Parcel(Arc<Contents>);

struct Contents {
    engine: Engine,
    tasks: Mutex<Vec<(TaskId, Timestamp)>>,
}

impl Parcel {
    pub fn new(engine: Engine, tasks: Vec<(TaskId, Timestamp)>) -> Self {
        Self(Arc::new(Contents { engine, tasks: Mutex::new(tasks) }))
    }

    fn is_delivered(&self) {
        self.0.take();
    }
}

impl Contents {
    fn take(&self) -> Vec<(TaskId, Timestamp)> {
        // No panic leaves the list half changed.
        std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.engine.undelivered(self.take());
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
