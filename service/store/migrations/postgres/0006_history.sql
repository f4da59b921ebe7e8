-- The histories of executions, from which their states are computed. The primary key is the optimistic lock: of several
-- transitions for the same place, only the first is written. Execution ids are UUIDs v7, so a range of ids is also a
-- range of start times. Rows outside all ranges go to the default partition, which should stay empty.
create table history (
    execution_id uuid not null,
    sequence bigint not null,
    transition_id uuid not null,
    format integer not null,
    -- CRC-32 of the columns above and of data, as a signed number. It is verified whenever the row is decoded.
    checksum integer not null,
    data bytea not null,
    -- The highest feed number of the transition's failure events. A node that loads the execution gives later events
    -- higher numbers.
    feed_number bigint,
    constraint history_pk primary key (execution_id, sequence),
    constraint history_begins_at_1 check (sequence >= 1),
    constraint history_format_is_16_bits check (format between 0 and 65535)
) partition by range (execution_id);

create table history_default partition of history default;
