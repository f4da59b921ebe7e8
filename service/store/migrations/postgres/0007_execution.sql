-- The index of executions: written at the start, at the end, and when something in it changes. No constraint lists
-- the names of states: a newer binary may write more of them.
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
    -- The highest format in its history: nodes that do not read it leave the execution alone.
    format integer not null,
    -- Something remains to be done: what nodes own and adopt.
    active boolean not null,
    error_type text collate "C",
    started_at timestamptz not null,
    ended_at timestamptz,
    wake_at timestamptz,
    -- The node whose transition wrote this row last.
    owner bigint not null,
    constraint execution_pk primary key (id),
    constraint execution_format_is_16_bits check (format between 0 and 65535),
    constraint execution_version_is_32_bits check (version between 0 and 4294967295),
    constraint execution_run_is_32_bits check (run between 0 and 4294967295),
    constraint execution_is_active_until_it_ends check (active or ended_at is not null)
);

create index execution_list on execution (namespace, id);
-- A success adds an entry here at its start, and one to `execution_ended` at its end.
create index execution_owned on execution (owner, id) where active;
-- As a rule empty: what may be left without a node that reads it.
create index execution_newer on execution (format) where active and format > 2;
create index execution_failed on execution (namespace, id)
    where state in ('FAILED', 'TIMED_OUT', 'CANCELLED', 'TERMINATED');
-- In the order of ends: what retention looks through.
create index execution_ended on execution (namespace, ended_at)
    where not active and compensation <> 'PARKED';
create index execution_due on execution (owner, wake_at, id) where wake_at is not null;
