create table namespace (
    name text not null,
    description text not null,
    retention_us integer not null,
    created_at integer not null,
    constraint namespace_pk primary key (name),
    constraint namespace_retention_is_not_negative check (retention_us >= 0)
) strict, without rowid;

insert into namespace (name, description, retention_us, created_at)
values ('default', '', 2592000000000, cast(unixepoch('subsec') * 1000000 as integer)); -- 30 days
