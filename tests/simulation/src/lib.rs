//! Runs two nodes on one store, in virtual time, under every fault that a seed chooses: crashes between any two
//! calls to the store, messages that are lost, repeated or delayed, commits whose outcome is unknown, leases
//! that expire while their node sleeps. After the faults, a period without faults follows, and then every
//! guarantee must hold.
//!
//! There is one thread, one queue of events and one source of randomness, so the same seed gives the same
//! run, line by line, in any process.
//!
//! # Map
//!
//! | module | holds |
//! | --- | --- |
//! | `world` | the clock, the queue of events, all participants, and how they act |
//! | `events` | the events, and the stages of a run |
//! | `machines` | the machines that nodes run on, and what reaches them |
//! | `clock` | the clock of a machine |
//! | `calls` | calls of nodes to the store, and how far each has got |
//! | `clients` | clients that send requests, and the subscriber of the failure feed |
//! | `workers` | workers, their connections to nodes, their jobs and their reports |
//! | `catalog` | the workflows that run |
//! | `faults` | the faults that the seed chooses, and the mutants |
//! | `random` | the source of randomness |
//! | `ledger` | the record of a run: histories, what was told to whom, the sessions of workers |
//! | `checks` | the invariants, checked against the ledger |
//! | `trace` | the lines of a run and their hash, and how they name executions and tasks |
//! | `wait` | polling the futures of the in-memory store, which are always ready at once |
//!
//! `machines`, `calls`, `clients` and `workers` hold the state of the participants, and none of them uses `world`. How
//! the participants act is in the files of the folder `world`.

#![allow(
    clippy::result_large_err,
    reason = "a step's error is a value as its output is, and made rarely"
)]
#![allow(
    clippy::large_enum_variant,
    reason = "events of a run are few at a time, and boxes would say nothing more"
)]

pub mod catalog;
pub mod faults;

mod calls;
mod checks;
mod clients;
mod clock;
mod events;
mod ledger;
mod machines;
mod random;
mod trace;
mod wait;
mod workers;
mod world;

pub use catalog::Catalog;
pub use faults::{CrashPoints, Defect, Moment, Site};
pub use ledger::Violation;
pub use trace::{FNV_OFFSET, fnv};

use std::panic::{AssertUnwindSafe, catch_unwind};

/// The result of one run.
pub struct Outcome {
    pub seed: u64,
    /// The hash of all lines of its trace.
    pub hash: u64,
    pub crash_points: CrashPoints,
    /// How many servers and workers have stopped in an orderly way.
    pub polite_stops: u64,
    pub executions: usize,
    pub violation: Option<Violation>,
    /// The last lines of the trace.
    pub last_lines: Vec<String>,
}

/// Runs one seed, with or without a defect. `print` writes the whole trace to stdout.
pub fn simulate(catalog: &Catalog, seed: u64, defect: Option<Defect>, print: bool) -> Outcome {
    let mut world = world::World::new(catalog, seed, defect, print);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    if ran.is_err() {
        world.violate("nothing panics", "see above".into());
    }
    Outcome {
        seed,
        hash: world.trace.hash(),
        crash_points: world.crash_points.clone(),
        polite_stops: world.polite_stops + world.drained,
        executions: world.ledger.histories.len(),
        violation: world.violation.clone(),
        last_lines: world.trace.last().map(str::to_owned).collect(),
    }
}
