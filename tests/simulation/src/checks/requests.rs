//! Request ids. The same request gets the same answer whenever, wherever and however many times it is sent. A
//! different request under the same id is refused and changes nothing.

use std::collections::BTreeMap;

use recoup_core::command::Rejection;
use recoup_core::event::Event;
use recoup_core::execution::State;
use recoup_core::id::{ExecutionId, Namespace};
use recoup_engine::node::io::{Answer, Refusal};
use recoup_store::Executions;

use crate::catalog::NAMESPACE;
use crate::clients::{Op, REASON, Recorded};
use crate::wait::ready;
use crate::world::World;

const SAME: &str = "a repeated request gets the same answer";
const OTHER: &str = "a request id with another body is refused";

impl World<'_> {
    pub fn recorded(&self, op: &Op) -> Option<Recorded> {
        let request = op.request.as_ref()?;
        let Some(execution) = op.wish.target() else {
            let namespace = Namespace::from(NAMESPACE);
            let found = ready(self.store.started_by(&namespace, &request.id)).ok().flatten();
            return found.map(|(execution, digest)| Recorded { execution, digest });
        };
        self.ledger.events(execution).find_map(|event| match event {
            Event::RequestRecorded { request_id, digest } if *request_id == request.id => {
                Some(Recorded { execution, digest: *digest })
            }
            _ => None,
        })
    }

    /// Checks an answer. `before` was on record when this copy of the request arrived at the node.
    pub fn check_request(
        &mut self,
        op: &Op,
        before: Option<Recorded>,
        answer: &Result<Answer, Refusal>,
    ) {
        let Some(request) = &op.request else {
            return;
        };
        let now = self.recorded(op);
        let mine = |recorded: Recorded| recorded.digest == request.digest;
        let passing = matches!(
            answer,
            Err(Refusal::Overloaded { .. }
                | Refusal::Unavailable(_)
                | Refusal::OutcomeUnknown
                | Refusal::Stopping)
        );
        let reused = matches!(
            answer,
            Err(Refusal::RequestIdReused | Refusal::Rejected(Rejection::RequestIdReused))
        );
        let mut wrong = None;
        match answer {
            Ok(Answer::Done { outcome, .. }) => {
                // Once the request has taken effect, it is on record.
                if !now.is_some_and(|now| mine(now) && now.execution == outcome.execution) {
                    wrong = Some(OTHER);
                }
            }
            Ok(_) => {}
            Err(_) if reused => {
                if now.is_none_or(mine) {
                    wrong = Some(SAME);
                }
            }
            Err(_) => {}
        }
        match before {
            Some(before) if mine(before) && !passing => {
                let same = matches!(answer, Ok(Answer::Done { outcome, .. })
                    if outcome.execution == before.execution);
                if !same {
                    wrong = Some(SAME);
                }
            }
            // A start that needs a format that no start may have yet is refused for that.
            Some(before) if !mine(before) && matches!(answer, Err(Refusal::NotFinalized(_))) => {}
            Some(before) if !mine(before) && !passing && !reused => wrong = Some(OTHER),
            _ => {}
        }
        if let Some(invariant) = wrong {
            let answer = answer.as_ref().map_err(ToString::to_string).err();
            let what = format!("{op:?}: before {before:?}, now {now:?}, refused {answer:?}");
            self.violate(invariant, what);
        }
        if reused {
            self.ledger.refused_ops.insert(op.number);
        }
    }

    /// Checks at the end that each request took effect once, and that refused requests changed nothing.
    pub fn check_effects(&mut self) {
        let mut started: BTreeMap<String, ExecutionId> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (id, rows) in &self.ledger.histories {
            let Some(first) = rows.first() else {
                continue;
            };
            let op = self
                .clients
                .ops
                .values()
                .find(|op| op.input().as_bytes() == &first.state.input.data[..]);
            if let Some(request) = op.and_then(|op| op.request.as_ref())
                && let Some(other) = started.insert(request.id.clone(), *id)
            {
                wrong.push((SAME, format!("{} started {other} and {id}", request.id)));
            }
            if let Some(op) = op
                && self.ledger.refused_ops.contains(&op.number)
            {
                wrong.push((OTHER, format!("{op:?} started {id}")));
            }
            let mut done: BTreeMap<u64, usize> = BTreeMap::new();
            for row in rows {
                let mut asked: Vec<_> = row.events.iter().filter_map(asked_by).collect();
                asked.dedup();
                for op in asked {
                    *done.entry(op).or_insert(0) += 1;
                }
            }
            for (op, times) in done {
                let has_request = self.clients.ops.get(&op).is_some_and(|op| op.request.is_some());
                if self.ledger.refused_ops.contains(&op) {
                    wrong.push((OTHER, format!("op {op} changed {id}")));
                } else if times > 1 && has_request {
                    wrong.push((SAME, format!("op {op} changed {id} {times} times")));
                }
            }
        }
        for (invariant, what) in wrong {
            self.violate(invariant, what);
        }
    }
}

/// The op that caused this event.
fn asked_by(event: &Event) -> Option<u64> {
    let reason = match event {
        Event::CancelRequested { reason } | Event::CompensationSkipped { reason, .. } => reason,
        Event::CompensationRetried { reason, .. } => reason,
        Event::ExecutionEnded { state: State::Terminated, error: Some(error) } => &error.message,
        _ => return None,
    };
    reason.strip_prefix(REASON)?.parse().ok()
}
