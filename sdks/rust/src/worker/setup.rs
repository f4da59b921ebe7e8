//! The settings of a worker, and the values derived from them.

use std::time::Duration;

use super::handler::Handlers;
use crate::Client;

/// How a worker talks to the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// One stream: the service sends tasks as slots become free, and the worker sends results in batches.
    /// The fast choice, and the default.
    #[default]
    Stream,
    /// Unary calls: long polls for tasks, and one call per result. For proxies that do not pass streams.
    Unary,
}

/// The settings of a worker, as its loops use them.
pub(super) struct Setup {
    pub client: Client,
    pub queues: Vec<String>,
    pub handlers: Handlers,
    pub name: String,
    pub slots: u32,
    pub session_ttl: Option<Duration>,
    pub drain_timeout: Duration,
    pub closed_grace: Duration,
    pub transport: Transport,
}

impl Setup {
    pub fn session_ttl(&self) -> Duration {
        let default = match self.transport {
            Transport::Stream => Duration::from_secs(30),
            Transport::Unary => Duration::from_secs(90),
        };
        self.session_ttl.unwrap_or(default).clamp(Duration::from_secs(1), Duration::from_secs(600))
    }

    pub fn queues(&self) -> Vec<String> {
        if self.queues.is_empty() { vec!["default".to_owned()] } else { self.queues.clone() }
    }

    pub fn task_types(&self) -> Vec<String> {
        let mut types: Vec<_> = self.handlers.keys().cloned().collect();
        types.sort();
        types
    }
}
