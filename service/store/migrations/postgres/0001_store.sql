-- The settings of the store, in one row. The incarnation identifies the database. A database that was restored from a
-- dump differs in the table's oid or in the system identifier. The first node that connects to it gives it a new
-- incarnation.
create table store (
    only_row boolean not null default true,
    incarnation uuid not null,
    system_identifier bigint not null,
    database_oid bigint not null,
    table_oid bigint not null,
    -- The time at which retention was paused. Null while retention runs.
    retention_paused_at timestamptz,
    -- The newest format of each kind of row that nodes may write. Only an operator raises it.
    history_format integer not null default 1,
    definition_format integer not null default 1,
    failure_event_format integer not null default 1,
    subscription_format integer not null default 1,
    registry_answer_format integer not null default 1,
    constraint store_pk primary key (only_row),
    constraint store_is_one_row check (only_row)
);

-- Matches no real database, so the first connection sets the incarnation.
insert into store (incarnation, system_identifier, database_oid, table_oid)
values ('00000000-0000-0000-0000-000000000000', 0, 0, 0);
