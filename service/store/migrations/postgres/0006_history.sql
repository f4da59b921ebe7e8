-- The truth. The primary key is the optimistic lock. Ids are UUIDs v7, so a range of ids is a range
-- of start times; what falls in no range goes to the default partition, which should stay empty.
create table history (
    execution_id uuid not null,
    sequence bigint not null,
    transition_id uuid not null,
    format integer not null,
    -- CRC-32 of these columns, as a signed number; compared whenever the row is decoded.
    checksum integer not null,
    data bytea not null,
    -- The highest number of its failure events: who loads the execution goes on behind it.
    feed_number bigint,
    constraint history_pk primary key (execution_id, sequence),
    constraint history_begins_at_1 check (sequence >= 1),
    constraint history_format_is_16_bits check (format between 0 and 65535)
) partition by range (execution_id);

create table history_default partition of history default;
