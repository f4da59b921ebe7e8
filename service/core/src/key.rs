//! Whether a new execution may take a key that another execution holds.

use crate::execution::{CompensationState, State};

/// What a start asks for if a running execution holds its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRunning {
    /// Reject the new start.
    #[default]
    Reject,
    /// Return the running execution instead of starting a new one.
    UseExisting,
}

/// What a start asks for if an ended execution holds its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnEnded {
    /// Start a new execution.
    #[default]
    Allow,
    /// Start a new execution, unless the earlier one ended as SUCCEEDED or WARNING; then reject the new
    /// start.
    AllowAfterFailure,
    /// Reject the new start.
    Reject,
    /// Return the ended execution instead of starting a new one.
    UseExisting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyVerdict {
    /// The new execution becomes the holder of the key.
    Take,
    UseExisting,
    Reject,
}

/// Decides between a new start and the current holder of the key; `holder` is none if the key is free. An
/// execution whose compensation is parked or running again counts as running.
pub fn decide(
    holder: Option<(State, CompensationState)>,
    on_running: OnRunning,
    on_ended: OnEnded,
) -> KeyVerdict {
    let Some((state, compensation)) = holder else {
        return KeyVerdict::Take;
    };
    let parked = matches!(compensation, CompensationState::Parked | CompensationState::Running);
    if !state.is_ended() || parked {
        return match on_running {
            OnRunning::Reject => KeyVerdict::Reject,
            OnRunning::UseExisting => KeyVerdict::UseExisting,
        };
    }
    match on_ended {
        OnEnded::Allow => KeyVerdict::Take,
        OnEnded::AllowAfterFailure if state.is_failure() => KeyVerdict::Take,
        OnEnded::AllowAfterFailure | OnEnded::Reject => KeyVerdict::Reject,
        OnEnded::UseExisting => KeyVerdict::UseExisting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_verdict_follows_from_the_holders_state_and_both_policies() {
        use CompensationState as C;
        use KeyVerdict::{Reject, Take, UseExisting};
        let holder = |state, compensation| Some((state, compensation));
        for (holder, on_running, on_ended, verdict) in [
            (None, OnRunning::Reject, OnEnded::Reject, Take),
            (holder(State::Running, C::None), OnRunning::Reject, OnEnded::Allow, Reject),
            (holder(State::Running, C::None), OnRunning::UseExisting, OnEnded::Allow, UseExisting),
            (holder(State::Failed, C::Parked), OnRunning::Reject, OnEnded::Allow, Reject),
            (
                holder(State::Failed, C::Running),
                OnRunning::UseExisting,
                OnEnded::Allow,
                UseExisting,
            ),
            (holder(State::Failed, C::Done), OnRunning::Reject, OnEnded::Allow, Take),
            (holder(State::Failed, C::Done), OnRunning::Reject, OnEnded::AllowAfterFailure, Take),
            (
                holder(State::Warning, C::None),
                OnRunning::Reject,
                OnEnded::AllowAfterFailure,
                Reject,
            ),
            (holder(State::Succeeded, C::None), OnRunning::Reject, OnEnded::Reject, Reject),
            (
                holder(State::Cancelled, C::None),
                OnRunning::Reject,
                OnEnded::UseExisting,
                UseExisting,
            ),
        ] {
            assert_eq!(decide(holder, on_running, on_ended), verdict, "{holder:?}");
        }
    }
}
