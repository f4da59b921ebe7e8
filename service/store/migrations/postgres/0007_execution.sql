-- The index of executions. A row is written when the execution starts, when it ends, and when one of its columns
-- changes. No constraint lists the names of states, because a newer binary may write additional ones.
create table execution (
    id uuid not null,
    namespace text collate "C" not null,
    workflow text collate "C" not null,
    version bigint not null,
    key text collate "C",
    state text collate "C" not null,
    phase text collate "C" not null,
    compensation text collate "C" not null,
    run bigint not null,
    -- The newest format in the execution's history. Nodes that cannot read it do not take the execution over.
    format integer not null,
    -- Whether work remains. Nodes own and adopt only active executions.
    active boolean not null,
    error_type text collate "C",
    started_at timestamptz not null,
    ended_at timestamptz,
    wake_at timestamptz,
    -- The node that wrote this row last.
    owner bigint not null,
    constraint execution_pk primary key (id),
    constraint execution_format_is_16_bits check (format between 0 and 65535),
    constraint execution_version_is_32_bits check (version between 0 and 4294967295),
    constraint execution_run_is_32_bits check (run between 0 and 4294967295),
    constraint execution_is_active_until_it_ends check (active or ended_at is not null)
);

create index execution_list on execution (namespace, id);
-- An execution that succeeds adds one entry here when it starts, and one to `execution_ended` when it ends.
create index execution_owned on execution (owner, id) where active;
-- Normally empty. Contains the executions that some released nodes cannot read.
create index execution_newer on execution (format) where active and format > 2;
create index execution_failed on execution (namespace, id)
    where state in ('FAILED', 'TIMED_OUT', 'CANCELLED', 'TERMINATED');
-- Ended executions in the order of their ends, for retention.
create index execution_ended on execution (namespace, ended_at)
    where not active and compensation <> 'PARKED';
create index execution_due on execution (owner, wake_at, id) where wake_at is not null;
