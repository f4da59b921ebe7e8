//! Answers callers while the server is waiting for its database.

use std::io;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::listen::{self, ConnectionLimits};

/// Connections that are still open after this time are closed. All of their calls have been answered by
/// then.
const END_MAX: Duration = Duration::from_secs(1);

/// Answers "not ready" from the first failed attempt to open the store until [`Self::end`].
pub struct Waiting {
    limits: ConnectionLimits,
    serving: Option<(watch::Sender<bool>, JoinHandle<()>)>,
}

impl Waiting {
    pub fn new(limits: ConnectionLimits) -> Self {
        Self { limits, serving: None }
    }

    /// Passes the result of an attempt through. If the attempt failed, callers of the listener are told
    /// from now on that the server is not ready.
    pub fn after<T>(
        &mut self,
        attempt: recoup_store::Result<T>,
        listener: &TcpListener,
    ) -> recoup_store::Result<T> {
        if attempt.is_err() && self.serving.is_none() {
            match share(listener) {
                Ok(listener) => self.begin(listener),
                // Callers then wait for their connection to be accepted.
                Err(error) => tracing::warn!(%error, "cannot tell callers to wait"),
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
                    // An error means that the sender is gone, which also means that waiting is over.
                    let _ = stopped.wait_for(|stop| *stop).await;
                });
            if let Err(error) = serving.await {
                tracing::warn!(%error, "can no longer tell callers to wait");
            }
        });
        self.serving = Some((shutdown, serving));
    }

    /// The server is ready. Connected callers are asked to connect again.
    pub async fn end(self) {
        let Some((shutdown, mut serving)) = self.serving else { return };
        shutdown.send_replace(true);
        if tokio::time::timeout(END_MAX, &mut serving).await.is_err() {
            serving.abort();
        }
    }
}

/// The same socket under another file descriptor.
fn share(listener: &TcpListener) -> io::Result<TcpListener> {
    use std::os::fd::AsFd;
    let shared = listener.as_fd().try_clone_to_owned()?;
    TcpListener::from_std(std::net::TcpListener::from(shared))
}
