//! The messages from the handle to the driver.

use tokio::sync::{mpsc, oneshot};

use crate::node::io::{Answer, Input, Offer, Refusal, WorkerKey, WorkerMessage};

/// How a caller is answered.
pub type Reply = Box<dyn FnOnce(Result<Answer, Refusal>) + Send>;

pub(crate) enum Request {
    Input(Input<Reply>),
    Attach { worker: WorkerKey, offer: Offer, sink: mpsc::UnboundedSender<WorkerMessage> },
    Stop(oneshot::Sender<()>),
}
