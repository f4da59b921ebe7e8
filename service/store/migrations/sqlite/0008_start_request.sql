-- The request ids of starts, which are kept for a day. Of several calls with the same id, the one that inserts its row
-- wins. The row is inserted before the history. Rows are stored in the order of their ids, which is also the order of
-- their times, so retention deletes the first ones.
create table start_request (
    id integer not null,
    namespace text not null,
    request_id text not null,
    -- The execution that was started, or the existing one that was used instead.
    execution_id blob not null,
    digest integer not null,
    -- False if an execution with the key of the start existed already and was used.
    started integer not null,
    created_at integer not null,
    constraint start_request_pk primary key (id),
    constraint start_request_is_one unique (namespace, request_id),
    constraint start_request_execution_is_a_uuid check (length(execution_id) = 16),
    constraint start_request_started_is_a_bool check (started in (0, 1))
) strict;
