create table workflow_version (
    namespace text collate "C" not null,
    name text collate "C" not null,
    version bigint not null,
    digest bytea not null,
    format integer not null,
    definition bytea not null,
    created_at timestamptz not null default clock_timestamp(),
    retired_at timestamptz,
    constraint workflow_version_pk primary key (namespace, name, version),
    constraint workflow_version_is_positive check (version between 1 and 4294967295),
    constraint workflow_version_digest_is_sha256 check (octet_length(digest) = 32),
    constraint workflow_version_format_is_16_bits check (format between 0 and 65535),
    constraint workflow_version_namespace_fk foreign key (namespace) references namespace (name)
);
