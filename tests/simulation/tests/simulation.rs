//! Runs a few hundred seeds and the seeds that once found a defect, and shows that the simulation finds defects.

use std::process::Command;

use recoup_simulation::{Catalog, CrashPoints, Defect, Moment, Site, simulate};

const SEEDS: u64 = 300;
/// Each deliberate defect must be found within this many seeds.
const SEEDS_FOR_DEFECTS: u64 = 600;
/// Seeds that each exposed a defect which has since been fixed.
const REGRESSIONS: [u64; 79] = [
    1, 4, 5, 9, 18, 19, 50, 110, 155, 247, 423, 430, 445, 513, 545, 788, 1322, 1998, 2050, 2493,
    2660, 2975, 4500, 5_004_392, 5_006_903, 5_009_618, 9_001_191, 9_001_526, 9_001_980, 9_005_239,
    9_006_415, 9_008_085, 9_008_435, 9_010_613, 9_013_721, 9_019_041, 9_019_291, 9_000_780, 4938,
    12_022, 40_005_111, 40_025_725, 40_026_567, 9747, 41_011_799, 41_026_904, 42_003_113,
    43_006_959, 41_031_335, 3216, 8321, 46_001_396, 47_014_797, 47_021_347, 62_017_861, 63_021_192,
    63_026_074, 63_030_301, 63_031_670, 65_012_737, 69_060_733, 69_090_247, 69_116_238, 70_034_899,
    70_166_323, 70_180_935, 71_031_913, 75_106_216, 76_126_607, 77_005_576, 79_225_182, 80_092_207,
    81_112_080, 85_003_852, 86_014_193, 86_015_474, 86_018_746, 6691, 88_043_928,
];

#[test]
fn every_seed_keeps_the_invariants() {
    let catalog = Catalog::new();
    let mut crash_points = CrashPoints::default();
    let mut polite_stops = 0;
    for seed in 1..=SEEDS {
        let outcome = simulate(&catalog, seed, None, false);
        polite_stops += outcome.polite_stops;
        crash_points.add(&outcome.crash_points);
        let lines = outcome.last_lines.join("\n");
        assert!(outcome.violation.is_none(), "seed {seed}: {:?}\n{lines}", outcome.violation);
    }
    println!("{crash_points}");
    assert!(polite_stops > SEEDS / 4, "{polite_stops} servers and workers were told to stop");
    // Rare sites are counted by the simulation's command, over more seeds.
    let hot = [
        Site::Commit,
        Site::StartKeyed,
        Site::Load,
        Site::Renew,
        Site::Join,
        Site::Adopt,
        Site::Claim,
        Site::Overflow,
        Site::Leave,
    ];
    for (site, moment) in hot.into_iter().flat_map(|site| Moment::ALL.map(|at| (site, at))) {
        assert!(crash_points.at(site, moment) > 0, "no crash at {site:?}, {moment:?}");
    }
}

#[test]
fn regression_seeds_find_no_violation() {
    let catalog = Catalog::new();
    for seed in REGRESSIONS {
        let outcome = simulate(&catalog, seed, None, false);
        assert!(outcome.violation.is_none(), "seed {seed}: {:?}", outcome.violation);
    }
}

#[test]
fn every_deliberate_defect_is_found() {
    let catalog = Catalog::new();
    for defect in Defect::ALL {
        let found = (1..=SEEDS_FOR_DEFECTS).find_map(|seed| {
            let violation = simulate(&catalog, seed, Some(defect), false).violation?;
            // Without the defect the seed finds no violation, so this violation is due to the defect.
            let alone = simulate(&catalog, seed, None, false).violation.is_none();
            alone.then_some((seed, violation.invariant))
        });
        let (seed, invariant) = found.unwrap_or_else(|| panic!("{} survives", defect.name()));
        println!("{} is killed by seed {seed}: {invariant}", defect.name());
    }
}

#[test]
fn a_seed_gives_the_same_trace_in_any_process() {
    let run = || {
        let arguments = ["--seeds", "20", "--from", "7"];
        let output = Command::new(env!("CARGO_BIN_EXE_simulate")).args(arguments).output();
        let output = output.expect("the binary of this crate can be run");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|line| line.contains("trace hash"));
        line.expect("it prints the hash of all traces").to_owned()
    };
    let first = run();
    assert_eq!(first, run());
    // The result is a hash of what happens, so different seeds give different hashes.
    let catalog = Catalog::new();
    let (one, two) = (simulate(&catalog, 7, None, false), simulate(&catalog, 8, None, false));
    assert_ne!(one.hash, two.hash);
    assert_eq!(one.hash, simulate(&catalog, 7, None, false).hash);
}
