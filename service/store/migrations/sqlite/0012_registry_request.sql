-- The request ids of changes to the registry, with the answers. Rows are kept for a day.
create table registry_request (
    -- Empty for the creation of a namespace, which belongs to no namespace.
    namespace text not null,
    request_id text not null,
    operation text not null,
    -- The digest of the request's body.
    digest integer not null,
    format integer not null,
    answer blob not null,
    created_at integer not null,
    constraint registry_request_pk primary key (namespace, request_id),
    constraint registry_request_format_is_16_bits check (format between 0 and 65535),
    constraint registry_request_has_an_answer check (length(answer) > 0)
) strict;

create index registry_request_age on registry_request (created_at);
