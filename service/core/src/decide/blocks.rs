//! Steps that run several branches, and steps that are stopped before everything inside them has ended: by
//! the failure of a branch, or by their timeout.

use super::Decider;
use crate::definition::ParallelMode;
use crate::error::{TaskError, builtin};
use crate::event::{Event, PayloadSource};
use crate::execution::{BlockWork, NodeId, Part, Scope};
use crate::id::{ItemKey, StepPath};
use crate::plan::StepKind;
use crate::tree::ScopeId;

impl Decider<'_> {
    /// Begins the next branch of a step, or ends the step if everything inside it has ended. To be called
    /// while there is such work.
    pub(super) fn advance_block(&mut self, id: NodeId) {
        match self.state().nodes.block_work(id) {
            Some(BlockWork::BeginBranch(branch)) => {
                let scope = Scope::Inside { node: id, part: Part::Branch, item: Some(branch) };
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
        let parallel = self.state().nodes.parallel(id);
        let first = parallel.and_then(|parallel| parallel.first_failure());
        let stopped = node.stopped.as_ref().and_then(|stopped| stopped.error.as_ref());
        let (error, origin) = match (stopped, first) {
            (Some(error), _) => (error, &path),
            (None, Some((_, failed))) => (&failed.error, &failed.origin),
            (None, None) => return self.emit(Event::ParallelCompleted { path }),
        };
        let failures = parallel.into_iter().flat_map(|parallel| parallel.failures());
        let is_other =
            |branch: &ItemKey| stopped.is_some() || first.is_none_or(|(own, _)| own != branch);
        let others = failures.filter(|(branch, _)| is_other(branch));
        let others = others.map(|(_, failed)| (&failed.origin, &failed.error));
        let (error, origin) = (error.clone().suppressing(others), origin.clone());
        self.fail_step(path, error, origin);
    }

    pub(super) fn complete_branch(
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

    /// Ends a branch with an error that nothing inside it took.
    pub(super) fn fail_branch(
        &mut self,
        path: StepPath,
        branch: ItemKey,
        error: TaskError,
        origin: StepPath,
    ) {
        self.emit(Event::BranchFailed { path: path.clone(), branch, error, origin });
        let plan = self.plan.step(&path).map(|step| &step.kind);
        if let Some(StepKind::Parallel(plan)) = plan
            && plan.mode == ParallelMode::FailFast
        {
            self.stop_block(path, None);
        }
    }

    pub(super) fn time_out_block(&mut self, path: StepPath) {
        let error = TaskError::builtin(builtin::BLOCK_TIMEOUT, "the step did not end in time");
        self.stop_block(path, Some(error));
    }

    /// Stops everything inside a step. Attempts that wait for their retry never start, and live attempts have
    /// the grace period. Without an error, the first branch that failed is the reason.
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
