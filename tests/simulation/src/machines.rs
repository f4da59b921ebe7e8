//! The machines that nodes run on, and what reaches them.

use std::collections::VecDeque;
use std::time::Duration;

use recoup_core::time::Timestamp;
use recoup_engine::Options;
use recoup_engine::node::Node;
use recoup_engine::node::io::Input;

use crate::clients::{OpId, Recorded};
use crate::clock::MachineClock;
use crate::faults::Site;
use crate::workers::Report;

/// Identifies the caller that a reply is for.
pub type ReplyId = u64;

/// The caller that sent a request.
#[derive(Clone, Debug)]
pub enum Asker {
    /// A client, with what was on record for its request id when the request arrived.
    Client(OpId, Option<Recorded>),
    Worker {
        worker: usize,
        life: u64,
        report: Report,
    },
}

pub enum Request {
    /// The API turns it into an input when it arrives.
    Client(OpId),
    Input(Box<Input<ReplyId>>),
}

pub enum Mail {
    Input(Input<ReplyId>),
    /// An answer to a call, and when the call was made on the machine's own clock.
    Answer(Input<ReplyId>, Site, Duration),
    /// The process is asked to stop.
    Stop,
}

/// A machine whose server has been asked to stop.
pub struct Stopping {
    /// Streams that have not ended by then are cut.
    pub until: Timestamp,
    /// When the node was told to stop, after the last message of its workers.
    pub told_at: Option<Timestamp>,
    /// It answers no request any more, and only waits for the store.
    pub leaving: bool,
}

pub struct Machine {
    options: Options,
    pub node: Option<Node<ReplyId>>,
    /// Counts the machine's processes.
    pub life: u64,
    pub clock: MachineClock,
    /// Set while the process stops in an orderly way.
    pub stopping: Option<Stopping>,
    pub mailbox: VecDeque<Mail>,
    pub step_at: Option<Timestamp>,
    pub paused_until: Timestamp,
}

impl Machine {
    pub fn new(options: Options) -> Self {
        Self {
            options,
            node: None,
            life: 0,
            clock: MachineClock::new(Timestamp::default(), Timestamp::default(), 0),
            stopping: None,
            mailbox: VecDeque::new(),
            step_at: None,
            paused_until: Timestamp::default(),
        }
    }

    pub fn is_up(&self, life: u64) -> bool {
        self.node.is_some() && self.life == life
    }

    pub fn options(&self) -> &Options {
        &self.options
    }
}
