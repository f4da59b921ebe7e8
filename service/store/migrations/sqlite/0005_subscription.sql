create table subscription (
    namespace text not null,
    name text not null,
    version integer not null default 1,
    format integer not null,
    state blob not null,
    created_at integer not null,
    constraint subscription_pk primary key (namespace, name),
    constraint subscription_version_is_positive check (version > 0),
    constraint subscription_format_is_16_bits check (format between 0 and 65535)
) strict;
