-- One row: which life of which database this is. A restored copy gets a new incarnation when it is
-- opened, so that cursors of the life before are recognised as foreign.
create table store (
    only_row integer not null default 1,
    incarnation blob not null,
    -- Counts how often the database was opened.
    session integer not null default 0,
    -- Since when nothing is deleted, on the clock of the machine; null: retention runs.
    retention_paused_at integer,
    -- The highest formats that may be written. Raised by an operator alone.
    history_format integer not null default 1,
    definition_format integer not null default 1,
    failure_event_format integer not null default 1,
    subscription_format integer not null default 1,
    registry_answer_format integer not null default 1,
    constraint store_pk primary key (only_row),
    constraint store_is_one_row check (only_row = 1),
    constraint store_incarnation_is_a_uuid check (length(incarnation) = 16)
) strict, without rowid;

insert into store (incarnation) values (randomblob(16));
