-- The failure feed. Every node writes its own lane, with numbers in the order of its commits.
create table feed (
    lane bigint not null,
    number bigint not null,
    id text collate "C" not null,
    namespace text collate "C" not null,
    kind text collate "C" not null,
    workflow text collate "C" not null,
    error_type text collate "C" not null,
    execution_id uuid,
    fingerprint text collate "C" not null,
    at timestamptz not null,
    format integer not null,
    data bytea not null,
    constraint feed_pk primary key (lane, number),
    constraint feed_id_unique unique (id),
    constraint feed_number_is_positive check (number > 0),
    constraint feed_format_is_16_bits check (format between 0 and 65535)
);

create index feed_newest on feed (number, lane);
create index feed_age on feed (at);
create index feed_execution on feed (execution_id, number) where execution_id is not null;

-- The numbers of events that retention has deleted, in runs. They tell a late reader how many events it missed.
create table feed_removed (
    lane bigint not null,
    last_number bigint not null,
    first_number bigint not null,
    events bigint not null,
    constraint feed_removed_pk primary key (lane, last_number),
    constraint feed_removed_is_a_run check (first_number <= last_number and events > 0)
);
