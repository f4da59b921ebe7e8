//! A stream or a poll by which a worker takes tasks.

use recoup_store::QueueName;

use super::io::SessionKey;

pub(super) struct WorkerState {
    pub queues: Vec<QueueName>,
    pub task_types: Vec<String>,
    pub credit: u32,
    pub session: Option<SessionKey>,
    pub name: String,
    pub once: bool,
    /// Takes nothing more.
    pub draining: bool,
}
