-- The index of executions: written at the start, at the end, and when something in it changes. No constraint lists
-- the names of states: a newer binary may write more of them.
create table execution (
    id blob not null,
    namespace text not null,
    workflow text not null,
    version integer not null,
    key text,
    state text not null,
    phase text not null,
    compensation text not null,
    run integer not null,
    -- The highest format in its history: nodes that do not read it leave the execution alone.
    format integer not null,
    -- Something remains to be done: what nodes own and adopt.
    active integer not null,
    error_type text,
    started_at integer not null,
    ended_at integer,
    wake_at integer,
    -- The node whose transition wrote this row last.
    owner integer not null,
    constraint execution_pk primary key (id),
    constraint execution_id_is_a_uuid check (length(id) = 16),
    constraint execution_format_is_16_bits check (format between 0 and 65535),
    constraint execution_version_is_32_bits check (version between 0 and 4294967295),
    constraint execution_run_is_32_bits check (run between 0 and 4294967295),
    constraint execution_is_active_until_it_ends check (active = 1 or ended_at is not null)
) strict, without rowid;

create index execution_list on execution (namespace, id);
-- A success adds an entry here at its start and takes it away at its end.
create index execution_owned on execution (owner, id) where active = 1;
-- As a rule empty: what may be left without a node that reads it.
create index execution_newer on execution (format) where active = 1 and format > 2;
-- In the order of ends: what retention looks through.
create index execution_ended on execution (namespace, ended_at)
    where ended_at is not null and active = 0 and compensation <> 'PARKED';
-- A success writes none of these two. Not a list with `in`: for that each update would open a table of its own.
create index execution_failed on execution (namespace, id)
    where state = 'FAILED' or state = 'TIMED_OUT' or state = 'CANCELLED' or state = 'TERMINATED';
create index execution_due on execution (owner, wake_at, id) where wake_at is not null;
