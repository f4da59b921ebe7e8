//! The client: every RPC of the service, with typed errors and retries when the service cannot be reached.

mod admin;
mod execution;
mod failure;
mod namespace;
mod pages;
mod start;
mod trace;
mod workflow;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::Error;
use crate::backoff::Backoff;

pub use self::failure::AckOutcome;
pub use self::pages::Pages;
pub use self::start::{Ended, Run, Start, Started};
pub use self::trace::TraceContext;
pub use self::workflow::WorkflowSource;

/// The longest that the service waits in one call, such as `RunExecution`.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a call may take in addition to the wait that it asks for.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Room for a message at its limit of 4 MiB and for the fields around it.
pub(crate) const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The largest message that the service accepts. A larger one would be refused by the transport, which
/// gives no reason.
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A connection to the service, in one namespace. Cheap to clone; clones share the connection.
///
/// Every call is idempotent. It carries a request id where the service accepts one. While the service
/// cannot be reached or is overloaded, the client repeats the call with the same id until the retry timeout
/// expires.
///
/// The documentation of each call lists the reasons that are particular to it. Any call can also return
/// [`Error::Unavailable`], or an [`Error::Service`] for an argument that is not valid or a server that is
/// overloaded.
///
/// ```no_run
/// # async fn example() -> Result<(), recoup_sdk::Error> {
/// use recoup_sdk::Client;
///
/// let client = Client::connect("http://127.0.0.1:7430").await?;
/// let ended = client.run("order").input(&serde_json::json!({"id": 7})).key("order-7").send().await?;
/// println!("{:?}", ended.outcome.state());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    namespace: Arc<str>,
    retry_timeout: Duration,
    backoff: Backoff,
}

/// Configures a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    address: String,
    namespace: String,
    connect_timeout: Duration,
    retry_timeout: Duration,
}

impl ClientBuilder {
    /// The namespace of all calls. Default: `default`.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// How long one attempt to connect may take. Default: 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a call is repeated while the service is away or overloaded, counted from the first try. For
    /// a call that asks the service to wait, such as [`Client::run`], that wait is added. Zero turns off
    /// the retries of all other calls. Default: 30 s.
    #[must_use]
    pub fn retry_timeout(mut self, timeout: Duration) -> Self {
        self.retry_timeout = timeout;
        self
    }

    /// Connects to the server. A failed attempt to connect is not repeated.
    ///
    /// # Errors
    /// [`Error::Address`] if the address cannot be used, [`Error::Unavailable`] if no server answers there.
    pub async fn connect(self) -> Result<Client, Error> {
        let channel = self
            .endpoint()?
            .connect()
            .await
            .map_err(|error| Error::from(Status::from_error(Box::new(error))))?;
        Ok(self.client(channel))
    }

    /// Creates a client that connects with its first call. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Address`] if the address cannot be used.
    pub fn connect_lazy(self) -> Result<Client, Error> {
        let channel = self.endpoint()?.connect_lazy();
        Ok(self.client(channel))
    }

    fn endpoint(&self) -> Result<Endpoint, Error> {
        let wrong = |message: String| Error::Address { address: self.address.clone(), message };
        let has_scheme = self.address.contains("://");
        let url =
            if has_scheme { self.address.clone() } else { format!("http://{}", self.address) };
        let endpoint = Endpoint::from_shared(url).map_err(|error| wrong(error.to_string()))?;
        if endpoint.uri().scheme_str() != Some("http") {
            return Err(wrong("its scheme must be http, or left out".to_owned()));
        }
        if !has_scheme && endpoint.uri().port().is_none() {
            return Err(wrong("it has no port; add one, as in 127.0.0.1:7430".to_owned()));
        }
        Ok(endpoint
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(8 * 1024 * 1024))
    }

    fn client(self, channel: Channel) -> Client {
        Client {
            channel,
            namespace: self.namespace.into(),
            retry_timeout: self.retry_timeout,
            backoff: Backoff::default(),
        }
    }
}

impl Client {
    /// Connects to a server, such as `http://127.0.0.1:7430` or `127.0.0.1:7430`, in the namespace
    /// `default`.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`].
    pub async fn connect(address: impl Into<String>) -> Result<Self, Error> {
        Self::builder(address).connect().await
    }

    /// Configures a client of the server at `address`, which is a URL, or a host and a port.
    pub fn builder(address: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            address: address.into(),
            namespace: "default".to_owned(),
            connect_timeout: Duration::from_secs(5),
            retry_timeout: Duration::from_secs(30),
        }
    }

    /// A client of another namespace that shares this connection.
    #[must_use]
    pub fn in_namespace(&self, namespace: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), ..self.clone() }
    }

    /// The namespace of this client's calls.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The connection, for use with the generated clients of [`crate::proto`]. Calls of those clients are
    /// not retried.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Makes the call until the answer is not a transient error, or the retry timeout expires.
    pub(crate) async fn call<Q, R, F>(
        &self,
        request: Q,
        options: CallOptions<'_>,
        call: impl Fn(Channel, Request<Q>) -> F,
    ) -> Result<R, Error>
    where
        Q: Clone + prost::Message,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let size = request.encoded_len();
        if size > REQUEST_BYTES_MAX {
            return Err(Error::MessageTooLarge { size });
        }
        let began = Instant::now();
        let mut retry = 0;
        loop {
            let mut attempt = Request::new(request.clone());
            attempt.set_timeout(CALL_TIMEOUT + options.wait);
            if let Some(trace) = options.trace {
                trace.write(attempt.metadata_mut());
            }
            let error = match call(self.channel.clone(), attempt).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => Error::from(status),
            };
            retry += 1;
            let wait = self.backoff.next(retry, error.retry_after());
            if !error.is_transient() || began.elapsed() + wait > self.retry_timeout + options.wait {
                return Err(error);
            }
            tracing::debug!(%error, retry, "the call is repeated");
            tokio::time::sleep(wait).await;
        }
    }
}

