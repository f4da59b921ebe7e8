-- The execution that holds a key, or held it last. Batches without a start by key do not touch this table.
create table execution_key (
    namespace text collate "C" not null,
    key text collate "C" not null,
    execution_id uuid not null,
    constraint execution_key_pk primary key (namespace, key)
);

create index execution_key_holder on execution_key (execution_id);
