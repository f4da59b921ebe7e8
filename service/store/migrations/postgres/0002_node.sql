-- One life of one node: its lease, and the lane of the feed that it writes. Rows stay for good: a
-- cursor may name any of them.
create table node (
    id bigint not null,
    address text not null,
    joined_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null,
    closed_at timestamptz,
    -- Nothing active is left that it owned.
    drained_at timestamptz,
    -- The highest feed number that retention took from its lane.
    feed_removed_to bigint not null default 0,
    constraint node_pk primary key (id),
    constraint node_id_is_positive check (id > 0),
    constraint node_drains_after_it_closed check (drained_at is null or closed_at is not null)
);
