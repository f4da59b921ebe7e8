-- The request ids of starts, which are kept for a day. Of several calls with the same id, the one that inserts its row
-- wins. The row is inserted before the history.
create table start_request (
    namespace text collate "C" not null,
    request_id text collate "C" not null,
    -- The execution that was started, or the existing one that was used instead.
    execution_id uuid not null,
    digest bigint not null,
    -- False if an execution with the key of the start existed already and was used.
    started boolean not null default true,
    -- The transition whose start wrote this row.
    transition_id uuid not null,
    created_at timestamptz not null default clock_timestamp(),
    constraint start_request_pk primary key (namespace, request_id)
);

create index start_request_age on start_request (created_at);
