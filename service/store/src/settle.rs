//! Decides the verdict on a transition, or on a start with a key, from what a store found at the place where it
//! is to be written.
//!
//! All stores follow these rules: they read rows, ask this module, and write what may be written. A store may
//! ask in stages, each time with what it has found so far, because an earlier rule here decides regardless of
//! the later ones.

use std::collections::BTreeSet;

use recoup_core::id::{ExecutionId, TransitionId};
use recoup_core::key::{self, KeyVerdict};

use crate::contract::{Holder, KeySettled, KeyedStart, Settled, Transition};

/// The obstacles that a store found for a transition. The default is that there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The transition that already has this place in the history.
    pub winner: Option<TransitionId>,
    /// The execution is in quarantine.
    pub quarantined: bool,
    /// The transition continues an execution that retention has deleted.
    pub gone: bool,
    /// The earlier use of its request id, within the time for which request ids are kept.
    pub request: Option<TakenRequest>,
    /// The place before its own is free, although the transition is not the first of its history.
    pub gap: bool,
    /// The id of one of its events that is already on the feed.
    pub event: Option<String>,
}

/// The earlier use of a request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TakenRequest {
    pub execution: ExecutionId,
    pub digest: u64,
    /// Whether the request started this execution. False if it was settled on an execution that held its key.
    pub started: bool,
    /// An earlier copy of this very start used the id. A store that cannot tell sets this to false.
    pub repeated: bool,
}

/// The verdict on a transition that must not be written. None if it may be written.
pub(crate) fn verdict(transition: &Transition, found: &Found) -> Option<Settled> {
    if let Some(winner) = found.winner {
        let is_mine = winner == transition.transition_id;
        return Some(if is_mine { Settled::Won } else { Settled::Lost });
    }
    if found.quarantined {
        return Some(Settled::Quarantined);
    }
    if found.gone {
        return Some(Settled::Lost);
    }
    if let Some(reason) = flaw(transition) {
        return Some(Settled::Refused(reason));
    }
    if let Some(TakenRequest { execution, digest, started, .. }) = found.request {
        return Some(Settled::RequestTaken { execution, digest, started });
    }
    misfit(transition, found).map(Settled::Refused)
}

/// The verdict on a start that must not be written, given the execution that holds its key. None if it may take
/// the key and be written.
pub(crate) fn key_verdict(
    start: &KeyedStart,
    found: &Found,
    holder: Option<&Holder>,
) -> Option<KeySettled> {
    let KeyedStart { transition, on_running, on_ended, .. } = start;
    if let Some(winner) = found.winner {
        let is_mine = winner == transition.transition_id;
        let other = || KeySettled::Refused("the execution exists already".into());
        return Some(if is_mine { KeySettled::Won } else { other() });
    }
    if transition.sequence != 1 {
        return Some(KeySettled::Refused("a start is the first transition".into()));
    }
    if let Some(reason) = flaw(transition) {
        return Some(KeySettled::Refused(reason));
    }
    if let Some(TakenRequest { execution, digest, started, repeated }) = found.request {
        return Some(if repeated && !started {
            KeySettled::UseExisting { execution }
        } else {
            KeySettled::RequestTaken { execution, digest, started }
        });
    }
    if let Some(holder) = holder {
        let execution = holder.execution;
        let Some(standing) = holder.standing() else {
            return Some(KeySettled::TooNew { execution });
        };
        match key::decide(Some(standing), *on_running, *on_ended) {
            KeyVerdict::UseExisting => return Some(KeySettled::UseExisting { execution }),
            KeyVerdict::Reject => {
                return Some(KeySettled::Rejected { execution, state: standing.0 });
            }
            KeyVerdict::Take => {}
        }
    }
    misfit(transition, found).map(KeySettled::Refused)
}

/// The reason why a transition is invalid in itself, regardless of what the store holds.
pub(crate) fn flaw(transition: &Transition) -> Option<String> {
    let Transition { sequence, index, feed, .. } = transition;
    if *sequence == 0 {
        return Some("a history begins at sequence 1".into());
    }
    if *sequence == 1 && index.is_none() {
        return Some("a start needs an index row".into());
    }
    // For a state that only a newer binary knows, any end time is accepted.
    let state = index.as_ref().and_then(|row| Some((row.state.known()?, row.ended_at)));
    if state.is_some_and(|(state, ended_at)| state.is_ended() != ended_at.is_some()) {
        return Some("an execution has an end time if and only if it has ended".into());
    }
    let mut ids = BTreeSet::new();
    feed.iter().find(|event| !ids.insert(&event.id)).map(|event| twice(&event.id))
}

