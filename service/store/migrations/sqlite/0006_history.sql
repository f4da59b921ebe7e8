-- The histories of executions, from which their states are computed. The unique place of a transition is the optimistic
-- lock: of several transitions for the same place, only the first is written. Rows are stored in the order of their
-- commits, so a batch fills the last pages and does not touch the pages of other executions. The places are in a
-- separate index with small entries.
create table history (
    id integer not null,
    execution_id blob not null,
    sequence integer not null,
    transition_id blob not null,
    format integer not null,
    -- CRC-32 of all other columns but id. It is verified whenever the row is decoded.
    checksum integer not null,
    data blob not null,
    constraint history_pk primary key (id),
    constraint history_place_is_one unique (execution_id, sequence),
    constraint history_begins_at_1 check (sequence >= 1),
    constraint history_execution_is_a_uuid check (length(execution_id) = 16),
    constraint history_transition_is_a_uuid check (length(transition_id) = 16),
    constraint history_format_is_16_bits check (format between 0 and 65535),
    constraint history_checksum_is_32_bits check (checksum between 0 and 4294967295)
) strict;
