-- What the store records about the partitions of history. Their bounds are in the catalogue of Postgres.
create table history_range (
    partition text not null,
    -- How many executions in this partition retention has deleted. Their rows stay in the partition until it is
    -- replaced by a copy without them.
    expired_executions bigint not null,
    constraint history_range_pk primary key (partition),
    constraint history_range_expired_is_positive check (expired_executions > 0)
);
