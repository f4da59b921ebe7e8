-- The nodes: the lease of each, and the lane of the feed that it writes. A server that starts again is a new node.
-- Rows are never deleted, because a cursor may name any of them.
create table node (
    id bigint not null,
    address text not null,
    -- The newest formats that the node can read.
    history_format integer not null,
    definition_format integer not null,
    failure_event_format integer not null,
    subscription_format integer not null,
    registry_answer_format integer not null,
    joined_at timestamptz not null default clock_timestamp(),
    -- The length of the lease, and how many times it was renewed. Other nodes watch whether the count grows.
    ttl_us bigint not null,
    renewals bigint not null default 0,
    -- By the clock of the database, which may be set back.
    renewed_at timestamptz not null default clock_timestamp(),
    -- The latest time that the node has used. It never decreases.
    reached_at timestamptz not null default to_timestamp(0),
    closed_at timestamptz,
    -- Set when the lease is closed and the node owns no active execution any more.
    drained_at timestamptz,
    -- The highest feed number that retention has deleted from the node's lane.
    feed_removed_to bigint not null default 0,
    constraint node_pk primary key (id),
    constraint node_id_is_positive check (id > 0),
    constraint node_ttl_is_not_negative check (ttl_us >= 0),
    constraint node_renewals_only_grow check (renewals >= 0),
    constraint node_drains_after_it_closed check (drained_at is null or closed_at is not null)
);
