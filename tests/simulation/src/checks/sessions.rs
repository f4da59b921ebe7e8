//! Compares the sessions that nodes report as lost with the messages that really came from them.

use recoup_core::command::TaskId;
use recoup_core::event::AttemptFailed;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;
use recoup_engine::node::io::Input;
use recoup_store::{FeedRow, NodeId};

use crate::catalog::NAMESPACE;
use crate::ledger::Process;
use crate::machines::ReplyId;
use crate::trace::short;
use crate::world::{EPOCH_MICROS, World};

const LOST: &str = "a lost worker's session has ended";

impl World<'_> {
    pub fn node_process(&self, machine: usize) -> Process {
        (machine, self.machines[machine].life)
    }

    /// A message has arrived for a node.
    pub fn heard(&mut self, machine: usize, input: &Input<ReplyId>) {
        let own = self.machines[machine].clock.elapsed(self.now());
        let process = self.node_process(machine);
        self.ledger.sessions.heard(process, own, input);
    }

    /// A node has taken a step, at the time that it believed it to be.
    pub fn note_step(&mut self, machine: usize, says: Timestamp) {
        let own = self.machines[machine].clock.elapsed(self.now());
        let process = self.node_process(machine);
        self.ledger.sessions.step(process, own, says);
    }

    /// Checks a node's report that it has lost a session.
    pub fn check_lost_session(&mut self, node: NodeId, row: &FeedRow) {
        let name = row.id.strip_prefix("session-").and_then(|rest| rest.rsplit_once('-'));
        let name = name.and_then(|(name, _)| name.rsplit_once('-'));
        let name = name.and_then(|(name, _)| name.split_once('/'));
        let Some((_, session)) = name.filter(|(namespace, _)| *namespace == NAMESPACE) else {
            return self.violate("loose events are of sessions", row.id.clone());
        };
        let Some(process) = self.ledger.sessions.process_of.get(&node).copied() else {
            return self.violate("nodes have a process", format!("{node:?}"));
        };
        if !self.ledger.sessions_lost.insert(row.id.clone()) {
            // The same batch was sent again.
            return;
        }
        let objection = self.ledger.sessions.objection(process, session, row.at);
        if let Some(objection) = objection {
            let at = row.at.as_micros() - EPOCH_MICROS;
            let what = format!("{session}, by process {process:?} at its {at} us: {objection}");
            self.violate(LOST, what);
        }
        if self.profile.polite {
            self.violate("whoever stops politely loses nobody", row.id.clone());
        }
        self.ledger.sessions.lost(process, session, row.at);
    }

    /// Checks an attempt that was closed because its worker was lost: the node must have reported the session
    /// as lost too.
    pub fn check_lost_attempt(
        &mut self,
        node: NodeId,
        id: ExecutionId,
        task: &TaskId,
        failed: &AttemptFailed,
        decided_at: Timestamp,
    ) {
        let process = self.ledger.sessions.process_of.get(&node).copied().unwrap_or_default();
        if !self.ledger.sessions.lost_with(process, &failed.worker, task, decided_at) {
            let (path, attempt, worker) = (&failed.path, failed.attempt, &failed.worker);
            let what = format!("{}, {path}:{attempt}, worker `{worker}`", short(&id));
            self.violate(LOST, what);
        }
    }
}
