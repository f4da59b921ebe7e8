-- The index of executions. A row is written when the execution starts, when it ends, and when one of its columns
-- changes. No constraint lists the names of states, because a newer binary may write additional ones.
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
    -- The newest format in the execution's history. Nodes that cannot read it do not take the execution over.
    format integer not null,
    -- Whether work remains. Nodes own and adopt only active executions.
    active integer not null,
    error_type text,
    started_at integer not null,
    ended_at integer,
    wake_at integer,
    -- The node that wrote this row last.
    owner integer not null,
    constraint execution_pk primary key (id),
    constraint execution_id_is_a_uuid check (length(id) = 16),
    constraint execution_format_is_16_bits check (format between 0 and 65535),
    constraint execution_version_is_32_bits check (version between 0 and 4294967295),
    constraint execution_run_is_32_bits check (run between 0 and 4294967295),
    constraint execution_is_active_until_it_ends check (active = 1 or ended_at is not null)
) strict, without rowid;

create index execution_list on execution (namespace, id);
-- An execution that succeeds adds an entry here when it starts, and removes it when it ends.
create index execution_owned on execution (owner, id) where active = 1;
-- Normally empty. Contains the executions that some released nodes cannot read.
create index execution_newer on execution (format) where active = 1 and format > 2;
-- Ended executions in the order of their ends, for retention.
create index execution_ended on execution (namespace, ended_at)
    where ended_at is not null and active = 0 and compensation <> 'PARKED';
-- An execution that succeeds writes to neither of the next two indexes. The states are not a list with `in`, for which
-- SQLite would open a temporary table at every update.
create index execution_failed on execution (namespace, id)
    where state = 'FAILED' or state = 'TIMED_OUT' or state = 'CANCELLED' or state = 'TERMINATED';
create index execution_due on execution (owner, wake_at, id) where wake_at is not null;
