-- The request ids of changes to the registry, with the answers. Rows are kept for a day. Of several calls with the same
-- id, the one that inserts its row wins.
create table registry_request (
    -- Empty for the creation of a namespace, which belongs to no namespace.
    namespace text collate "C" not null,
    request_id text collate "C" not null,
    operation text collate "C" not null,
    -- The digest of the request's body.
    digest bigint not null,
    format integer not null,
    -- Empty until the change is made. Other transactions never see the empty value, because the answer is written
    -- before the commit.
    answer bytea not null,
    created_at timestamptz not null default clock_timestamp(),
    constraint registry_request_pk primary key (namespace, request_id),
    constraint registry_request_format_is_16_bits check (format between 0 and 65535)
);

create index registry_request_age on registry_request (created_at);
