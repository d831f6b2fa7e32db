-- Changes of the live state, as they lay on the control topic.
create table audit.control_event (
    topic text not null,
    partition integer not null,
    "offset" bigint not null,
    kind text not null,
    model text not null,
    version text not null,
    variant text,
    requested_by text not null,
    reason text not null,
    requested_at timestamptz not null,
    at timestamptz not null default now(),
    primary key (topic, partition, "offset")
);

alter function audit.grant_readers() rename to grant_readers_1;

create function audit.grant_readers() returns void language plpgsql as $$
declare
    reader text;
begin
    perform audit.grant_readers_1();
    for reader in select rolname from pg_roles where rolname in ('lrai_reader', 'lrai_attributes_reader') loop
        execute format('grant select on audit.control_event to %I', reader);
    end loop;
end $$;

select audit.grant_readers();
