//! The events of a run, which happen one after the other, and the stages that it goes through.

use crate::calls::CallId;
use crate::faults::ClockStep;
use crate::machines::Request;
use crate::{clients, workers};

pub enum Event {
    /// A machine takes in what has arrived.
    Step {
        machine: usize,
    },
    Boot {
        machine: usize,
    },
    Pause {
        machine: usize,
    },
    /// A machine crashes, independently of what it does.
    PowerCut {
        machine: usize,
    },
    /// A machine's clock starts to run at a different rate.
    Drift {
        machine: usize,
    },
    /// The database's clock is set.
    SetClock(ClockStep),
    /// An operator allows the newest formats.
    Finalize,
    /// A server is asked to stop in an orderly way.
    Stop {
        machine: usize,
    },
    Drained {
        machine: usize,
        life: u64,
    },
    TellStop {
        machine: usize,
        life: u64,
    },
    Effect(CallId),
    Finish(CallId),
    Answer(CallId),
    /// A commit takes effect whose outcome its node does not know.
    Late(u64),
    Deliver {
        machine: usize,
        life: Option<u64>,
        request: Request,
    },
    Client(clients::Wake),
    Worker(workers::Wake),
    Read,
    Heal,
    Look,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    Faults,
    Healing,
    Settling,
    Done,
}
