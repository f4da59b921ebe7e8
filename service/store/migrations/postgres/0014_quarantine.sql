-- Executions in quarantine. No node continues them until an operator releases them. A released execution keeps its row
-- until it is quarantined again or retention deletes it. The table is normally empty. The commit path relies on that,
-- because it reads the table in every batch.
create table quarantine (
    execution_id uuid not null,
    reason text collate "C" not null,
    detail text not null,
    at timestamptz not null,
    -- The feed number of the quarantine's failure event. A node that loads the execution gives later events higher
    -- numbers.
    feed_number bigint not null,
    -- Null while the quarantine is in force.
    released_at timestamptz,
    -- The reason, request id and digest of the last release.
    release_reason text,
    release_request text,
    release_digest bigint,
    constraint quarantine_pk primary key (execution_id),
    constraint quarantine_release_has_a_reason check (released_at is null
        or release_reason is not null),
    constraint quarantine_request_has_a_digest check ((release_request is null)
        = (release_digest is null))
);
