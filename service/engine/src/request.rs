//! The messages from the handle to the driver.

use recoup_core::command::TaskId;
use tokio::sync::{mpsc, oneshot};

use crate::node::io::{Answer, Input, Offer, Refusal, SessionKey, WorkerKey, WorkerMessage};

/// How a caller is answered.
pub type Reply = Box<dyn FnOnce(Result<Answer, Refusal>) + Send>;

pub(crate) enum Request {
    Input(Input<Reply>),
    Attach {
        worker: WorkerKey,
        offer: Offer,
        sink: mpsc::UnboundedSender<WorkerMessage>,
    },
    /// See [`Node::told_closed`](crate::node::Node::told_closed).
    ToldClosed {
        session: SessionKey,
        reply: oneshot::Sender<Vec<TaskId>>,
    },
    Stop(oneshot::Sender<()>),
}
