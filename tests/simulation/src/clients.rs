//! Clients: those that ask for something, and the subscriber of the failure feed.

use std::collections::BTreeMap;
use std::time::Duration;

use recoup_core::command::RequestId;
use recoup_core::id::{ExecutionId, StepPath};
use recoup_core::key::{OnEnded, OnRunning};
use recoup_store::memory::MemoryStore;
use recoup_store::{Cursor, Feed, Positioned};

use crate::wait::ready;

/// The prefix of a reason, before the number of the op.
pub const REASON: &str = "op ";

pub type OpId = u64;

#[derive(Clone, Debug)]
pub enum Wish {
    Start {
        workflow: usize,
        key: Option<String>,
        on_running: OnRunning,
        on_ended: OnEnded,
        /// How long to wait for the end, if at all.
        wait: Option<Duration>,
    },
    Await(ExecutionId, Duration),
    Get(ExecutionId),
    Cancel(ExecutionId),
    Terminate(ExecutionId),
    RetryCompensation(ExecutionId, Option<StepPath>),
    SkipCompensation(ExecutionId, StepPath),
}

#[derive(Clone, Debug)]
pub struct Op {
    pub number: OpId,
    pub wish: Wish,
    pub request: Option<RequestId>,
    pub done: bool,
    pub tries: u32,
}

impl Op {
    /// The input of the executions that it starts.
    pub fn input(&self) -> String {
        format!("{{\"op\":{}}}", self.number)
    }

    pub fn reason(&self) -> String {
        format!("{REASON}{}", self.number)
    }
}

impl Wish {
    /// The execution that it is about. A start has none yet.
    pub fn target(&self) -> Option<ExecutionId> {
        match self {
            Self::Start { .. } => None,
            Self::Await(id, _)
            | Self::Get(id)
            | Self::Cancel(id)
            | Self::Terminate(id)
            | Self::RetryCompensation(id, _)
            | Self::SkipCompensation(id, _) => Some(*id),
        }
    }
}

/// The record of a request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub execution: ExecutionId,
    pub digest: u64,
}

#[derive(Clone, Copy, Debug)]
pub enum Wake {
    Ask(OpId),
    /// No answer has come.
    Again(OpId, u32),
    /// The same request is sent once more, whatever the answer was.
    Repeat(OpId),
    Operator,
}

#[derive(Default)]
pub struct Clients {
    pub ops: BTreeMap<OpId, Op>,
}

impl Clients {
    /// An op that is still waiting for its answer.
    pub fn waiting(&self) -> Option<String> {
        let waiting = self.ops.iter().find(|(_, op)| !op.done);
        waiting.map(|(id, op)| format!("op {id}: {op:?}"))
    }
}

/// A reader of the failure feed that follows its cursor.
pub struct Subscriber {
    pub cursor: Cursor,
    pub got: Vec<Positioned>,
}

impl Subscriber {
    pub fn new(store: &MemoryStore) -> Self {
        let cursor = ready(store.feed_start()).expect("the model always has a start");
        Self { cursor, got: Vec::new() }
    }
}
