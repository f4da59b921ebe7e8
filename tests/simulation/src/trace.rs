//! The trace of a run, line by line, and the names that it gives to executions and tasks. Its hash allows two
//! runs to be compared, and its last lines are kept to explain a failure.

use std::collections::VecDeque;
use std::fmt;

use recoup_core::command::TaskId;
use recoup_core::id::{ExecutionId, StepPath};
use recoup_core::time::Timestamp;

/// How many lines are kept for the report of a failure.
const KEPT: usize = 40;

pub struct Trace {
    hash: u64,
    last: VecDeque<String>,
    print: bool,
}

impl Trace {
    pub fn new(print: bool) -> Self {
        Self { hash: FNV_OFFSET, last: VecDeque::with_capacity(KEPT), print }
    }

    pub fn line(&mut self, since_start: Timestamp, what: fmt::Arguments<'_>) {
        let micros = since_start.as_micros();
        let line = format!("{:>4}.{:06} {what}", micros / 1_000_000, micros % 1_000_000);
        self.hash = fnv(self.hash, line.as_bytes());
        if self.print {
            println!("{line}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn last(&self) -> impl Iterator<Item = &str> {
        self.last.iter().map(String::as_str)
    }
}

pub const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a.
pub fn fnv(mut hash: u64, bytes: &[u8]) -> u64 {
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash ^ 0x0a).wrapping_mul(0x0100_0000_01b3)
}

/// The last digits of an id, enough to recognise it in a trace.
pub fn short(id: &ExecutionId) -> String {
    let text = id.to_string();
    text[text.len() - 6..].to_owned()
}

pub fn task_name(execution: ExecutionId, path: &StepPath, attempt: u32) -> String {
    format!("{} {path}:{attempt}", short(&execution))
}

pub fn named(task: &TaskId) -> String {
    task_name(task.execution, &task.path, task.attempt)
}
