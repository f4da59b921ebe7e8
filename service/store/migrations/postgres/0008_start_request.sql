-- The identity of calls that start: picks the winner before history, and is kept for a day.
create table start_request (
    namespace text collate "C" not null,
    request_id text collate "C" not null,
    -- What it started, or the execution that was used instead.
    execution_id uuid not null,
    digest bigint not null,
    -- False: the execution was there already, under the key of the start.
    started boolean not null default true,
    -- Whose start settled it.
    transition_id uuid not null,
    created_at timestamptz not null default clock_timestamp(),
    constraint start_request_pk primary key (namespace, request_id)
);

create index start_request_age on start_request (created_at);
