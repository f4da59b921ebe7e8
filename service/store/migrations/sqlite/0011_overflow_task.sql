-- Tasks that their owners have given away, for any node to claim. A row is only a hint: the history of the execution
-- decides whether the task is still open.
create table overflow_task (
    execution_id blob not null,
    path text not null,
    attempt integer not null,
    run integer not null,
    sequence integer not null,
    namespace text not null,
    queue text not null,
    task_type text not null,
    priority integer not null,
    available_at integer not null,
    leased_until integer,
    constraint overflow_task_pk primary key (execution_id, path, attempt),
    constraint overflow_task_execution_is_a_uuid check (length(execution_id) = 16),
    constraint overflow_task_attempt_is_32_bits check (attempt between 0 and 4294967295),
    constraint overflow_task_run_is_32_bits check (run between 0 and 4294967295)
) strict, without rowid;

create index overflow_task_claim
    on overflow_task (namespace, queue, priority desc, available_at, execution_id, path, attempt);
