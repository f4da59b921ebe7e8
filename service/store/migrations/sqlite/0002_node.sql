-- One life of one node: its lease, and the lane of the feed that it writes. Rows stay for good: a
-- cursor may name any of them.
create table node (
    id integer not null,
    address text not null,
    -- The newest formats that it reads.
    history_format integer not null,
    definition_format integer not null,
    failure_event_format integer not null,
    subscription_format integer not null,
    registry_answer_format integer not null,
    joined_at integer not null,
    -- The length of the lease, and how often it was renewed: other nodes watch the count.
    ttl_us integer not null,
    renewals integer not null default 0,
    -- On the clock of the machine, which may go back.
    renewed_at integer not null,
    -- The highest time that the node has used, which never goes back.
    reached_at integer not null default 0,
    closed_at integer,
    constraint node_pk primary key (id),
    constraint node_id_is_positive check (id > 0),
    constraint node_ttl_is_not_negative check (ttl_us >= 0),
    constraint node_renewals_only_grow check (renewals >= 0)
) strict;
