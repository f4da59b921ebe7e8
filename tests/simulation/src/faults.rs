//! The faults of a run, which the seed chooses at the beginning, and the places where nodes crash.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use recoup_engine::Options;
use recoup_engine::node::io::Output;
use recoup_engine::options::Mutant;

use crate::random::Random;

/// Defects that the simulation must find. Each can be switched on by tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Defect {
    ReplyBeforeCommit,
    CompanionsForLosers,
    NoReloadAfterLostLease,
    UnknownOutcomeNotSettled,
    ScalarCursor,
    RepeatedHandOutCounts,
}

impl Defect {
    pub const ALL: [Self; 6] = [
        Self::ReplyBeforeCommit,
        Self::CompanionsForLosers,
        Self::NoReloadAfterLostLease,
        Self::UnknownOutcomeNotSettled,
        Self::ScalarCursor,
        Self::RepeatedHandOutCounts,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::ReplyBeforeCommit => "reply-before-commit",
            Self::CompanionsForLosers => "companions-for-losers",
            Self::NoReloadAfterLostLease => "no-reload-after-lost-lease",
            Self::UnknownOutcomeNotSettled => "unknown-outcome-not-settled",
            Self::ScalarCursor => "scalar-cursor",
            Self::RepeatedHandOutCounts => "repeated-hand-out-counts",
        }
    }

    pub fn of_engine(self) -> Option<Mutant> {
        match self {
            Self::ReplyBeforeCommit => Some(Mutant::ReplyBeforeCommit),
            Self::NoReloadAfterLostLease => Some(Mutant::NoReloadAfterLostLease),
            Self::UnknownOutcomeNotSettled => Some(Mutant::UnknownOutcomeNotSettled),
            Self::RepeatedHandOutCounts => Some(Mutant::RepeatedHandOutCounts),
            Self::CompanionsForLosers | Self::ScalarCursor => None,
        }
    }
}

impl std::str::FromStr for Defect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|defect| defect.name() == text);
        found.ok_or_else(|| format!("no mutant `{text}`; there are {}", known()))
    }
}

/// A call to the store, during which a node or its driver waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    Join,
    Renew,
    Commit,
    StartKeyed,
    Load,
    Adopt,
    Heads,
    Due,
    Publish,
    Claim,
    Overflow,
    WithdrawOverflow,
    Leave,
    /// Never called here, because nothing is quarantined.
    ReleaseQuarantine,
}

impl Site {
    pub const ALL: [Self; 13] = [
        Self::Join,
        Self::Renew,
        Self::Commit,
        Self::StartKeyed,
        Self::Load,
        Self::Adopt,
        Self::Heads,
        Self::Due,
        Self::Publish,
        Self::Claim,
        Self::Overflow,
        Self::WithdrawOverflow,
        Self::Leave,
    ];

