-- Executions that nobody may go on with until a person has looked; those that were released keep
-- their row until the next quarantine or retention takes it.
create table quarantine (
    execution_id blob not null,
    reason text not null,
    detail text not null,
    at integer not null,
    -- None as long as it is in force.
    released_at integer,
    -- Of the last release.
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
