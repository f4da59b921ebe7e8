-- The settings of the store, in one row. The incarnation identifies the database. A copy that was restored gets a new
-- incarnation when it is opened, so that the cursors of the original database are recognised as foreign.
create table store (
    only_row integer not null default 1,
    incarnation blob not null,
    -- How many times the database was opened.
    session integer not null default 0,
    -- The time at which retention was paused, by the clock of the machine. Null while retention runs.
    retention_paused_at integer,
    -- The newest format of each kind of row that nodes may write. Only an operator raises it.
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
