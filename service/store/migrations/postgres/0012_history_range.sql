-- What is known of the partitions of history, beside their bounds, which Postgres keeps.
create table history_range (
    partition text not null,
    -- Executions that retention took, whose rows wait here until the range is replaced.
    expired_executions bigint not null,
    constraint history_range_pk primary key (partition),
    constraint history_range_expired_is_positive check (expired_executions > 0)
);
