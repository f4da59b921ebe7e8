//! Steps that run several branches or items, and steps that are stopped before everything inside them has ended: by
//! the failure of one of them, or by their timeout.

use super::Decider;
use crate::definition::FailureMode;
use crate::error::{TaskError, builtin};
use crate::event::{Event, PayloadSource};
use crate::execution::{BlockWork, Handled, Lanes, Loop, NodeId, Part, Scope};
use crate::id::{ItemKey, StepPath};
use crate::tree::ScopeId;

impl Decider<'_> {
    /// Begins the next branch or item of a step, or ends the step if everything inside it has ended. To be
    /// called while there is such work.
    pub(super) fn advance_block(&mut self, id: NodeId) {
        match self.state().nodes.block_work(id) {
            Some(BlockWork::Begin(part, key)) => {
                let scope = Scope::Inside { node: id, part, item: Some(key) };
                self.run_inside(&scope);
            }
            Some(BlockWork::Settle) => self.settle(id),
            None => {}
        }
    }

    /// Ends a step inside which nothing lives any more.
    fn settle(&mut self, id: NodeId) {
        let node = self.state().nodes.get(id);
        let path = node.path.clone();
        let lanes = self.state().nodes.lanes(id);
        let first = lanes.and_then(|lanes| lanes.first_failure());
        let stopped = node.stopped.as_ref().and_then(|stopped| stopped.error.as_ref());
        let (error, origin) = match (stopped, first, lanes) {
            (Some(error), ..) => (error.clone(), path.clone()),
            (None, Some(first), Some(Lanes::Items(items))) => {
                (too_many_failures(items).caused_by(&first.error), path.clone())
            }
            (None, Some(first), _) => (first.error.clone(), first.origin.clone()),
            (None, None, Some(Lanes::Items(_))) => return self.emit(Event::LoopCompleted { path }),
            (None, None, _) => return self.emit(Event::ParallelCompleted { path }),
        };
        let others = lanes.into_iter().flat_map(|lanes| lanes.failures());
        let is_other = |failed: &&Handled| {
            stopped.is_some() || !first.is_some_and(|first| std::ptr::eq(first, *failed))
        };
        let others = others.filter(is_other).map(|failed| (&failed.origin, &failed.error));
        let error = error.suppressing(others);
        self.fail_step(path, error, origin);
    }

    /// Ends a branch or an item whose steps have ended.
    pub(super) fn complete_lane(
        &mut self,
        path: StepPath,
        (part, key): (Part, ItemKey),
        scope: ScopeId,
        output: PayloadSource,
    ) {
        match part {
            Part::Item => self.emit(Event::ItemCompleted { path, item: key, output }),
            _ => self.complete_branch(path, key, scope, output),
        }
    }

    fn complete_branch(
        &mut self,
        path: StepPath,
        branch: ItemKey,
        scope: ScopeId,
        output: PayloadSource,
    ) {
        let tree = &self.plan.tree;
        let parallel = self.state().parallel(&path);
        let has_completed = |earlier: &ScopeId| {
            let id = tree.branch_id(*earlier);
            *earlier == scope
                || id.is_some_and(|id| {
                    parallel.is_some_and(|parallel| parallel.output(id.as_str()).is_some())
                })
        };
        let ready = self.plan.branches(&path).filter(|other| {
            let after = tree.after(*other);
            after.contains(&scope) && after.iter().all(has_completed)
        });
        let ready = ready.filter_map(|other| tree.branch_id(other).cloned()).collect();
        self.emit(Event::BranchCompleted { path, branch, output, ready });
    }

    /// Ends a branch or an item with an error that nothing inside it took.
    pub(super) fn fail_lane(
        &mut self,
        path: StepPath,
        (part, key): (Part, ItemKey),
        error: TaskError,
        origin: StepPath,
    ) {
        let own = path.clone();
        self.emit(match part {
            Part::Item => Event::ItemFailed { path: own, item: key, error, origin },
            _ => Event::BranchFailed { path: own, branch: key, error, origin },
        });
        let mode = self.plan.step(&path).and_then(|step| step.kind.mode());
        if mode == Some(FailureMode::FailFast) {
            self.stop_block(path, None);
        }
    }

    pub(super) fn time_out_block(&mut self, path: StepPath) {
        let error = TaskError::builtin(builtin::BLOCK_TIMEOUT, "the step did not end in time");
        self.stop_block(path, Some(error));
    }

    /// Stops everything inside a step. Attempts that wait for their retry never start, and live attempts have
    /// the grace period. Without an error, the first branch or item that failed is the reason.
    fn stop_block(&mut self, path: StepPath, error: Option<TaskError>) {
        let grace_until = self.now + self.plan.cancel_grace;
        self.emit(Event::BlockStopped { path: path.clone(), error, grace_until });
        let state = self.state();
        let live = state.nodes.find(&path).into_iter().flat_map(|id| state.nodes.live_inside(id));
        let open = live.filter_map(|id| state.open_attempt(id.into()));
        let waiting = open.filter(|open| {
            self.is_far(open.attempt.scheduled_at) && open.attempt.started.is_none()
        });
        // As when the run stops, those beyond the room of this transition end later.
        let waiting = waiting.take(self.room()).map(|open| (open.path, open.task.attempt));
        let waiting: Vec<_> = waiting.collect();
        for (path, attempt) in waiting {
            self.emit(Event::AttemptWithdrawn { path, attempt });
        }
    }
}

fn too_many_failures(items: &Loop) -> TaskError {
    let failed = items.failures().count();
    let what = match items.count() {
        1 => "the only item failed".to_owned(),
        count => format!("{failed} of {count} items failed"),
    };
    TaskError::builtin(builtin::TOO_MANY_FAILURES, what)
}
