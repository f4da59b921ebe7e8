//! Runs seeds and prints those that fail, where nodes crashed, and the hash of all traces.

use std::process::ExitCode;

use clap::Parser;
use recoup_simulation::{Catalog, CrashPoints, Defect, FNV_OFFSET, fnv, simulate};

/// In so many seeds a node crashes wherever it waits.
const SEEDS_FOR_ALL_SITES: u64 = 1000;

#[derive(Parser)]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Run with a defect, until a seed finds it.
    #[arg(long)]
    mutant: Option<Defect>,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Stop at the first seed that fails.
    #[arg(long)]
    first: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let catalog = Catalog::new();
    let mut crash_points = CrashPoints::default();
    let (mut passed, mut failed, mut executions, mut polite_stops) = (0_u64, 0_u64, 0, 0);
    let mut hash = FNV_OFFSET;
    for seed in arguments.from..arguments.from.saturating_add(arguments.seeds) {
        let outcome = simulate(&catalog, seed, arguments.mutant, arguments.trace);
        crash_points.add(&outcome.crash_points);
        executions += outcome.executions;
        polite_stops += outcome.polite_stops;
        hash = fnv(hash, &outcome.hash.to_be_bytes());
        let Some(violation) = outcome.violation else {
            passed += 1;
            continue;
        };
        failed += 1;
        if let Some(mutant) = arguments.mutant {
            println!("{} is killed by seed {seed}: {}", mutant.name(), violation.invariant);
            return ExitCode::SUCCESS;
        }
        println!("seed {seed} violates: {}\n{}", violation.invariant, violation.what);
        for line in &outcome.last_lines {
            println!("    {line}");
        }
        if arguments.first {
            break;
        }
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
