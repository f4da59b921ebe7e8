-- The identity of calls that start: picks the winner before history, and is kept for a day. Rows lie
-- in the order of their ids, which is that of their times: retention takes the first ones.
create table start_request (
    id integer not null,
    namespace text not null,
    request_id text not null,
    -- What it started, or the execution that was used instead.
    execution_id blob not null,
    digest integer not null,
    -- Whether it started the execution; if not, that had its key.
    started integer not null,
    created_at integer not null,
    constraint start_request_pk primary key (id),
    constraint start_request_is_one unique (namespace, request_id),
    constraint start_request_execution_is_a_uuid check (length(execution_id) = 16),
    constraint start_request_started_is_a_bool check (started in (0, 1))
) strict;
