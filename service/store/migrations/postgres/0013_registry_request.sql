-- The identity of a mutation of the registry, with what it answered: picks the winner of calls with one
-- id, and is kept for a day.
create table registry_request (
    -- Empty for the creation of namespaces, which is in none.
    namespace text collate "C" not null,
    request_id text collate "C" not null,
    operation text collate "C" not null,
    -- Of the request's body.
    digest bigint not null,
    format integer not null,
    -- Empty until the mutation is done, which nobody but its own transaction sees.
    answer bytea not null,
    created_at timestamptz not null default clock_timestamp(),
    constraint registry_request_pk primary key (namespace, request_id),
    constraint registry_request_format_is_16_bits check (format between 0 and 65535)
);

create index registry_request_age on registry_request (created_at);
