-- The freeze under which an answer was given; part of what answered, so that it costs a decision nothing.
alter table audit.release add column frozen text;

-- Of a freeze, and of the unfreeze that names it. The evidence is in audit.incident, where readers of small groups see it.
alter table audit.control_event add column control_id text;
create index control_event_unfreeze on audit.control_event (partition, "offset") where kind = 'unfreeze';

-- A record of a watched topic that is no row: where it lay and why.
create table audit.refused_record (
    topic text not null,
    partition integer not null,
    "offset" bigint not null,
    reason text not null,
    message text not null,
    sha256 bytea not null,
    size bigint not null,
    produced_at timestamptz,
    at timestamptz not null default now(),
    primary key (topic, partition, "offset")
);

-- What a model's owner states, each time that it changed: which decision is favourable, who is watched, which limits hold.
-- attributes: the watched ones as lists of names, several of them an intersection: [["sex"], ["age"], ["sex", "age"]].
create table audit.model_setting (
    id bigint generated always as identity primary key,
    model text not null,
    version text not null,
    sha256 text not null,
    favourable text,
    labels text[],
    attributes jsonb not null,
    stated jsonb not null,
    at timestamptz not null default now()
);
create index model_setting_release on audit.model_setting (model, version, id);

-- One window of an actor (kind decisions), or the totals of labels at a moment (kind labels).
create table audit.tally_row (
    id text primary key,
    kind text not null,
    model text not null,
    version text not null,
    worker text not null,
    priority text not null,
    at timestamptz not null,
    received_at timestamptz not null,
    requests integer not null,
    consent_missing integer not null,
    cpu_s double precision not null,
    gpu_s double precision not null,
    energy_j double precision not null,
    energy_source text not null,
    cost double precision not null,
    currency text not null,
    frozen text,
    latency integer[] not null,
    outcomes jsonb not null,
    releases jsonb not null,
    groups jsonb not null
);
create index tally_row_at on audit.tally_row (at);

-- One row a Fairness record and group (place: which of its groups); a record without groups has one row without a group.
create table audit.fairness_row (
    id text not null,
    place integer not null,
    model text not null,
    version text not null,
    attribute text not null,
    definition text not null,
    epoch integer not null,
    since timestamptz not null,
    at timestamptz not null,
    decisions bigint not null,
    coverage double precision not null,
    value double precision not null,
    ratio double precision not null,
    "limit" double precision not null,
    alpha double precision not null,
    method text not null,
    state text not null,
    "group" text,
    decided bigint,
    favourable bigint,
    rate double precision,
    low double precision,
    high double precision,
    compared_with text,
    difference double precision,
    difference_low double precision,
    difference_high double precision,
    group_state text,
    primary key (id, place)
);
create index fairness_row_at on audit.fairness_row (model, version, attribute, definition, at);

create table audit.drift_window (
    id text primary key,
    model text not null,
    version text not null,
    feature text not null,
    edges text not null,
    since timestamptz not null,
    at timestamptz not null,
    rows bigint not null,
    reference_rows bigint not null,
    psi double precision not null,
    psi_limit double precision not null,
    jensen_shannon double precision not null,
    ks double precision not null,
    wasserstein double precision not null,
    adwin bigint not null,
    state text not null
);
create index drift_window_at on audit.drift_window (model, version, feature, at);

create table audit.alert (
    id text primary key,
    kind text not null,
    severity text not null,
    model text,
    version text,
    message text not null,
    action text not null,
    taken boolean not null,
    evidence jsonb not null,
    at timestamptz not null
);
create index alert_at on audit.alert (at);

-- A freeze from its beginning to its end. frozen_at is null where the control topic was compacted before it was read.
create table audit.incident (
    id text primary key,
    model text not null,
    version text not null,
    frozen_at timestamptz,
    by text,
    reason text,
    evidence jsonb,
    unfrozen_at timestamptz,
    unfrozen_by text,
    unfreeze_reason text
);
create index incident_release on audit.incident (model, version, frozen_at);

-- What really was so, as it was said. Only the state moves, once, and away from pending; see audit.keep_label().
create table audit.label (
    id bigint generated always as identity primary key,
    topic text not null,
    partition integer not null,
    "offset" bigint not null,
    request_id text not null,
    model text,
    outcome text not null,
    labelled_by text,
    stated_at timestamptz,
    at timestamptz not null,
    received_at timestamptz not null default now(),
    state text not null check (state in ('pending', 'joined', 'duplicate', 'refused')),
    reason text,
    tries integer not null default 0,
    retry_at timestamptz not null default now(),
    unique (topic, partition, "offset")
);
create index label_request_id on audit.label using hash (request_id);
create index label_pending on audit.label (retry_at) where state = 'pending';

create function audit.keep_label() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' then
        if old.state = 'pending'
            and (new.id, new.topic, new.partition, new."offset", new.request_id, new.model, new.outcome,
                 new.labelled_by, new.stated_at, new.at, new.received_at) is not distinct from
                (old.id, old.topic, old.partition, old."offset", old.request_id, old.model, old.outcome,
                 old.labelled_by, old.stated_at, old.at, old.received_at) then
            return new;
        end if;
    end if;
    raise exception 'audit.label is append-only; produce another label instead';
end $$;
create trigger keep before update or delete on audit.label for each row execute function audit.keep_label();

-- Which decision a label is about. A decision has one label: the first.
create table audit.label_join (
    topic_id integer not null,
    request_partition integer not null,
    request_offset bigint not null,
    received_at timestamptz not null,
    label_id bigint not null references audit.label (id),
    joined_at timestamptz not null default now(),
    primary key (topic_id, request_partition, request_offset)
);
create index label_join_label on audit.label_join (label_id);

-- The freeze of a release that was ended last, as far as audit.label_count knows; without a row none was. Only decisions
-- that were answered after `since`, and not under that freeze, are counted there.
create table audit.label_epoch (
    model text not null,
    version text not null,
    ended text not null,
    since timestamptz not null,
    primary key (model, version)
);

-- Totals of the joined labels of the epoch; "group" is null where the request did not say.
-- Groups beyond groups_max are "(other)".
create table audit.label_count (
    key uuid primary key,
    model text not null,
    version text not null,
    attribute text not null,
    "group" text,
    decided bigint not null,
    favourable bigint not null,
    positive bigint not null,
    true_positive bigint not null
);
create index label_count_release on audit.label_count (model, version, attribute);

create function audit.keep() returns trigger language plpgsql as $$
begin
    raise exception 'audit.% is append-only; produce another record instead', tg_table_name;
end $$;

create table audit.complaint (
    complaint_id text primary key,
    request_id text,
    model text,
    by_pseudonym text,
    text text not null,
    stated_at timestamptz,
    at timestamptz not null,
    topic text not null,
    partition integer not null,
    "offset" bigint not null,
    stored_at timestamptz not null default now()
);
create index complaint_request_id on audit.complaint using hash (request_id);
create index complaint_at on audit.complaint (at);
create trigger keep before update or delete on audit.complaint for each row execute function audit.keep();

-- What was done about a complaint; it may come before the complaint.
create table audit.complaint_action (
    topic text not null,
    partition integer not null,
    "offset" bigint not null,
    complaint_id text not null,
    action text not null,
    by text,
    text text not null,
    stated_at timestamptz,
    at timestamptz not null,
    stored_at timestamptz not null default now(),
    primary key (topic, partition, "offset")
);
create index complaint_action_complaint on audit.complaint_action (complaint_id);
create trigger keep before update or delete on audit.complaint_action for each row execute function audit.keep();
