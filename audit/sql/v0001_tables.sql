-- Dictionaries. What a client can make long is found by the digest of its JSON, not by an index on the text.
create table audit.topic (
    id integer generated always as identity primary key,
    key uuid not null unique,
    topic text not null
);

create table audit.worker (
    id integer generated always as identity primary key,
    key uuid not null unique,
    worker text not null
);

create table audit.release (
    id integer generated always as identity primary key,
    key uuid not null unique,
    model text not null,
    version text,
    variant text,
    certificate text
);

-- id: the first 16 bytes of HMAC-SHA256(key, canonical JSON), so a writer knows it without asking.
create table audit.attribute_set (
    id uuid primary key,
    attributes jsonb not null
);

-- One row a request. Narrow: fixed columns first, widest first, so that no byte is lost to alignment.
create table audit.decision_row (
    received_at timestamptz not null,
    answered_at timestamptz not null,
    request_offset bigint not null,
    request_partition integer not null,
    topic_id integer not null,
    release_id integer not null,
    worker_id integer not null,
    rows integer not null,
    batch_rows integer not null,
    queue_s real not null,
    execution_s real not null,
    status smallint not null,
    request_id text not null,
    score double precision,
    attributes_id uuid,
    decision text,
    subject_pseudonym text,
    consent_id text,
    purpose text,
    error_code text,
    error_message text
) partition by range (received_at);

-- received_at is in the key because the partitions are by it; it comes from the record, so a replay has the same one.
create unique index decision_row_source on audit.decision_row
    (topic_id, request_partition, request_offset, received_at);
-- hash: six tenths of the size of a btree over UUIDs and faster to fill with them; no limit on the length of the id.
create index decision_row_request_id on audit.decision_row using hash (request_id);
create index decision_row_received_at on audit.decision_row using brin (received_at) with (pages_per_range = 32);

create table audit.decision_row_default partition of audit.decision_row default;

-- A row that the store could not take, found by halving.
create table audit.refused (
    id bigint generated always as identity primary key,
    request_topic text not null,
    request_partition integer not null,
    request_offset bigint not null,
    sqlstate text not null,
    reason text not null,
    row jsonb not null,
    at timestamptz not null default now()
);
create index refused_source on audit.refused (request_topic, request_partition, request_offset);

-- The bytes stay in Kafka (they may hold a subject in the clear); request_* is null when the headers did not say.
create table audit.dead_letter (
    request_topic text,
    request_partition integer,
    request_offset bigint,
    received_at timestamptz,
    dlt_topic text not null,
    dlt_partition integer not null,
    dlt_offset bigint not null,
    sha256 bytea not null,
    size bigint not null,
    reason text,
    message text,
    stage text,
    at timestamptz not null,
    primary key (dlt_topic, dlt_partition, dlt_offset)
);
create index dead_letter_source on audit.dead_letter (request_topic, request_partition, request_offset);

-- What coalesce consumed: the records at from_offset <= offset < next_offset.
create table audit.source_range_row (
    from_offset bigint not null,
    next_offset bigint not null,
    records bigint not null,
    at timestamptz not null default now(),
    topic_id integer not null,
    partition integer not null,
    worker_id integer not null
);
create index source_range_source on audit.source_range_row (topic_id, partition, from_offset);

-- Where each consumed partition goes on. No instance: whoever has the partition writes here.
create table audit.source_offset (
    topic text not null,
    partition integer not null,
    next_offset bigint not null,
    at timestamptz not null default now(),
    primary key (topic, partition)
) with (fillfactor = 50);

-- Months from the last one to months_ahead from now. Rows of such a month that went to the default partition move.
create function audit.make_partitions(months_ahead integer) returns integer language plpgsql as $$
declare
    month timestamptz;
    until timestamptz;
    made integer := 0;
    name text;
begin
    perform pg_advisory_xact_lock(hashtext('audit.make_partitions'));
    for month in
        select generate_series(date_trunc('month', now(), 'UTC') at time zone 'UTC' - interval '1 month',
                               date_trunc('month', now(), 'UTC') at time zone 'UTC' + make_interval(months => months_ahead),
                               interval '1 month') at time zone 'UTC'
    loop
        name := 'decision_row_' || to_char(month at time zone 'UTC', 'YYYY_MM');
        continue when to_regclass('audit.' || name) is not null;
        until := (month at time zone 'UTC' + interval '1 month') at time zone 'UTC';
        execute format('create table audit.%I (like audit.decision_row including all)', name);
        execute format('with moved as (delete from audit.decision_row_default
                where received_at >= %2$L and received_at < %3$L returning *)
            insert into audit.%1$I select * from moved', name, month, until);
        execute format('alter table audit.decision_row attach partition audit.%I for values from (%L) to (%L)',
            name, month, until);
        made := made + 1;
    end loop;
    return made;
end $$;
