//! Answers that a client does not read stay in memory, so the bytes of unread answers are limited per
//! connection. Without a limit, a thousand calls for large answers on a connection that is never read would
//! hold gigabytes.
//!
//! Bytes count from the moment an answer is encoded until the transport has written and dropped them. An
//! answer that does not fit is dropped and refused with OVERLOADED. Small answers always fit, so that
//! results and acknowledgements are answered however much is unread.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use recoup_proto::v1::ErrorReason;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tower::Layer;

use crate::status::Error;

/// The most bytes of answers that one connection may leave unread.
const UNREAD_BYTES_MAX: usize = 64 << 20;
/// Frames up to this size are never refused. On all streams of a connection together they amount to at most
/// the limit above.
const SMALL_BYTES: usize = 64 << 10;
/// When a refused client may try again.
const RETRY: Duration = Duration::from_secs(1);

/// The unread bytes of one connection. The connection passes it on in the extensions of its requests. A
/// request without one gets its own count.
#[derive(Clone, Debug, Default)]
pub struct Unread(Arc<AtomicUsize>);

impl Unread {
    /// Counts a frame and returns it. If it does not fit, returns the refusal that ends the answer.
    fn admit(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(trailers) => return trailers,
        };
        let bytes = data.len();
        let unread = self.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let counted = Counted { data, unread: self.clone() };
        if bytes > SMALL_BYTES && unread > UNREAD_BYTES_MAX {
            return refusal();
        }
        Frame::data(Bytes::from_owner(counted))
    }
}

fn refusal() -> Frame<Bytes> {
    let message = "the client has left 64 MiB of answers unread on this connection";
    let error = Error { retry_after: Some(RETRY), ..Error::new(ErrorReason::Overloaded, message) };
    let mut trailers = http::HeaderMap::new();
    let added = Status::from(error).add_header(&mut trailers);
    // Only a message that cannot be a header value could fail, and this one is ASCII.
    debug_assert!(added.is_ok());
    Frame::trailers(trailers)
}

/// Bytes on their way to the client, counted until they are dropped.
struct Counted {
    data: Bytes,
    unread: Unread,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.unread.0.fetch_sub(self.data.len(), Ordering::Relaxed);
    }
}

/// The layer that limits how many bytes of a service's answers are left unread.
#[derive(Clone, Debug, Default)]
pub struct BoundUnread;

impl<S> Layer<S> for BoundUnread {
    type Service = Bounded<S>;

    fn layer(&self, service: S) -> Bounded<S> {
        Bounded(service)
    }
}

#[derive(Clone, Debug)]
pub struct Bounded<S>(S);

impl<S> Service<http::Request<Body>> for Bounded<S>
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
        let unread = request.extensions().get::<Unread>().cloned().unwrap_or_default();
        let answering = self.0.call(request);
        Box::pin(async move {
            let response = answering.await?;
            if response.body().is_end_stream() {
                return Ok(response);
            }
            let (parts, body) = response.into_parts();
            let mut answer = Answer { body, unread, first: None, is_refused: false };
            // A client whose window is closed never asks for the answer, so the first frame is counted
            // right away.
            poll_fn(|context| {
                if let Poll::Ready(first) = answer.poll_next(context) {
                    answer.first = Some(first);
                }
                Poll::Ready(())
            })
            .await;
            Ok(http::Response::from_parts(parts, Body::new(answer)))
        })
    }
}

type Next = Option<Result<Frame<Bytes>, Status>>;

struct Answer {
    body: Body,
    unread: Unread,
    /// The frame that was produced before the transport asked for one.
    first: Option<Next>,
    /// Whether the answer has ended with a refusal.
    is_refused: bool,
}

impl Answer {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        if self.is_refused {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(context).map(|next| {
            let frame = match next? {
                Ok(frame) => frame,
                Err(status) => return Some(Err(status)),
            };
            let was_data = frame.is_data();
            let frame = self.unread.admit(frame);
            if was_data && frame.is_trailers() {
                self.is_refused = true;
                // Drop the body now, to free what it holds.
                self.body = Body::empty();
            }
            Some(Ok(frame))
        })
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Next> {
        match self.first.take() {
            Some(first) => Poll::Ready(first),
            None => self.poll_next(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && (self.is_refused || self.body.is_end_stream())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body::Body as _;
    use tower::service_fn;

    use super::*;

    /// A single frame of data, as in the answer to a unary call.
    struct One(Option<Bytes>);

    impl HttpBody for One {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Next> {
            Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
        }
    }

    async fn answer(unread: &Unread, bytes: usize) -> http::Response<Body> {
        let answer = move |_: http::Request<Body>| async move {
            let data = Bytes::from(vec![7; bytes]);
            Ok::<_, Infallible>(http::Response::new(Body::new(One(Some(data)))))
        };
        let mut request = http::Request::new(Body::empty());
        request.extensions_mut().insert(unread.clone());
        let answered = BoundUnread.layer(service_fn(answer)).call(request).await;
        answered.expect("it cannot fail")
    }

    async fn first(response: &mut http::Response<Body>) -> Frame<Bytes> {
        let frame = poll_fn(|context| Pin::new(response.body_mut()).poll_frame(context)).await;
        frame.expect("there is one").expect("it is not an error")
    }

    #[tokio::test]
    async fn large_answers_are_refused_once_too_many_bytes_are_unread() {
        const BYTES: usize = 4 << 20;
        let unread = Unread::default();
        let mut answers = Vec::new();
        for _ in 0..1_000 {
            answers.push(answer(&unread, BYTES).await);
            assert!(unread.0.load(Ordering::Relaxed) <= UNREAD_BYTES_MAX);
        }
        // A small answer fits even so.
        let frame = first(&mut answer(&unread, SMALL_BYTES).await).await;
        assert_eq!(frame.into_data().expect("it is data").len(), SMALL_BYTES);
        let mut refused = 0;
        for answer in &mut answers {
            if let Err(trailers) = first(answer).await.into_data() {
                let trailers =
                    trailers.into_trailers().expect("a frame is either data or trailers");
                assert_eq!(trailers["grpc-status"], "8");
                assert!(trailers.contains_key("grpc-retry-pushback-ms"));
                assert!(answer.body().is_end_stream());
                refused += 1;
            }
        }
        assert_eq!(refused, 1_000 - UNREAD_BYTES_MAX / BYTES);
        drop(answers);
        assert_eq!(unread.0.load(Ordering::Relaxed), 0);
        let frame = first(&mut answer(&unread, BYTES).await).await;
        assert!(frame.is_data(), "dropped answers make room");
    }

    #[tokio::test]
    async fn answer_bytes_count_as_unread_until_the_transport_drops_them() {
        let unread = Unread::default();
        let mut response = answer(&unread, 1_000).await;
        let data = first(&mut response).await.into_data().expect("it is data");
        drop(response);
        assert_eq!(unread.0.load(Ordering::Relaxed), 1_000);
        drop(data);
        assert_eq!(unread.0.load(Ordering::Relaxed), 0);
    }
}