/// Settings of a single call.
#[derive(Clone, Copy, Default)]
pub(crate) struct CallOptions<'a> {
    /// How long the service was asked to wait before it answers.
    pub(crate) wait: Duration,
    pub(crate) trace: Option<&'a TraceContext>,
}

/// `rpc!(client, Service.method(request))`: one call of a generated client through [`Client::call`].
macro_rules! rpc {
    ($client:expr, $service:ident . $method:ident ($request:expr)) => {
        $crate::client::rpc!(
            $client,
            $service.$method($request),
            $crate::client::CallOptions::default()
        )
    };
    ($client:expr, $service:ident . $method:ident ($request:expr), $options:expr) => {
        $client.call($request, $options, |channel, request| async move {
            $service::new(channel)
                .max_decoding_message_size($crate::client::MESSAGE_BYTES_MAX)
                .$method(request)
                .await
        })
    };
}
pub(crate) use rpc;

/// A new request id: a UUID of version 7. Ids that are made at about the same time lie together in the
/// server's index, where random ids would each change a different page.
pub(crate) fn new_request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

impl TraceContext {
    fn write(&self, metadata: &mut MetadataMap) {
        for (name, value) in [("traceparent", &self.traceparent), ("tracestate", &self.tracestate)]
        {
            // A value that cannot be a header is left out; it is not worth failing the call.
            if let (false, Ok(value)) = (value.is_empty(), value.parse()) {
                metadata.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use recoup_proto::v1;

    use super::*;

    #[tokio::test]
    async fn addresses_must_be_host_and_port_or_an_http_url() {
        let wrong =
            ["", "localhost", "[::1]", "::1:7430", "https://127.0.0.1:7430", "http://a b", "a:b"];
        for address in wrong {
            let error = Client::builder(address).connect_lazy().err().expect(address);
            assert!(matches!(error, Error::Address { .. }), "{address}: {error}");
        }
        for address in ["127.0.0.1:7430", "localhost:7430", "[::1]:7430", "http://localhost"] {
            Client::builder(address).connect_lazy().expect(address);
        }
    }

    #[tokio::test]
    async fn without_a_listener_calls_fail_as_unavailable() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("it is bound"));
        drop(listener);
        let error = Client::connect(address.clone()).await.err().expect("no server listens");
        assert!(error.is_transient(), "{error:?}");

        let client = Client::builder(address).retry_timeout(Duration::ZERO).connect_lazy();
        let error =
            client.expect("an address").execution("x").await.expect_err("no server listens");
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_message_over_the_transport_limit_is_not_sent() {
        let client = Client::builder("http://127.0.0.1:1").connect_lazy().expect("an address");
        let error = client.register_workflow("x".repeat(5 << 20)).await.expect_err("too large");
        let Error::MessageTooLarge { size } = error else { panic!("{error:?}") };
        assert!(size > 5 << 20, "{size}");
        assert!(error.to_string().ends_with("the limit is 4194304"), "{error}");
    }

    #[tokio::test]
    async fn a_retried_call_keeps_its_request_id() {
        let client = Client::builder("http://127.0.0.1:1").connect_lazy().expect("an address");
        let sent = std::sync::Mutex::new(Vec::new());
        let create = async || {
            let request =
                v1::CreateNamespaceRequest { namespace: None, request_id: new_request_id() };
            let call = |_, request: Request<v1::CreateNamespaceRequest>| {
                let mut sent = sent.lock().expect("nothing panics");
                sent.push(request.into_inner().request_id);
                let fails = sent.len() % 3 != 0;
                async move {
                    if fails { Err(Status::unavailable("not now")) } else { Ok(Response::new(())) }
                }
            };
            client.call(request, CallOptions::default(), call).await.expect("the third try");
        };
        create().await;
        create().await;
        let sent = sent.into_inner().expect("nothing panics");
        assert_eq!(sent.len(), 6);
        assert!(sent[..3].iter().all(|id| *id == sent[0] && id.len() == 36), "{sent:?}");
        assert!(sent[3..].iter().all(|id| *id == sent[3]), "{sent:?}");
        assert_ne!(sent[0], sent[3], "another call is another request");
    }

    #[test]
    fn trace_context_is_sent_in_headers_without_invalid_values() {
        let mut metadata = MetadataMap::new();
        TraceContext::new("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "bad\nvalue")
            .write(&mut metadata);
        assert_eq!(
            metadata.get("traceparent").and_then(|value| value.to_str().ok()),
            Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        );
        assert!(metadata.get("tracestate").is_none());
    }
}
