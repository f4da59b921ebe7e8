//! Properties that hold for an execution whatever commands it gets, in whatever order.

use proptest::prelude::*;

use super::*;

/// Something that may happen to an execution, whether or not it fits the state.
#[derive(Clone, Debug)]
enum Move {
    Complete,
    Fail { non_retryable: bool },
    Lose,
    TimeOut,
    Cancel,
    Terminate,
    RetryCompensation,
    Wake { seconds: u64 },
}

/// Groups of one to three moves; each group is decided in one transition.
fn moves() -> impl Strategy<Value = Vec<Vec<Move>>> {
    let one = prop_oneof![
        6 => Just(Move::Complete),
        4 => any::<bool>().prop_map(|non_retryable| Move::Fail { non_retryable }),
        2 => Just(Move::Lose),
        1 => Just(Move::TimeOut),
        1 => Just(Move::Cancel),
        1 => Just(Move::Terminate),
        1 => Just(Move::RetryCompensation),
        2 => (0..100_u64).prop_map(|seconds| Move::Wake { seconds }),
    ];
    proptest::collection::vec(proptest::collection::vec(one, 1..4), 0..40)
}

/// The command that makes this move on the first open attempt; none if the move needs an attempt and none
/// is open.
fn command(rig: &mut Rig, one: Move) -> Option<Command> {
    let open = rig.state().open_attempts().next().map(|open| rig.state().task_id(&open));
    let worker = "w".to_owned();
    Some(match (one, open) {
        (Move::Complete, Some(task)) => {
            Command::CompleteTask { task, output: Payload::null(), worker }
        }
        (Move::Fail { non_retryable }, Some(task)) => {
            let error = if non_retryable { final_error() } else { declined() };
            Command::FailTask { task, error, worker }
        }
        (Move::Lose, Some(task)) => Command::LoseWorker { task, worker },
        (Move::TimeOut, Some(task)) => {
            let timeout = AttemptTimeout::StartToClose;
            Command::TimeOutTask { task, timeout, possibly_started: true, worker }
        }
        (Move::Cancel, _) => Command::CancelExecution { reason: "x".into() },
        (Move::Terminate, _) => terminate("x"),
        (Move::RetryCompensation, _) => {
            Command::RetryCompensation { step: None, reason: String::new() }
        }
        (Move::Wake { seconds }, _) => {
            rig.now = rig.now + Duration::from_secs(seconds);
            Command::Wake
        }
        (_, None) => return None,
    })
}

proptest! {
    #[test]
    fn invariants_hold_for_any_sequence_of_commands(moves in moves(), ignore in any::<bool>()) {
        let mut workflow = workflow(vec![step("a", 2), step("b", 3), step("c", 1)]);
        if ignore {
            workflow.steps.steps[1].on_error = OnError::Ignore;
        }
        workflow.finally = vec![finally("tidy")];
        workflow.timeout = Some(300 * SECOND);
        workflow.cleanup_timeout = Some(200 * SECOND);
        let mut rig = Rig::new(&workflow);
        for together in moves {
            rig.now = rig.now + Duration::from_millis(10);
            let commands = together.into_iter().filter_map(|one| command(&mut rig, one));
            let commands: Vec<_> = commands.map(|command| (command, None)).collect();
            // Some commands are rejected, which is fine.
            let _ = rig.submit_together(commands);
        }
        // Let the execution come to its end.
        for _ in 0..100 {
            if !rig.state().is_active() {
                break;
            }
            let open = rig.state().open_attempts().next().map(|open| rig.state().task_id(&open));
            match open {
                Some(task) => {
                    rig.pass_to_schedule();
                    let worker = "w".to_owned();
                    let complete = Command::CompleteTask { task, output: Payload::null(), worker };
                    let _ = rig.submit(complete);
                }
                None => rig.wake(),
            }
        }
        let (state, compensation) = rig.ended();
        let settled = [CompensationState::None, CompensationState::Done, CompensationState::Parked];
        prop_assert!(settled.contains(&compensation));
        let ends = rig.events.iter().filter(|e| matches!(e, Event::ExecutionEnded { .. })).count();
        prop_assert_eq!(ends, 1, "it ends exactly once");
        let started = rig.started();
        prop_assert!(started.iter().filter(|path| *path == "tidy").count() <= 1);
        if state == State::Terminated {
            prop_assert!(rig.kinds.contains(&FailureKind::ExecutionTerminated));
        }
        for (path, max) in [("a", 2), ("b", 3), ("c", 1)] {
            let attempts = rig.events.iter().filter(|event| matches!(
                event, Event::AttemptScheduled { path: p, .. } if p.as_str() == path));
            prop_assert!(attempts.count() <= max, "{} has at most {} attempts", path, max);
        }
        if compensation == CompensationState::Done && state.is_failure() {
            for node in rig.state().steps() {
                let undone = rig.state().compensation_of(&node.path).is_some();
                let took_effect = matches!(node.state, NodeState::Completed { .. });
                prop_assert!(undone || !took_effect, "{} completed and was not undone", node.path);
            }
        }
    }
}
