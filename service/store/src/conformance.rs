//! One suite for every store: the promises of the contract, as cases that each get a fresh store.
//!
//! A store's tests implement [`Harness`] and call [`crate::conformance!`], which makes each case a
//! separate test:
//!
//! ```ignore
//! struct Embedded(TempDir);
//!
//! #[async_trait]
//! impl Harness for Embedded {
//!     async fn fresh(&self) -> Arc<dyn Store> { … }
//! }
//!
//! recoup_store::conformance!(Embedded(tempdir().expect("a folder")));
//! ```
//!
//! Nothing is assumed about the store's clock except that it runs. Cases that depend on time use times
//! in the distant past, or times that the case provides.

pub mod commits;
pub mod differential;
pub mod feed;
pub mod formats;
mod harness;
pub mod keys;
pub mod leases;
pub mod names;
pub mod overflow;
pub mod places;
pub mod quarantine;
pub mod queries;
pub mod registry;
pub mod requests;
pub mod retention;
mod world;

pub use harness::Harness;
pub use world::World;

/// Generates a `#[tokio::test]` for every case, and one for the comparison with the model. The argument is an
/// expression that gives a [`Harness`]; it is evaluated once in every test.
#[macro_export]
macro_rules! conformance {
    ($harness:expr) => {
        $crate::conformance_cases! { $harness;
            commits: appended_transitions_are_loaded_in_order;
            commits: load_stops_at_the_byte_limit_after_a_whole_history;
            commits: load_returns_only_transitions_after_the_known_ones;
            commits: repeated_batch_takes_effect_once;
            commits: repeated_old_batch_does_not_undo_later_transitions;
            commits: empty_batch_is_answered_with_nothing;
            commits: request_id_starts_one_execution_per_namespace;
            commits: one_of_two_starts_that_share_a_request_id_in_a_batch_wins;
            commits: a_duplicate_event_refuses_only_its_transition;
            commits: only_the_start_without_an_index_row_is_refused;
            commits: only_the_transition_with_an_inconsistent_end_time_is_refused;
            commits: events_without_an_execution_are_written_once_even_if_transitions_lose;
            commits: batch_of_two_thousand_transitions_is_settled_one_by_one;
            commits: payload_of_two_mebibytes_round_trips;
            commits: a_nul_is_kept_or_refused;
            places: lost_transition_writes_nothing;
            places: verdicts_of_a_mixed_batch_are_in_its_order;
            places: racing_writers_never_both_win_a_sequence;
            keys: every_key_policy_decides_on_every_state_of_the_holder;
            keys: repeated_keyed_start_takes_effect_once;
            keys: rejected_start_does_not_use_up_its_request_id;
            keys: use_existing_binds_the_request_id_to_the_holder;
            keys: keyed_and_other_starts_share_request_ids;
            keys: refused_start_uses_up_neither_key_nor_request_id;
            keys: keys_of_different_namespaces_are_independent;
            keys: one_of_two_starts_that_race_for_a_key_wins;
            queries: index_row_round_trips;
            queries: index_row_changes_only_with_transitions_that_carry_one;
            queries: heads_give_the_last_sequence_of_every_existing_execution;
            queries: history_is_read_in_pages_from_any_sequence;
            queries: due_executions_of_a_node_are_read_in_the_order_of_their_times;
            queries: due_executions_are_read_in_pages;
            queries: reminder_is_set_by_the_owner_alone_and_without_a_transition;
            queries: list_applies_every_filter;
            queries: list_matches_prefixes_literally;
            queries: executions_are_listed_in_pages_newest_id_first;
            names: execution_in_an_unknown_state_is_listed_with_the_others;
            names: an_execution_in_an_unknown_state_is_left_to_newer_binaries;
            names: keyed_start_is_too_new_if_the_holder_is_in_an_unknown_state;
            names: retention_keeps_executions_in_unknown_states;
            names: event_of_an_unknown_kind_is_read_with_the_others;
            names: a_quarantine_for_an_unknown_reason_is_in_force;
            overflow: no_task_is_claimed_twice;
            overflow: tasks_are_claimed_by_priority_then_age;
            overflow: racing_claims_never_share_a_task;
            overflow: task_can_be_claimed_again_once_its_claim_has_expired;
            overflow: withdrawn_and_ended_tasks_are_removed;
            overflow: overflowing_a_task_again_does_not_change_its_row;
            overflow: tasks_of_an_execution_that_another_node_owns_are_left_out;
            overflow: task_handed_out_by_the_next_owner_does_not_stay_in_the_overflow;
            overflow: claims_respect_the_task_types_and_the_credit_of_workers;
            overflow: nodes_see_the_idle_credit_that_others_have_published;
            leases: every_node_gets_a_greater_id_than_the_one_before;
            leases: lease_can_be_renewed_and_an_unknown_one_is_lost;
            leases: node_that_leaves_is_closed_and_its_executions_can_be_adopted;
            leases: later_nodes_learn_the_time_that_earlier_nodes_reached;
            leases: lease_is_closed_if_its_renewal_count_stands_still;
            leases: closed_node_writes_nothing;
            leases: only_active_executions_are_adopted;
            leases: adopt_returns_at_most_the_requested_number;
            feed: feed_is_the_same_in_pages_of_any_size;
            feed: pages_end_at_the_byte_limit_and_skip_nothing;
            feed: events_of_a_transition_keep_their_order;
            feed: events_of_an_execution_keep_their_order_across_lanes;
            feed: cursors_from_the_start_and_the_end_read_the_events_after_them;
            feed: reader_sees_every_event_once_while_lanes_open_and_close;
            feed: reader_concurrent_with_writers_misses_nothing;
            feed: a_cursor_of_another_store_is_refused;
            feed: retention_of_unread_events_is_reported_as_a_gap;
            feed: gap_without_later_events_is_reported_once;
            feed: failure_event_is_found_by_its_id;
            feed: failure_events_are_listed_by_every_filter;
            feed: failure_events_are_listed_in_pages;
            registry: namespaces_are_unique_and_listed_in_the_order_of_bytes;
            registry: only_a_definition_that_differs_from_the_latest_gets_a_new_version;
            registry: retired_version_is_never_the_latest;
            registry: workflows_are_listed_in_pages;
            registry: subscription_is_updated_only_if_it_has_not_changed_since;
            registry: subscriptions_are_listed_in_pages;
            registry: clock_of_the_store_advances;
            quarantine: quarantine_is_written_once_with_its_event;
            quarantine: closed_node_quarantines_nothing;
            quarantine: nothing_is_committed_for_a_quarantined_execution;
            quarantine: node_that_releases_an_execution_owns_it;
            quarantine: released_execution_can_be_quarantined_again;
            quarantine: quarantined_execution_is_not_due;
            quarantine: list_marks_and_filters_quarantined_executions;
            quarantine: retention_keeps_quarantined_executions;
            quarantine: later_event_follows_that_of_the_quarantine;
            requests: repeated_creation_of_a_namespace_gets_the_first_answer;
            requests: repeated_registration_gets_the_first_answer;
            requests: repeated_calls_neither_recreate_nor_delete_a_subscription;
            requests: accepted_subscription_becomes_the_answer_to_its_request_id;
            requests: request_id_with_another_operation_or_body_is_refused;
            requests: refused_call_does_not_use_up_its_request_id;
            requests: racing_calls_with_one_request_id_have_one_effect;
            requests: retention_keeps_a_request_id_of_today;
            retention: execution_that_ended_long_ago_expires;
            retention: expired_execution_cannot_be_continued;
            retention: open_parked_and_recent_executions_do_not_expire;
            retention: every_namespace_has_its_own_retention;
            retention: keys_that_name_expired_executions_are_removed;
            retention: expire_deletes_at_most_the_requested_number;
            retention: nothing_expires_while_retention_is_paused;
            retention: execution_does_not_expire_before_it_is_due_by_the_callers_time;
        }

        $crate::conformance_lanes! { $harness;
            feed: lane_that_is_ahead_is_not_overtaken;
            feed: lane_follows_known_transitions_as_well_as_those_it_reads;
            feed: batch_resent_under_the_next_lease_follows_the_events_of_the_last;
            quarantine: events_around_a_quarantine_keep_their_order_without_a_load;
            formats: execution_that_a_binary_cannot_read_is_left_to_newer_ones;
            formats: only_finalizing_raises_the_formats_that_may_be_written;
        }

        #[tokio::test]
        async fn agrees_with_the_model() {
            $crate::conformance::differential::compare(&$harness, 1).await;
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_cases {
    ($harness:expr; $($module:ident: $case:ident;)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                let harness = $harness;
                let store = $crate::conformance::Harness::fresh(&harness).await;
                let world = $crate::conformance::World::open(store).await;
                $crate::conformance::$module::$case(world).await;
            }
        )*
    };
}

/// Cases that need the harness itself besides a store.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_lanes {
    ($harness:expr; $($module:ident: $case:ident;)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                let harness = $harness;
                let store = $crate::conformance::Harness::fresh(&harness).await;
                let world = $crate::conformance::World::open(store).await;
                $crate::conformance::$module::$case(world, &harness).await;
            }
        )*
    };
}
