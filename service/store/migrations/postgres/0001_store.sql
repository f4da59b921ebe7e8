-- One row: which life of which database this is. A restored dump has another oid of the table, or
-- another system identifier, and gets a new incarnation from the first node that looks.
create table store (
    only_row boolean not null default true,
    incarnation uuid not null,
    system_identifier bigint not null,
    database_oid bigint not null,
    table_oid bigint not null,
    -- Since when nothing is deleted; null: retention runs.
    retention_paused_at timestamptz,
    -- The highest formats that may be written. Raised by an operator alone.
    history_format integer not null default 1,
    definition_format integer not null default 1,
    failure_event_format integer not null default 1,
    subscription_format integer not null default 1,
    registry_answer_format integer not null default 1,
    constraint store_pk primary key (only_row),
    constraint store_is_one_row check (only_row)
);

-- Never equal to a real place: the first connection gives the incarnation.
insert into store (incarnation, system_identifier, database_oid, table_oid)
values ('00000000-0000-0000-0000-000000000000', 0, 0, 0);
