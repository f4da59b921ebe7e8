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
            commits: append_and_load_in_order;
            commits: what_is_loaded_is_cut_by_bytes;
            commits: what_is_known_of_a_history_is_not_read_again;
            commits: the_same_batch_again_is_settled_once;
            commits: an_old_batch_again_changes_nothing_that_came_after;
            commits: an_empty_batch_is_nothing;
            commits: a_request_id_starts_once;
            commits: two_starts_of_one_batch_may_share_a_request_id;
            commits: a_duplicate_event_refuses_only_its_transition;
            commits: a_start_without_an_index_row_is_refused_alone;
            commits: an_end_time_that_does_not_fit_its_state_is_refused_alone;
            commits: events_of_no_execution;
            commits: a_batch_of_two_thousand;
            commits: a_payload_of_two_mebibytes;
            commits: a_nul_is_kept_or_refused;
            places: a_lost_place_writes_nothing;
            places: a_mixed_batch_is_answered_in_its_order;
            places: writers_that_race_share_no_place;
            keys: the_table_of_policies;
            keys: the_same_keyed_start_again_is_settled_once;
            keys: a_rejected_start_uses_up_nothing;
            keys: using_the_existing_settles_the_request_id;
            keys: keyed_starts_share_request_ids_with_others;
            keys: a_refused_start_uses_up_nothing;
            keys: a_key_belongs_to_its_namespace;
            keys: starts_that_race_for_a_key;
            queries: an_index_row_comes_back_as_it_was;
            queries: the_index_follows_transitions_that_carry_a_row;
            queries: heads_of_many;
            queries: a_history_is_read_in_pages_from_anywhere;
            queries: due_executions_of_the_node;
            queries: due_executions_are_read_in_pages;
            queries: a_reminder_is_set_without_a_transition_by_the_owner_alone;
            queries: list_takes_every_filter;
            queries: list_takes_prefixes_literally;
            queries: list_in_pages;
            names: an_execution_in_an_unknown_state_is_listed_beside_others;
            names: an_execution_in_an_unknown_state_is_left_to_newer_binaries;
            names: a_key_of_an_execution_in_an_unknown_state_is_not_decided_on;
            names: retention_keeps_what_it_has_no_name_for;
            names: an_event_of_an_unknown_kind_is_read_beside_others;
            names: a_quarantine_for_an_unknown_reason_is_in_force;
            overflow: no_task_is_claimed_twice;
            overflow: claims_go_by_priority_then_age;
            overflow: claims_that_race_share_no_task;
            overflow: a_claim_that_ran_out_is_given_again;
            overflow: withdrawn_and_ended_tasks_are_gone;
            overflow: a_task_that_is_there_stays_as_it_is;
            overflow: tasks_of_an_execution_that_another_node_owns_are_left_out;
            overflow: what_the_next_owner_has_handed_out_is_not_there_afterwards;
            overflow: workers_get_only_the_types_that_they_take_and_no_more_than_their_credit;
            overflow: nodes_see_what_others_have_published_of_their_workers;
            leases: every_life_has_a_greater_id;
            leases: a_lease_is_renewed;
            leases: who_leaves_is_closed;
            leases: later_lives_learn_how_far_time_has_got;
            leases: a_lease_is_closed_when_its_count_stands_still;
            leases: a_closed_node_writes_nothing;
            leases: adopted_are_only_the_active_ones;
            leases: adopt_in_portions;
            feed: pages_of_one_make_the_whole;
            feed: pages_end_by_their_bytes_and_skip_nothing;
            feed: events_of_a_transition_keep_their_order;
            feed: an_execution_that_changes_lanes_never_overtakes_itself;
            feed: start_and_end;
            feed: lanes_come_and_go;
            feed: a_reader_beside_writers_misses_nothing;
            feed: a_cursor_of_another_store_is_refused;
            feed: retention_leaves_a_gap;
            feed: a_gap_with_nothing_behind_it_is_said_once;
            feed: a_failure_by_its_id;
            feed: failures_by_every_filter;
            feed: failures_in_pages;
            registry: namespaces;
            registry: versions_are_immutable_and_equal_ones_are_one;
            registry: retired_versions_are_passed_over;
            registry: workflows_in_pages;
            registry: subscriptions_are_compared_and_set;
            registry: subscriptions_in_pages;
            registry: the_clock_goes_on;
            quarantine: a_quarantine_is_written_with_its_event_once;
            quarantine: a_closed_node_quarantines_nothing;
            quarantine: nothing_is_committed_for_a_quarantined_execution;
            quarantine: who_releases_an_execution_owns_it;
            quarantine: a_released_execution_is_quarantined_again;
            quarantine: no_node_is_reminded_of_what_is_quarantined;
            quarantine: quarantined_executions_are_listed;
            quarantine: retention_keeps_what_is_quarantined;
            quarantine: a_later_event_is_behind_that_of_the_quarantine;
            requests: a_namespace_is_created_once;
            requests: a_registration_answers_as_it_did;
            requests: a_subscription_does_not_come_back;
            requests: an_accepted_subscription_is_the_answer;
            requests: an_id_with_another_body_is_refused;
            requests: a_refused_call_uses_up_no_id;
            requests: calls_that_race_answer_alike;
            requests: an_id_of_today_stays;
            retention: what_ended_long_ago_goes;
            retention: what_has_gone_is_not_gone_on_with;
            retention: what_is_open_parked_or_recent_stays;
            retention: retention_is_the_namespaces_own;
            retention: keys_that_name_expired_executions_go;
            retention: in_portions;
            retention: nothing_goes_while_retention_is_paused;
            retention: what_goes_is_old_by_the_time_that_is_given;
        }

        $crate::conformance_lanes! { $harness;
            feed: a_lane_that_is_ahead_is_not_overtaken;
            feed: a_lane_follows_what_is_known_as_well_as_what_is_read;
            feed: a_life_goes_on_behind_the_one_before;
            quarantine: events_beside_a_quarantine_keep_their_order_without_a_load;
            formats: what_a_binary_cannot_read_is_left_to_those_that_can;
            formats: only_an_operator_raises_the_formats_that_may_be_written;
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
