-- The execution that holds a key, or held it last. Batches without a start by key do not touch this table.
create table execution_key (
    namespace text not null,
    key text not null,
    execution_id blob not null,
    constraint execution_key_pk primary key (namespace, key),
    constraint execution_key_execution_is_a_uuid check (length(execution_id) = 16)
) strict, without rowid;

create index execution_key_holder on execution_key (execution_id);
