create table workflow_version (
    namespace text not null,
    name text not null,
    version integer not null,
    digest blob not null,
    format integer not null,
    definition blob not null,
    created_at integer not null,
    retired_at integer,
    constraint workflow_version_pk primary key (namespace, name, version),
    constraint workflow_version_is_positive check (version between 1 and 4294967295),
    constraint workflow_version_digest_is_sha256 check (length(digest) = 32),
    constraint workflow_version_format_is_16_bits check (format between 0 and 65535),
    constraint workflow_version_namespace_fk foreign key (namespace) references namespace (name)
) strict;
