-- The failure feed. Every node writes its own lane. A single thread writes all lanes, so numbers grow across lanes in
-- the order of the commits.
create table feed (
    number integer not null,
    lane integer not null,
    id text not null,
    namespace text not null,
    kind text not null,
    workflow text not null,
    error_type text not null,
    execution_id blob,
    fingerprint text not null,
    at integer not null,
    format integer not null,
    data blob not null,
    constraint feed_pk primary key (number),
    constraint feed_id_is_one unique (id),
    constraint feed_number_is_positive check (number > 0),
    constraint feed_format_is_16_bits check (format between 0 and 65535),
    constraint feed_lane_fk foreign key (lane) references node (id)
) strict;

create index feed_lane on feed (lane, number);
create index feed_age on feed (namespace, at);
create index feed_execution on feed (execution_id, number) where execution_id is not null;

-- The numbers of events that retention has deleted, in runs between events that are kept. They tell a late reader how
-- many events it missed.
create table feed_removed (
    lane integer not null,
    last_number integer not null,
    first_number integer not null,
    events integer not null,
    constraint feed_removed_pk primary key (lane, last_number),
    constraint feed_removed_is_a_run check (first_number <= last_number and events > 0)
) strict, without rowid;
