create table subscription (
    namespace text collate "C" not null,
    name text collate "C" not null,
    version bigint not null default 1,
    format integer not null,
    state bytea not null,
    created_at timestamptz not null default clock_timestamp(),
    constraint subscription_pk primary key (namespace, name),
    constraint subscription_version_is_positive check (version > 0),
    constraint subscription_format_is_16_bits check (format between 0 and 65535)
);
