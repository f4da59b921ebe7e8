//! Decides which answers are compressed: the answers to requests that were compressed.
//!
//! Many clients accept gzip by default (`grpc-accept-encoding`) even when they run next to the server.
//! Compressing for all of them would cost more than it saves on the network. As in grpc-go, a client asks
//! for compression by compressing its own messages.

use std::task::{Context, Poll};

use tonic::codegen::{Service, http};
use tonic::server::NamedService;

const ENCODING: &str = "grpc-encoding";
const ACCEPTED: &str = "grpc-accept-encoding";

/// A service with compression enabled. It compresses only for clients that compress.
#[derive(Clone)]
pub struct Compression<S>(pub S);

impl<S: NamedService> NamedService for Compression<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Compression<S>
where
    S: Service<http::Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let headers = request.headers_mut();
        let is_plain = headers.get(ENCODING).is_none_or(|encoding| encoding == "identity");
        if is_plain {
            headers.remove(ACCEPTED);
        }
        self.0.call(request)
    }
}
