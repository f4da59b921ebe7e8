//! Calls of nodes to the store, and how far each has got.

use std::sync::Arc;
use std::time::Duration;

use recoup_engine::node::io::{Input, Output};
use recoup_store::memory::PendingCommit;
use recoup_store::{Batch, Error, KeyedStart, NodeId};

use crate::faults::Site;
use crate::machines::ReplyId;

pub type CallId = u64;

/// A call to the store that is under way.
pub struct Call {
    pub machine: usize,
    pub life: u64,
    pub site: Site,
    /// When the call was made, on the machine's own clock.
    pub asked: Duration,
    pub progress: Progress,
}

pub enum Progress {
    Asked(Output<ReplyId>),
    /// The driver gives the lease back.
    Leaving(NodeId),
    /// A transaction is open.
    Open(PendingCommit, Reported),
    /// `None` for the calls whose answer concerns only the driver.
    Answered(Option<Input<ReplyId>>),
    Taken,
}

/// The answer that the node gets for a commit that took effect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    Truth,
    Unknown,
}

/// A commit whose node was told that the outcome is unknown, and that has not taken effect yet. The next
/// commit of the same life waits for it.
pub struct Late {
    pub node: NodeId,
    pub what: LateWork,
}

pub enum LateWork {
    Open(PendingCommit),
    Batch(Arc<Batch>),
    Keyed(Arc<Vec<KeyedStart>>),
}

/// The answer to a call that failed. `None` for calls whose answer nothing waits for.
pub fn refused(output: Output<ReplyId>, error: impl Fn() -> Error) -> Option<Input<ReplyId>> {
    Some(match output {
        Output::Join => Input::Joined(Err(error())),
        Output::Renew { node, .. } => Input::Renewed(node, Err(error())),
        Output::Commit(node, _) => Input::Committed(node, Err(error())),
        Output::StartKeyed(node, _) => Input::KeyedStarted(node, Err(error())),
        Output::Load(node, asked) => {
            Input::Loaded { node, asked, loaded: Err(error().to_string()) }
        }
        Output::Adopt { node, .. } => Input::Adopted(node, Err(error())),
        Output::Heads(node, _) => Input::Heads(node, Err(error())),
        Output::Due(node, ..) => Input::Due(node, Err(error())),
        Output::Publish(node, _) => Input::Published(node, Err(error())),
        Output::Claim { node, .. } => Input::Claimed(node, Err(error())),
        Output::Overflow(node, tasks) => Input::Overflowed { node, tasks, result: Err(error()) },
        Output::ReleaseQuarantine { node, execution, reply, .. } => {
            Input::QuarantineReleased { node, execution, released: Err(error()), reply }
        }
        Output::WithdrawOverflow(_)
        | Output::Reply { .. }
        | Output::Tell { .. }
        | Output::FeedWritten => return None,
    })
}
