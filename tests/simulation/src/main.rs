//! Runs seeds and prints the ones that fail, the places where nodes crashed, and the hash of all traces.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use clap::Parser;
use recoup_simulation::{Catalog, CrashPoints, Defect, FNV_OFFSET, Outcome, fnv, simulate};

/// Within this many seeds, a node crashes at every place where it waits.
const SEEDS_FOR_ALL_SITES: u64 = 1000;

#[derive(Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Run with a defect until a seed finds it.
    #[arg(long)]
    mutant: Option<Defect>,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Stop at the first seed that fails.
    #[arg(long)]
    first: bool,
    /// How many seeds run in parallel. Default: the number of cores, or 1 with `--trace`.
    #[arg(long)]
    threads: Option<NonZero<usize>>,
}

impl Arguments {
    fn threads(&self) -> usize {
        let by_default = || match self.trace {
            true => NonZero::<usize>::MIN,
            false => thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN),
        };
        self.threads.unwrap_or_else(by_default).get()
    }
}

/// Runs the seeds in parallel. `take` gets their outcomes in the order of the seeds until it has seen enough,
/// so the output does not depend on the threads.
fn run(arguments: &Arguments, mut take: impl FnMut(Outcome) -> ControlFlow<()>) {
    let catalog = Catalog::new();
    let (mut due, end) = (arguments.from, arguments.from.saturating_add(arguments.seeds));
    let next = AtomicU64::new(due);
    let threads = arguments.threads();
    let (done, outcomes) = mpsc::sync_channel(threads);
    thread::scope(|scope| {
        // Dropping it at the end of this closure ends the threads.
        let outcomes = outcomes;
        for _ in 0..threads {
            let (done, next, catalog) = (done.clone(), &next, &catalog);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let outcome = simulate(catalog, seed, arguments.mutant, arguments.trace);
                    if done.send(outcome).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let mut early = BTreeMap::new();
        for outcome in &outcomes {
            early.insert(outcome.seed, outcome);
            while let Some(outcome) = early.remove(&due) {
                due += 1;
                if take(outcome).is_break() {
                    return;
                }
            }
        }
    });
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut crash_points = CrashPoints::default();
    let (mut passed, mut failed, mut executions, mut polite_stops) = (0_u64, 0_u64, 0, 0);
    let mut hash = FNV_OFFSET;
    run(&arguments, |outcome| {
        crash_points.add(&outcome.crash_points);
        executions += outcome.executions;
        polite_stops += outcome.polite_stops;
        hash = fnv(hash, &outcome.hash.to_be_bytes());
        let Some(violation) = outcome.violation else {
            passed += 1;
            return ControlFlow::Continue(());
        };
        failed += 1;
        let seed = outcome.seed;
        if let Some(mutant) = arguments.mutant {
            println!("{} is killed by seed {seed}: {}", mutant.name(), violation.invariant);
            return ControlFlow::Break(());
        }
        println!("seed {seed} violates: {}\n{}", violation.invariant, violation.what);
        for line in &outcome.last_lines {
            println!("    {line}");
        }
        if arguments.first { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if failed > 0 && arguments.mutant.is_some() {
        return ExitCode::SUCCESS;
    }
    if let Some(mutant) = arguments.mutant {
        println!("{} survives {passed} seeds", mutant.name());
        return ExitCode::FAILURE;
    }
    print!("{crash_points}");
    println!("{executions} executions, {polite_stops} polite stops, trace hash {hash:016x}");
    println!("{passed} passed, {failed} failed");
    let missing = crash_points.missing();
    if arguments.seeds >= SEEDS_FOR_ALL_SITES && !missing.is_empty() {
        println!("no crash at {missing:?}");
        return ExitCode::FAILURE;
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
