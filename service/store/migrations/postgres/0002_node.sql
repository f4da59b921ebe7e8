-- One life of one node: its lease, and the lane of the feed that it writes. Rows stay for good: a
-- cursor may name any of them.
create table node (
    id bigint not null,
    address text not null,
    -- The newest formats that it reads.
    history_format integer not null,
    definition_format integer not null,
    failure_event_format integer not null,
    subscription_format integer not null,
    registry_answer_format integer not null,
    joined_at timestamptz not null default clock_timestamp(),
    -- The length of the lease, and how often it was renewed: other nodes watch the count.
    ttl_us bigint not null,
    renewals bigint not null default 0,
    -- On the database's clock, which may go back.
    renewed_at timestamptz not null default clock_timestamp(),
    -- The highest time that the node has used, which never goes back.
    reached_at timestamptz not null default to_timestamp(0),
    closed_at timestamptz,
    -- Nothing active is left that it owned.
    drained_at timestamptz,
    -- The highest feed number that retention took from its lane.
    feed_removed_to bigint not null default 0,
    constraint node_pk primary key (id),
    constraint node_id_is_positive check (id > 0),
    constraint node_ttl_is_not_negative check (ttl_us >= 0),
    constraint node_renewals_only_grow check (renewals >= 0),
    constraint node_drains_after_it_closed check (drained_at is null or closed_at is not null)
);
