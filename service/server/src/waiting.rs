//! A server that waits for its database says so.

use std::io;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::listen::{self, ConnectionLimits};

/// Connections that are still open after this time are cut: all of their calls are answered at once.
const END_MAX: Duration = Duration::from_secs(1);

/// Serves "not ready" from the first attempt that fails until [`Self::end`].
pub struct Waiting {
    limits: ConnectionLimits,
    serving: Option<(watch::Sender<bool>, JoinHandle<()>)>,
}

impl Waiting {
    pub fn new(limits: ConnectionLimits) -> Self {
        Self { limits, serving: None }
    }

    /// Hands on what came of an attempt. If it failed, callers of the listener hear that the server is not
    /// ready.
    pub fn after<T>(
        &mut self,
        attempt: recoup_store::Result<T>,
        listener: &TcpListener,
    ) -> recoup_store::Result<T> {
        if attempt.is_err() && self.serving.is_none() {
            match share(listener) {
                Ok(listener) => self.begin(listener),
                // They wait to be accepted instead.
                Err(error) => tracing::warn!(%error, "callers cannot be told to wait"),
            }
        }
        attempt
    }

    fn begin(&mut self, listener: TcpListener) {
        let (shutdown, mut stopped) = watch::channel(false);
        let incoming = listen::connections(listener, &self.limits);
        let serving = tokio::spawn(async move {
            let serving = recoup_api::transport()
                .add_routes(recoup_api::starting().await)
                .serve_with_incoming_shutdown(incoming, async move {
                    // An error is the end of whoever could stop it.
                    let _ = stopped.wait_for(|stop| *stop).await;
                });
            if let Err(error) = serving.await {
                tracing::warn!(%error, "callers are not told to wait any more");
            }
        });
        self.serving = Some((shutdown, serving));
    }

    /// The server is ready: who is connected is asked to connect again.
    pub async fn end(self) {
        let Some((shutdown, mut serving)) = self.serving else { return };
        shutdown.send_replace(true);
        if tokio::time::timeout(END_MAX, &mut serving).await.is_err() {
            serving.abort();
        }
    }
}

/// The same socket under another descriptor.
fn share(listener: &TcpListener) -> io::Result<TcpListener> {
    use std::os::fd::AsFd;
    let shared = listener.as_fd().try_clone_to_owned()?;
    TcpListener::from_std(std::net::TcpListener::from(shared))
}
