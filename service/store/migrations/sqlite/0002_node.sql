-- One life of one node: its lease, and the lane of the feed that it writes. Rows stay for good: a
-- cursor may name any of them.
create table node (
    id integer not null,
    address text not null,
    joined_at integer not null,
    expires_at integer not null,
    closed_at integer,
    constraint node_pk primary key (id),
    constraint node_id_is_positive check (id > 0)
) strict;