    pub fn of<R>(output: &Output<R>) -> Option<Self> {
        match output {
            Output::Join => Some(Self::Join),
            Output::Renew { .. } => Some(Self::Renew),
            Output::Commit(..) => Some(Self::Commit),
            Output::StartKeyed(..) => Some(Self::StartKeyed),
            Output::Load(..) => Some(Self::Load),
            Output::Adopt { .. } => Some(Self::Adopt),
            Output::Heads(..) => Some(Self::Heads),
            Output::Due(..) => Some(Self::Due),
            Output::Publish(..) => Some(Self::Publish),
            Output::Claim { .. } => Some(Self::Claim),
            Output::Overflow(..) => Some(Self::Overflow),
            Output::WithdrawOverflow(_) => Some(Self::WithdrawOverflow),
            Output::ReleaseQuarantine { .. } => Some(Self::ReleaseQuarantine),
            Output::Reply { .. } | Output::Tell { .. } | Output::FeedWritten => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    BeforeEffect,
    BeforeAnswer,
    AfterAnswer,
}

impl Moment {
    pub const ALL: [Self; 3] = [Self::BeforeEffect, Self::BeforeAnswer, Self::AfterAnswer];
}

/// How many times a node crashed at each place.
#[derive(Clone, Debug, Default)]
pub struct CrashPoints(pub BTreeMap<(Site, Moment), u64>);

impl CrashPoints {
    pub fn add(&mut self, other: &Self) {
        for (point, count) in &other.0 {
            *self.0.entry(*point).or_insert(0) += count;
        }
    }

    pub fn at(&self, site: Site, moment: Moment) -> u64 {
        self.0.get(&(site, moment)).copied().unwrap_or(0)
    }

    /// The places at which no node has crashed.
    pub fn missing(&self) -> Vec<(Site, Moment)> {
        let all = Site::ALL.into_iter().flat_map(|site| Moment::ALL.map(|moment| (site, moment)));
        all.filter(|(site, moment)| self.at(*site, *moment) == 0).collect()
    }
}

impl fmt::Display for CrashPoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "crashes at       before effect  before answer   after answer")?;
        for site in Site::ALL {
            write!(f, "{:<16}", format!("{site:?}"))?;
            for moment in Moment::ALL {
                write!(f, " {:>14}", self.at(site, moment))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// The database's clock is set, or the database moves to a machine with a different clock. The difference stays.
#[derive(Clone, Copy, Debug)]
pub struct ClockStep {
    /// When, counted from the beginning of the run.
    pub after: Duration,
    pub micros: i64,
}

impl ClockStep {
    /// Draws the steps of a run: none in most runs, otherwise up to three in either direction, while faults last.
    pub fn draw(random: &mut Random, phase: Duration) -> Vec<Self> {
        let count = if random.below(4) == 0 { random.between(1, 3) } else { 0 };
        let steps = (0..count).map(|_| {
            let after = random.millis(0, u64::try_from(phase.as_millis()).unwrap_or(0));
            let by = match random.below(4) {
                0 => random.millis(500, 10_000),
                1 | 2 => random.millis(10_000, 90_000),
                _ => random.millis(600_000, 7_200_000),
            };
            let by = i64::try_from(by.as_micros()).unwrap_or(0);
            // Steps back are chosen more often, because they are the ones that might stop everything.
            let micros = if random.below(3) > 0 { -by } else { by };
            Self { after, micros }
        });
        steps.collect()
    }
}

/// The faults of one run. The chances are per thousand.
#[derive(Clone, Debug)]
pub struct Profile {
    /// How long faults last.
    pub phase: Duration,
    /// The crashes that are still to come: at a site, after this many passes of it.
    pub crashes: Vec<(Site, Moment, u32)>,
    pub unavailable: u32,
    pub unknown: u32,
    /// A commit stays open for a long time.
    pub slow_commit: u32,
    pub lost: u32,
    pub doubled: u32,
    pub late: u32,
    /// A worker's connection breaks; drawn for each message on it.
    pub broken: u32,
    /// The time between two pauses of a node, in milliseconds; 0 means never.
    pub pause_every: u64,
    /// The longest pause, in milliseconds.
    pub pause_max: u64,
    /// The machine's clock stands still during a pause.
    pub suspends: u32,
    /// The most that a clock gains or loses, in parts per million.
    pub drift: u64,
    /// The largest error in the database time that a lease reports, in milliseconds.
    pub misread: u64,
    /// When the database's clock is set.
    pub clock_steps: Vec<ClockStep>,
    /// How many times each server is asked to stop.
    pub stops: u64,
    /// A worker is asked to stop.
    pub drains: u32,
    /// The only disturbance is that servers and workers are asked to stop.
    pub polite: bool,
    pub starts: u64,
    pub stream_workers: usize,
    pub poll_workers: usize,
}

impl Profile {
    pub fn draw(random: &mut Random) -> Self {
        let one_of = |random: &mut Random, values: &[u32]| *random.pick(values);
        let polite = random.below(6) == 0;
        let crashes = match random.below(4) {
            _ if polite => 0,
            0 => 0,
            1 => 1,
            _ => random.between(2, 5),
        };
        let crashes = (0..crashes).map(|_| {
            let site = match random.below(4) {
                // Nodes rarely wait at this site, so it is chosen more often.
                0 => Site::WithdrawOverflow,
                _ => *random.pick(&Site::ALL),
            };
            let moment = *random.pick(&Moment::ALL);
            let passes = match site {
                Site::Commit | Site::Heads | Site::Publish | Site::Claim => random.between(1, 60),
                // These sites are rare: a crash at the second pass might never come.
                Site::WithdrawOverflow | Site::Leave => 1,
                _ => random.between(1, 5),
            };
            (site, moment, u32::try_from(passes).unwrap_or(1))
        });
        let crashes: Vec<_> = crashes.collect();
        let calm = polite || random.below(8) == 0;
        let chance = |random: &mut Random, values: &[u32]| match calm {
            true => 0,
            false => one_of(random, values),
        };
        let leaves = crashes.iter().any(|(site, ..)| *site == Site::Leave);
        Self {
            phase: random.millis(8_000, 30_000),
            crashes,
            unavailable: chance(random, &[0, 10, 50]),
            unknown: chance(random, &[0, 20, 120]),
            slow_commit: chance(random, &[0, 30, 150]),
            lost: chance(random, &[0, 10, 60]),
            doubled: chance(random, &[0, 10, 60]),
            late: chance(random, &[0, 20, 100]),
            broken: chance(random, &[0, 5, 30]),
            pause_every: u64::from(chance(random, &[0, 4_000, 9_000])),
            pause_max: u64::from(one_of(random, &[300, 3_000, 9_000])),
            suspends: one_of(random, &[0, 500]),
            drift: u64::from(chance(random, &[0, 20_000, 200_000])),
            misread: u64::from(chance(random, &[0, 0, 300, 3_000])),
            clock_steps: Vec::new(),
            stops: if polite || leaves { random.between(1, 3) } else { random.between(0, 1) },
            drains: one_of(random, if polite { &[200, 600] } else { &[0, 300] }),
            polite,
            starts: random.between(4, 16),
            stream_workers: random.index(4),
            poll_workers: random.index(3),
        }
    }

    /// Whether two machines may read different times at the same moment.
    pub fn is_skewed(&self) -> bool {
        let suspended = self.suspends > 0 && self.pause_every > 0;
        let set = !self.clock_steps.is_empty();
        self.drift > 0 || self.misread > 0 || self.late > 0 || suspended || set
    }

    /// Ends the faults: from now on every call and message succeeds.
    pub fn heal(&mut self) {
        let starts = self.starts;
        *self = Self {
            phase: self.phase,
            crashes: Vec::new(),
            unavailable: 0,
            unknown: 0,
            slow_commit: 0,
            lost: 0,
            doubled: 0,
            late: 0,
            broken: 0,
            pause_every: 0,
            pause_max: 0,
            suspends: 0,
            drift: 0,
            misread: 0,
            clock_steps: Vec::new(),
            stops: 0,
            drains: 0,
            polite: self.polite,
            starts,
            stream_workers: self.stream_workers,
            poll_workers: self.poll_workers,
        };
    }
}

/// The intervals of a node, shorter than in production so that a run reaches all of them.
fn node_options(random: &mut Random, defect: Option<Defect>) -> Options {
    Options {
        lease_ttl: random.millis(1_500, 4_000),
        reconnect_grace: random.millis(500, 2_000),
        record_start_after: random.millis(100, 1_000),
        overflow_after: random.millis(50, 500),
        claim_interval: random.millis(50, 200),
        claim_lease: random.millis(1_000, 4_000),
        head_interval: random.millis(100, 300),
        adopt_interval: random.millis(200, 1_000),
        sleep_horizon: random.millis(2_000, 10_000),
        batch_transitions_max: if random.below(4) == 0 { 2 } else { 2000 },
        queue_max: if random.below(4) == 0 { 1 } else { 1000 },
        commit_retry: random.millis(20, 80),
        mutant: defect.and_then(Defect::of_engine),
        ..Options::default()
    }
}

/// The options of nodes that share a store, within the limits that [`Options`] requires.
pub fn options_of_nodes(random: &mut Random, defect: Option<Defect>) -> [Options; 2] {
    let mut all = [(); 2].map(|()| node_options(random, defect));
    // A node may learn only from this write that it has lost an execution, and must learn it within the grace
    // period of the node that owns it now.
    let grace = all.iter().map(|options| options.reconnect_grace).min().unwrap_or_default();
    for options in &mut all {
        options.record_start_after = options.record_start_after.min(grace / 4);
    }
    all
}
