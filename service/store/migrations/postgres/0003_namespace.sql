create table namespace (
    name text collate "C" not null,
    description text not null,
    retention_us bigint not null,
    created_at timestamptz not null default clock_timestamp(),
    constraint namespace_pk primary key (name),
    constraint namespace_retention_is_not_negative check (retention_us >= 0)
);

insert into namespace (name, description, retention_us)
values ('default', '', 2592000000000); -- 30 days
