-- The nodes: the lease of each, and the lane of the feed that it writes. A server that starts again is a new node.
-- Rows are never deleted, because a cursor may name any of them.
create table node (
    id integer not null,
    address text not null,
    -- The newest formats that the node can read.
    history_format integer not null,
    definition_format integer not null,
    failure_event_format integer not null,
    subscription_format integer not null,
    registry_answer_format integer not null,
    joined_at integer not null,
    -- The length of the lease, and how many times it was renewed. Other nodes watch whether the count grows.
    ttl_us integer not null,
    renewals integer not null default 0,
    -- By the clock of the machine, which may be set back.
    renewed_at integer not null,
    -- The latest time that the node has used. It never decreases.
    reached_at integer not null default 0,
    closed_at integer,
    constraint node_pk primary key (id),
    constraint node_id_is_positive check (id > 0),
    constraint node_ttl_is_not_negative check (ttl_us >= 0),
    constraint node_renewals_only_grow check (renewals >= 0)
) strict;
