-- Executions in quarantine. No node continues them until an operator releases them. A released execution keeps its row
-- until it is quarantined again or retention deletes it.
create table quarantine (
    execution_id blob not null,
    reason text not null,
    detail text not null,
    at integer not null,
    -- Null while the quarantine is in force.
    released_at integer,
    -- The reason, request id and digest of the last release.
    release_reason text,
    release_request text,
    release_digest integer,
    constraint quarantine_pk primary key (execution_id),
    constraint quarantine_execution_is_a_uuid check (length(execution_id) = 16),
    constraint quarantine_release_has_a_reason check (released_at is null
        or release_reason is not null),
    constraint quarantine_request_has_a_digest check ((release_request is null)
        = (release_digest is null))
) strict, without rowid;
