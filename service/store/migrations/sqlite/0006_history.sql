-- The truth. The primary key is the optimistic lock. Ids are UUIDs v7, so what is written now lies
-- together at the end.
create table history (
    execution_id blob not null,
    sequence integer not null,
    transition_id blob not null,
    format integer not null,
    data blob not null,
    constraint history_pk primary key (execution_id, sequence),
    constraint history_begins_at_1 check (sequence >= 1),
    constraint history_execution_is_a_uuid check (length(execution_id) = 16),
    constraint history_transition_is_a_uuid check (length(transition_id) = 16),
    constraint history_format_is_16_bits check (format between 0 and 65535)
) strict, without rowid;
