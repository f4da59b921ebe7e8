//! For tests: checks the values that the fold keeps beside the nodes against a walk over everything.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

impl Execution {
    /// Asserts that every counter, set and sum equals the result of a walk over the nodes and
    /// compensations.
    pub(crate) fn assert_kept(&self) {
        assert_eq!(self.weight(), self.weight_by_walk());

        let mut counters: BTreeMap<Scope, Counters> = BTreeMap::new();
        let mut open = BTreeSet::new();
        let (mut beginning, mut settled) = (BTreeSet::new(), BTreeSet::new());
        let mut deadlines = BTreeSet::new();
        let mut blocks = BTreeSet::new();
        for (id, node) in self.nodes.ids().zip(self.nodes.iter()) {
            let own = counters.entry(node.scope.clone()).or_default();
            let is_running = matches!(node.state, NodeState::Running);
            own.begun += 1;
            own.running += u32::from(is_running);
            if node.has_output() {
                own.last_output = Some(id);
            }
            own.returned = self.counters(&node.scope).returned;
            let part = node.part.filter(|_| is_running && node.stopped.is_none());
            if let Some(part) = part.filter(|part| !part.is_keyed()) {
                open.insert(Scope::Inside { node: id, part, item: None });
            }
            if let Scope::Inside { node: owner, part, item: Some(key) } = &node.scope {
                let has_ended = match self.nodes.lanes(*owner).expect("it has branches or items") {
                    Lanes::Branches(parallel) => parallel.results().any(|(own, _)| own == key),
                    Lanes::Items(items) => {
                        let index = items.index(key).expect("it is an item");
                        items.results().any(|(own, _)| own == index)
                    }
                };
                let around = self.nodes.get(*owner);
                let goes_on = around.is_running() && around.stopped.is_none();
                if goes_on && around.part == Some(*part) && !has_ended {
                    open.insert(node.scope.clone());
                }
            }
            if is_running && node.stopped.is_some() {
                let attempts = self.nodes.ids().filter(|inner| {
                    let task = self.nodes.get(*inner).task();
                    task.is_some_and(|task| task.open.is_some()) && self.nodes.is_inside(*inner, id)
                });
                let live: BTreeSet<_> = self.nodes.live_inside(id).collect();
                assert_eq!(live, attempts.collect(), "{}", node.path);
            }
            match self.nodes.block_work(id) {
                Some(BlockWork::Begin(..)) => beginning.insert(id),
                Some(BlockWork::Settle) => settled.insert(id),
                None => false,
            };
            let is_handling = matches!(node.part, Some(Part::Handler(_)));
            if is_running && node.stopped.is_none() && !is_handling {
                deadlines.extend(node.deadline.map(|at| (at, id)));
            }
            if is_running && node.part.is_some() {
                blocks.insert(id);
            }
        }
        assert_eq!(self.nodes.due(), (&beginning, &settled));
        assert_eq!(self.nodes.first_deadline(), deadlines.first().copied());
        assert_eq!(self.nodes.running_blocks().collect::<BTreeSet<_>>(), blocks);
        let is_idle = |scope: &&Scope| counters.get(*scope).is_none_or(|own| own.running == 0);
        let idle = open.iter().filter(is_idle).cloned().collect();
        assert_eq!(self.nodes.scopes(), (&open, &idle));
        for scope in [Scope::Steps, Scope::OnFailure, Scope::Finally] {
            let own = counters.remove(&scope).unwrap_or_default();
            assert_eq!(self.counters(&scope), own, "{scope:?}");
        }
        for (scope, own) in counters {
            assert_eq!(self.counters(&scope), own, "{scope:?}");
        }

        let steps = self.steps().chain(self.cleanup_steps());
        let steps = steps.filter_map(|node| Some((node.path.clone(), node.task()?)));
        let undone = self.compensations().iter();
        let undone = undone.filter_map(|one| Some((one.step.compensation(), one.task.as_ref()?)));
        let walked = steps.chain(undone);
        let walked: Vec<_> = walked
            .filter_map(|(path, task)| Some(Open { path, task, attempt: task.open.as_ref()? }))
            .collect();
        assert_eq!(self.open_attempts().collect::<Vec<_>>(), walked);
        assert_eq!(self.open_attempt_count(), walked.len());
        let first = walked.iter().map(|open| open.attempt.scheduled_at).min();
        assert_eq!(self.first_scheduled(), first);
        let mut oldest: BTreeMap<String, Timestamp> = BTreeMap::new();
        for open in &walked {
            let at = open.task.first_scheduled_at;
            let own = oldest.entry(open.path.pattern().into_owned()).or_insert(at);
            *own = at.min(*own);
        }
        for (step, at) in oldest {
            let kept = self.open.oldest_of(&step.as_str().into());
            let kept = kept.and_then(|(at, task)| Some((at, self.open_attempt(task)?)));
            let kept = kept.map(|(at, open)| (open.path.pattern().into_owned(), at));
            assert_eq!(kept, Some((step, at)));
        }

        let is_open = |one: &&Compensation| {
            matches!(one.state, CompensationStepState::Due | CompensationStepState::Running)
        };
        let unfinished: Vec<_> = self.compensations().iter().filter(is_open).collect();
        assert_eq!(self.ledger.unfinished().collect::<Vec<_>>(), unfinished);
        assert_eq!(self.ledger.unfinished_count(), unfinished.len());
        let is_parked =
            |one: &&Compensation| matches!(one.state, CompensationStepState::Parked { .. });
        let parked: Vec<_> = self.compensations().iter().filter(is_parked).collect();
        assert_eq!(self.ledger.parked().collect::<Vec<_>>(), parked);
        let first = self.compensations().iter().find(|one| one.state == CompensationStepState::Due);
        assert_eq!(self.ledger.next_due(), first);
    }
}
