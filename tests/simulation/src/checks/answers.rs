//! Compares the answers and hand-outs of nodes with the histories at that moment.

use recoup_core::command::{Rejection, TaskId};
use recoup_core::error::{TaskError, builtin};
use recoup_core::event::Event;
use recoup_core::execution::State;
use recoup_core::id::ExecutionId;
use recoup_engine::node::Node;
use recoup_engine::node::io::{Answer, Refusal};
use recoup_engine::{HandedTask, TaskContent};

use crate::clients::{Op, Wish};
use crate::machines::ReplyId;
use crate::trace::short;
use crate::workers::Report;
use crate::world::World;

const LOST: &str = "nothing acknowledged is lost";

impl World<'_> {
    pub fn check_client_answer(
        &mut self,
        machine: usize,
        op: &Op,
        answer: &Result<Answer, Refusal>,
    ) {
        match answer {
            Ok(Answer::Done { outcome, is_own }) => {
                self.check_outcome(machine, outcome);
                self.ledger.known.insert(outcome.execution);
                let (id, state) = (outcome.execution, &**outcome);
                let happened =
                    |world: &Self, is: &dyn Fn(&Event) -> bool| world.ledger.events(id).any(is);
                let fits = match &op.wish {
                    Wish::Start { .. } => {
                        if let Some(request) = &op.request {
                            let started = &mut self.ledger.started;
                            let first = *started.entry(request.id.clone()).or_insert(id);
                            if first != id {
                                let what = format!("{first} and {id} of {}", request.id);
                                self.violate("a request id starts one execution", what);
                            }
                        }
                        // A new execution was started by this very request.
                        let latest = self.ledger.latest(id);
                        !is_own || latest.is_some_and(|own| own.input.data == op.input().as_bytes())
                    }
                    Wish::Await(asked, _) => *asked == id,
                    Wish::Get(_) => false,
                    Wish::Cancel(_) => {
                        happened(self, &|event| matches!(event, Event::CancelRequested { .. }))
                    }
                    // After the end of an execution, it stops a compensation that an operator had retried.
                    Wish::Terminate(_) => {
                        state.state == State::Terminated
                            || happened(
                                self,
                                &|event| matches!(event, Event::CompensationParked { error, .. } if error.error_type == builtin::TERMINATED),
                            )
                    }
                    Wish::RetryCompensation(..) => {
                        happened(self, &|event| matches!(event, Event::CompensationRetried { .. }))
                    }
                    Wish::SkipCompensation(_, step) => happened(
                        self,
                        &|event| matches!(event, Event::CompensationSkipped { path, .. } if path == step),
                    ),
                };
                if !fits {
                    self.violate(LOST, format!("{op:?} was answered with {state:?}"));
                }
                if let (Some(request), false) = (&op.request, matches!(op.wish, Wish::Start { .. }))
                    && !happened(self, &|event| {
                        matches!(event, Event::RequestRecorded { request_id, .. }
                            if *request_id == request.id)
                    })
                {
                    self.violate(LOST, format!("{op:?} is not on record"));
                }
            }
            Ok(Answer::Snapshot(snapshot)) => {
                self.check_state(machine, &snapshot.state);
                for live in &snapshot.live {
                    let open = snapshot.state.open_attempts();
                    let is_open =
                        open.into_iter().any(|open| snapshot.state.task_id(&open) == live.task);
                    if !is_open {
                        self.violate("live attempts are open", format!("{live:?}"));
                    }
                }
            }
            Ok(Answer::Recorded { .. } | Answer::Beat { .. } | Answer::Released) => {
                self.violate("answers fit their questions", format!("{op:?}: a worker's"));
            }
            Err(refusal) => self.check_refusal(op, refusal),
        }
    }

    fn check_refusal(&mut self, op: &Op, refusal: &Refusal) {
        let target = op.wish.target();
        let is_so = match (refusal, target) {
            (Refusal::Rejected(Rejection::ExecutionEnded(state)), Some(id)) => {
                self.ledger.latest(id).is_some_and(|latest| latest.state == *state)
            }
            (Refusal::Rejected(Rejection::NotParked), Some(_)) => true,
            // Whether the refusal is right is checked against what is on record.
            (Refusal::RequestIdReused, None) => true,
            (Refusal::Rejected(Rejection::RequestIdReused), Some(_)) => true,
            (Refusal::Rejected(_) | Refusal::RequestIdReused, _) => false,
            (Refusal::KeyHeld { execution, .. }, None) => self.ledger.latest(*execution).is_some(),
            (Refusal::KeyHeld { .. }, Some(_)) => false,
            (Refusal::NotFinalized(refused), None) => !self.permits(refused),
            (
                Refusal::Refused(_)
                | Refusal::Quarantined(_)
                | Refusal::NotQuarantined
                | Refusal::TooNew(_)
                | Refusal::NotFinalized(_)
                | Refusal::Failed,
                _,
            ) => false,
            (
                Refusal::Overloaded { .. }
                | Refusal::Unavailable(_)
                | Refusal::OutcomeUnknown
                | Refusal::Stopping,
                _,
            ) => true,
        };
        if !is_so {
            self.violate("refusals are true", format!("{op:?}: {refusal}"));
        }
    }

    pub fn check_worker_answer(
        &mut self,
        machine: usize,
        report: &Report,
        answer: &Result<Answer, Refusal>,
    ) {
        let task = report.task().clone();
        match (report, answer) {
            (_, Ok(Answer::Done { .. } | Answer::Snapshot(_))) => {
                self.violate("answers fit their questions", format!("{report:?}"));
            }
            (Report::Complete { output, .. }, Ok(Answer::Recorded { sequence, .. })) => {
                self.check_recorded(machine, task.execution, *sequence);
                let recorded = self.ledger.events(task.execution).any(|event| {
                    matches!(event, Event::StepCompleted { path, attempt, output: recorded, .. }
                        if *path == task.path && *attempt == task.attempt
                            && (recorded == output || path.compensated().is_some()))
                });
                if !recorded {
                    self.violate(LOST, format!("{report:?}"));
                }
                let place = (task.execution, task.run, task.path.clone());
                let own = (task.attempt, output.clone());
                let (attempt, first) = self.ledger.completed.entry(place).or_insert(own);
                // The output of a compensation is not kept, so any two are the same.
                let same = first == output || task.path.compensated().is_some();
                if *attempt != task.attempt || !same {
                    let what = format!("{attempt} {first:?} and {report:?}");
                    self.violate("one acknowledged completion of a step", what);
                }
            }
            (Report::Fail { error, .. }, Ok(Answer::Recorded { sequence, .. })) => {
                self.check_recorded(machine, task.execution, *sequence);
                let recorded = self.ledger.events(task.execution).any(|event| {
                    matches!(event, Event::AttemptFailed(failed)
                        if failed.path == task.path && failed.attempt == task.attempt
                            && is_cause(&failed.error, &error.error_type))
                });
                if !recorded {
                    self.violate(LOST, format!("{report:?}"));
                }
            }
            (Report::Beat { .. }, Ok(Answer::Recorded { .. } | Answer::Beat { .. })) => {}
            (Report::Release { .. }, Ok(Answer::Recorded { .. } | Answer::Released)) => {}
            (_, Ok(Answer::Beat { .. } | Answer::Released)) => {
                self.violate("answers fit their questions", format!("{report:?}"));
            }
            (_, Err(Refusal::Rejected(Rejection::AttemptClosed))) => {
                if self.is_open(&task) {
                    self.violate("refusals are true", format!("{report:?} is open"));
                }
            }
            (
                _,
                Err(
                    Refusal::Overloaded { .. }
                    | Refusal::Unavailable(_)
                    | Refusal::OutcomeUnknown
                    | Refusal::Stopping,
                ),
            ) => {}
            (_, Err(refusal)) => {
                self.violate("refusals are true", format!("{report:?}: {refusal}"));
            }
        }
    }

    fn is_open(&self, task: &TaskId) -> bool {
        let open = |id: ExecutionId| {
            let state = self.ledger.latest(id)?;
            Some(state.open_attempts().any(|open| state.task_id(&open) == *task))
        };
        open(task.execution).unwrap_or(false)
    }

    /// Checks a task that leaves a node.
    pub fn check_hand_out(&mut self, machine: usize, node: &Node<ReplyId>, handed: &HandedTask) {
        let task = &handed.id;
        let place = format!("{} {}:{}", short(&task.execution), task.path, task.attempt);
        // The state after the transition that scheduled the attempt.
        let index = usize::try_from(task.sequence).unwrap_or(0).wrapping_sub(1);
        let rows = self.ledger.histories.get(&task.execution);
        let state = rows.and_then(|rows| rows.get(index)).map(|row| &row.state);
        let content = state.and_then(|state| {
            let open = state.open_attempts().find(|open| state.task_id(open) == *task)?;
            Some(TaskContent::of(state, &open))
        });
        if content.as_ref() != Some(&*handed.content) {
            let what = format!("{place}: {content:?} and {:?}", handed.content);
            self.violate("a task says what the history says", what);
        }
        // With clocks that disagree, another node may have found by its clock that it was due.
        if handed.content.scheduled_at > handed.handed_at && !self.skewed {
            self.violate("only due attempts are handed out", place.clone());
        }
        let read = node
            .node_id()
            .is_some_and(|id| self.ledger.read_in_life.contains(&(id, task.execution)));
        if !read {
            let what = format!("{place} by machine {machine} as {:?}", node.node_id());
            self.violate("a new life hands out only what it has read", what);
        }
    }

    /// Checks a task that has left its process on the way to a worker.
    pub fn check_sent(&mut self, handed: &HandedTask) {
        let task = &handed.id;
        let place = format!("{} {}:{}", short(&task.execution), task.path, task.attempt);
        if handed.plan.is_at_most_once(&task.path) {
            let count = self.ledger.handed_once.entry(task.clone()).or_insert(0);
            *count += 1;
            if *count > 1 {
                self.violate("at most once is handed out once", place);
            }
        }
    }
}

fn is_cause(error: &TaskError, error_type: &str) -> bool {
    error.error_type == error_type
        || error.cause.as_deref().is_some_and(|cause| is_cause(cause, error_type))
}
