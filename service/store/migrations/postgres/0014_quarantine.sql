-- Executions that nobody may go on with until a person has looked; those that were released keep
-- their row until the next quarantine or retention takes it. As a rule the table is empty, which the
-- commit path relies on: it looks here in every batch.
create table quarantine (
    execution_id uuid not null,
    reason text collate "C" not null,
    detail text not null,
    at timestamptz not null,
    -- Of its failure event: who loads the execution goes on behind it.
    feed_number bigint not null,
    -- None as long as it is in force.
    released_at timestamptz,
    -- Of the last release.
    release_reason text,
    release_request text,
    release_digest bigint,
    constraint quarantine_pk primary key (execution_id),
    constraint quarantine_release_has_a_reason check (released_at is null
        or release_reason is not null),
    constraint quarantine_request_has_a_digest check ((release_request is null)
        = (release_digest is null))
);
