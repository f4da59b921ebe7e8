-- Tasks that their owners have given away, for any node to claim. A row is only a hint: the history of the execution
-- decides whether the task is still open.
create table overflow_task (
    execution_id uuid not null,
    path text collate "C" not null,
    attempt bigint not null,
    run bigint not null,
    sequence bigint not null,
    namespace text collate "C" not null,
    queue text collate "C" not null,
    task_type text collate "C" not null,
    priority integer not null,
    available_at timestamptz not null,
    leased_until timestamptz,
    constraint overflow_task_pk primary key (execution_id, path, attempt),
    constraint overflow_task_attempt_is_32_bits check (attempt between 0 and 4294967295),
    constraint overflow_task_run_is_32_bits check (run between 0 and 4294967295)
);

create index overflow_task_claim
    on overflow_task (namespace, queue, priority desc, available_at, execution_id, path, attempt);

-- The idle workers that each node has published, so that other nodes can give tasks to them. The information is
-- short-lived, so a crash may lose it.
create unlogged table node_idle (
    node_id bigint not null,
    idle bytea not null,
    constraint node_idle_pk primary key (node_id)
);