/// The reason why a transition does not fit the rows that are in the store.
fn misfit(transition: &Transition, found: &Found) -> Option<String> {
    if found.gap {
        return Some(format!("sequence {} would leave a gap", transition.sequence));
    }
    found.event.as_deref().map(twice)
}

fn twice(event: &str) -> String {
    format!("there is a failure event {event} already")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use recoup_core::execution::{CompensationState, Phase, State};
    use recoup_core::failure_event::FailureKind;
    use recoup_core::key::{OnEnded, OnRunning};
    use recoup_core::time::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::contract::{FeedRow, IndexRow, Named};

    const MINE: TransitionId = TransitionId(Uuid::from_u128(1));
    const OTHER: TransitionId = TransitionId(Uuid::from_u128(2));
    const HELD: ExecutionId = ExecutionId(Uuid::from_u128(3));

    fn index() -> IndexRow {
        IndexRow {
            format: 1,
            namespace: "default".into(),
            workflow: "order".into(),
            version: 1,
            key: None,
            state: State::Running.into(),
            phase: Phase::Steps.into(),
            compensation: CompensationState::None.into(),
            run: 1,
            error_type: None,
            started_at: Timestamp::default(),
            ended_at: None,
            wake_at: None,
        }
    }

    fn transition(sequence: u64) -> Transition {
        Transition {
            execution: ExecutionId(Uuid::from_u128(9)),
            sequence,
            transition_id: MINE,
            format: 1,
            data: Bytes::new(),
            index: (sequence == 1).then(index),
            request: None,
            feed: vec![],
            overflow_done: vec![],
            may_be_gone: true,
        }
    }

    fn event(id: &str) -> FeedRow {
        FeedRow {
            id: id.into(),
            namespace: "default".into(),
            kind: FailureKind::StepFailed.into(),
            workflow: "order".into(),
            error_type: String::new(),
            execution: None,
            fingerprint: String::new(),
            at: Timestamp::default(),
            format: 1,
            data: Bytes::new(),
        }
    }

    fn taken(started: bool, repeated: bool) -> Option<TakenRequest> {
        Some(TakenRequest { execution: HELD, digest: 7, started, repeated })
    }

    fn refused(settled: Option<Settled>) -> String {
        match settled {
            Some(Settled::Refused(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    /// Goes through the rules from the last to the first. Each step keeps all earlier findings and adds one,
    /// which must decide the verdict.
    #[test]
    fn first_rule_that_applies_decides_the_verdict() {
        let next = transition(2);
        let mut found = Found::default();
        assert_eq!(verdict(&next, &found), None, "no rule applies");
        found.event = Some("e".into());
        assert_eq!(refused(verdict(&next, &found)), "there is a failure event e already");
        found.gap = true;
        assert_eq!(refused(verdict(&next, &found)), "sequence 2 would leave a gap");
        found.request = taken(true, false);
        let settled = Settled::RequestTaken { execution: HELD, digest: 7, started: true };
        assert_eq!(verdict(&next, &found), Some(settled));
        let flawed = Transition { index: None, ..transition(1) };
        assert_eq!(refused(verdict(&flawed, &found)), "a start needs an index row");
        found.gone = true;
        assert_eq!(verdict(&flawed, &found), Some(Settled::Lost));
        found.quarantined = true;
        assert_eq!(verdict(&flawed, &found), Some(Settled::Quarantined));
        found.winner = Some(OTHER);
        assert_eq!(verdict(&flawed, &found), Some(Settled::Lost));
        found.winner = Some(MINE);
        assert_eq!(verdict(&flawed, &found), Some(Settled::Won), "sent again");
    }

    #[test]
    fn flawed_transition_is_refused_with_its_flaw() {
        let ended = Some(Timestamp::default());
        let rows = [
            (transition(1), None),
            (transition(0), Some("a history begins at sequence 1")),
            (Transition { index: None, ..transition(1) }, Some("a start needs an index row")),
            (transition(2), None),
            (
                Transition {
                    index: Some(IndexRow { ended_at: ended, ..index() }),
                    ..transition(2)
                },
                Some("an execution has an end time if and only if it has ended"),
            ),
            (
                Transition {
                    index: Some(IndexRow { state: State::Failed.into(), ..index() }),
                    ..transition(2)
                },
                Some("an execution has an end time if and only if it has ended"),
            ),
            (
                Transition {
                    index: Some(IndexRow {
                        state: Named::Unknown("ABANDONED".into()),
                        ended_at: ended,
                        ..index()
                    }),
                    ..transition(2)
                },
                None,
            ),
            (Transition { feed: vec![event("a"), event("b")], ..transition(2) }, None),
            (
                Transition { feed: vec![event("a"), event("a")], ..transition(2) },
                Some("there is a failure event a already"),
            ),
        ];
        for (transition, expected) in rows {
            assert_eq!(flaw(&transition).as_deref(), expected, "{transition:?}");
        }
    }

    fn start(on_running: OnRunning, on_ended: OnEnded) -> KeyedStart {
        KeyedStart { transition: transition(1), key: "k".into(), on_running, on_ended }
    }

    /// Goes from the last rule to the first, as for a transition.
    #[test]
    fn keyed_start_is_decided_by_sequence_then_request_id_then_key() {
        let one = start(OnRunning::Reject, OnEnded::Allow);
        let mut found = Found::default();
        assert_eq!(key_verdict(&one, &found, None), None, "the key is free");
        found.event = Some("e".into());
        let settled = KeySettled::Refused("there is a failure event e already".into());
        assert_eq!(key_verdict(&one, &found, None), Some(settled));
        let holder = Holder {
            execution: HELD,
            state: State::Running.into(),
            compensation: CompensationState::None.into(),
        };
        let rejected = KeySettled::Rejected { execution: HELD, state: State::Running };
        assert_eq!(key_verdict(&one, &found, Some(&holder)), Some(rejected));
        for (started, repeated) in [(true, false), (false, false), (true, true)] {
            found.request = taken(started, repeated);
            let settled = KeySettled::RequestTaken { execution: HELD, digest: 7, started };
            assert_eq!(key_verdict(&one, &found, Some(&holder)), Some(settled));
        }
        found.request = taken(false, true);
        let used = KeySettled::UseExisting { execution: HELD };
        assert_eq!(key_verdict(&one, &found, Some(&holder)), Some(used), "sent again");
        let later = KeyedStart { transition: transition(2), ..one };
        let settled = KeySettled::Refused("a start is the first transition".into());
        assert_eq!(key_verdict(&later, &found, Some(&holder)), Some(settled));
        found.winner = Some(OTHER);
        let settled = KeySettled::Refused("the execution exists already".into());
        assert_eq!(key_verdict(&later, &found, Some(&holder)), Some(settled));
        found.winner = Some(MINE);
        assert_eq!(key_verdict(&later, &found, Some(&holder)), Some(KeySettled::Won), "sent again");
    }

    #[test]
    fn state_of_the_key_holder_decides_a_keyed_start() {
        let used = KeySettled::UseExisting { execution: HELD };
        let too_new = KeySettled::TooNew { execution: HELD };
        let rejected = |state| KeySettled::Rejected { execution: HELD, state };
        let none = || Named::from(CompensationState::None);
        let failed = || Named::from(State::Failed);
        for (state, compensation, on_running, on_ended, expected) in [
            (failed(), none(), OnRunning::Reject, OnEnded::Allow, None),
            (failed(), none(), OnRunning::Reject, OnEnded::Reject, Some(rejected(State::Failed))),
            (failed(), none(), OnRunning::Reject, OnEnded::UseExisting, Some(used.clone())),
            (State::Running.into(), none(), OnRunning::UseExisting, OnEnded::Allow, Some(used)),
            (
                Named::Unknown("ABANDONED".into()),
                none(),
                OnRunning::Reject,
                OnEnded::Allow,
                Some(too_new.clone()),
            ),
            (
                failed(),
                Named::Unknown("HELD".into()),
                OnRunning::Reject,
                OnEnded::Allow,
                Some(too_new),
            ),
        ] {
            let holder = Holder { execution: HELD, state, compensation };
            let start = start(on_running, on_ended);
            let settled = key_verdict(&start, &Found::default(), Some(&holder));
            assert_eq!(settled, expected, "{holder:?} {on_running:?} {on_ended:?}");
        }
    }
}
