-- Whether the reader may see groups of fewer than 30, evidence, and what people wrote: the owner of the store and the
-- members of lrai_attributes_reader may.
create function audit.sees_small_groups() returns boolean language sql stable as $$
    select pg_has_role(current_user, n.nspowner, 'usage')
        or exists (select from pg_roles r
                   where r.rolname = 'lrai_attributes_reader' and pg_has_role(current_user, r.oid, 'usage'))
    from pg_namespace n where n.nspname = 'audit'
$$;

create function audit.group_size_min() returns bigint language sql immutable as 'select 30::bigint';

create or replace view audit.decision_without_attributes as
select d.request_id,
       r.model, r.version, r.variant,
       (array['OK', 'REJECTED', 'EXPIRED', 'FAILED'])[d.status + 1] as status,
       d.error_code, d.error_message, d.score, d.decision,
       d.subject_pseudonym,
       t.topic as request_topic, d.request_partition, d.request_offset,
       d.received_at, d.answered_at, d.queue_s, d.execution_s, d.rows, d.batch_rows,
       w.worker, r.certificate, d.consent_id, d.purpose, r.frozen
from audit.decision_row d
left join audit.release r on r.id = d.release_id
left join audit.topic t on t.id = d.topic_id
left join audit.worker w on w.id = d.worker_id;

create or replace view audit.decision as
select d.request_id,
       r.model, r.version, r.variant,
       (array['OK', 'REJECTED', 'EXPIRED', 'FAILED'])[d.status + 1] as status,
       d.error_code, d.error_message, d.score, d.decision,
       coalesce(a.attributes, '{}') as attributes,
       d.subject_pseudonym,
       t.topic as request_topic, d.request_partition, d.request_offset,
       d.received_at, d.answered_at, d.queue_s, d.execution_s, d.rows, d.batch_rows,
       w.worker, r.certificate, d.consent_id, d.purpose, r.frozen
from audit.decision_row d
left join audit.release r on r.id = d.release_id
left join audit.topic t on t.id = d.topic_id
left join audit.worker w on w.id = d.worker_id
left join audit.attribute_set a on a.id = d.attributes_id;

create or replace view audit.latency_by_model as
select r.model, r.version, r.variant, r.certificate, l.requests,
       l.inside_s[1] as inside_s_p50, l.inside_s[2] as inside_s_p95, l.inside_s[3] as inside_s_p99,
       l.total_s[1] as total_s_p50, l.total_s[2] as total_s_p95, l.total_s[3] as total_s_p99, r.frozen
from (
    select release_id, count(*) as requests,
           percentile_cont(array[0.5, 0.95, 0.99]) within group (order by (queue_s + execution_s)::double precision) as inside_s,
           percentile_cont(array[0.5, 0.95, 0.99]) within group (
               order by extract(epoch from answered_at - received_at)::double precision) as total_s
    from audit.decision_row
    group by release_id
) l
left join audit.release r on r.id = l.release_id;

-- What a model's owner states now.
create view audit.model_setting_now as
select distinct on (model, version) * from audit.model_setting order by model, version, id desc;

-- What answered when, and with which certificate.
create view audit.model_release as
select r.model, r.version, r.variant, r.certificate, s.sha256, s.stated ->> 'risk_class' as risk_class,
       min(d.first) as first_answered_at, max(d.last) as last_answered_at, sum(d.requests)::bigint as requests,
       coalesce(sum(d.requests) filter (where r.frozen is not null), 0)::bigint as requests_frozen
from (
    select release_id, min(answered_at) as first, max(answered_at) as last, count(*) as requests
    from audit.decision_row group by release_id
) d
join audit.release r on r.id = d.release_id
left join audit.model_setting_now s on s.model = r.model and s.version = r.version
group by 1, 2, 3, 4, 5, 6;

create view audit.cost_by_model_hour as
select date_trunc('hour', at) as hour, model, version, currency, energy_source,
       sum(requests)::bigint as requests, sum(cpu_s) as cpu_s, sum(gpu_s) as gpu_s, sum(energy_j) as energy_j,
       sum(cost) as cost,
       sum(cpu_s) / nullif(sum(requests), 0) as cpu_s_per_request,
       sum(gpu_s) / nullif(sum(requests), 0) as gpu_s_per_request,
       sum(energy_j) / nullif(sum(requests), 0) as energy_j_per_request,
       sum(cost) / nullif(sum(requests), 0) as cost_per_request
from audit.tally_row
where kind = 'decisions'
group by 1, 2, 3, 4, 5;

-- Who may not see small groups gets them without name and numbers. Where there is but one, the next larger one is hidden
-- with it, and with any hidden so is what it could be worked out from: coverage, value, ratio and the differences.
create view audit.fairness_window as
select id, model, version, attribute, definition, epoch, since, at, decisions,
       case when not h.any_hidden then coverage end as coverage,
       case when not h.any_hidden then value end as value,
       case when not h.any_hidden then ratio end as ratio,
       "limit", alpha, method, state,
       case when h.hidden then '(under 30)' else "group" end as "group",
       case when not h.hidden then decided end as decided,
       case when not h.hidden then favourable end as favourable,
       case when not h.hidden then rate end as rate,
       case when not h.hidden then low end as low,
       case when not h.hidden then high end as high,
       case when not h.any_hidden then compared_with end as compared_with,
       case when not h.any_hidden then difference end as difference,
       case when not h.any_hidden then difference_low end as difference_low,
       case when not h.any_hidden then difference_high end as difference_high,
       group_state
from (
    select *, count(*) filter (where decided < audit.group_size_min()) over record as small,
           row_number() over (partition by model, version, attribute, definition, at, id order by decided) as nth
    from audit.fairness_row
    window record as (partition by model, version, attribute, definition, at, id)
) f
cross join (select audit.sees_small_groups() as all_of_it) reader
cross join lateral (
    select not all_of_it and small > 0 as any_hidden,
           not all_of_it and (decided < audit.group_size_min() or small = 1 and nth = 2) as hidden
) h;

-- Each decision that has a label. One that a label joined, so that this is what the totals were counted from.
create view audit.labelled_decision as
select r.model, r.version, d.request_id, d.decision, l.outcome, l.labelled_by, l.at as labelled_at, j.joined_at,
       t.topic as request_topic, d.request_partition, d.request_offset, d.received_at, d.answered_at
from audit.label_join j
join audit.label l on l.id = j.label_id
join audit.decision_row d on d.topic_id = j.topic_id and d.request_partition = j.request_partition
    and d.request_offset = j.request_offset and d.received_at = j.received_at
join audit.release r on r.id = d.release_id
left join audit.topic t on t.id = d.topic_id;

-- Decisions and labels by group, from the rows themselves: whatever audit.label_count says, this is right.
-- "group" is null where the request did not state the attribute, or one of an intersection.
create view audit.labelled_group as
with decided as (
    select release_id, attributes_id, count(*) as n
    from audit.decision_row where status = 0 and decision is not null
    group by 1, 2
), labelled as (
    select d.release_id, d.attributes_id, d.decision, l.outcome, count(*) as n
    from audit.label_join j
    join audit.label l on l.id = j.label_id
    join audit.decision_row d on d.topic_id = j.topic_id and d.request_partition = j.request_partition
        and d.request_offset = j.request_offset and d.received_at = j.received_at
    group by 1, 2, 3, 4
), together as (
    select release_id, attributes_id, n as decisions, null as decision, null as outcome, 0 as n from decided
    union all
    select release_id, attributes_id, 0, decision, outcome, n from labelled
)
select r.model, r.version, g.attribute, g."group",
       sum(b.decisions)::bigint as decisions,
       sum(b.n)::bigint as labelled,
       coalesce(sum(b.n) filter (where b.decision = b.outcome), 0)::bigint as correct,
       coalesce(sum(b.n) filter (where b.decision = s.favourable), 0)::bigint as favourable,
       coalesce(sum(b.n) filter (where b.outcome = s.favourable), 0)::bigint as positive,
       coalesce(sum(b.n) filter (where b.decision = s.favourable and b.outcome = s.favourable), 0)::bigint as true_positive
from together b
join audit.release r on r.id = b.release_id
join audit.model_setting_now s on s.model = r.model and s.version = r.version
left join audit.attribute_set a on a.id = b.attributes_id
cross join lateral jsonb_array_elements(s.attributes) listed (parts)
cross join lateral (
    select string_agg(part, '+' order by nth) as attribute,
           case when count(nullif(a.attributes ->> part, '')) = count(*)
               then string_agg(a.attributes ->> part, '+' order by nth) end as "group"
    from jsonb_array_elements_text(listed.parts) with ordinality p (part, nth)
) g
group by 1, 2, 3, 4;

create view audit.labelled_group_shown as
select model, version, attribute,
       case when h.hidden then '(under 30)' else "group" end as "group", h.hidden,
       decisions, labelled, correct, favourable, positive, true_positive
from (
    select *, count(*) filter (where labelled < audit.group_size_min()) over attribute_ as small,
           row_number() over (partition by model, version, attribute order by labelled, "group") as nth
    from audit.labelled_group
    window attribute_ as (partition by model, version, attribute)
) f
cross join (select audit.sees_small_groups() as all_of_it) reader
cross join lateral (
    select not all_of_it and (labelled < audit.group_size_min() or small = 1 and nth = 2) as hidden
) h;

create view audit.accuracy_by_group as
select model, version, attribute, "group",
       case when not hidden then labelled end as labelled,
       case when not hidden then correct end as correct,
       case when not hidden then correct::double precision / nullif(labelled, 0) end as accuracy,
       case when not hidden then labelled::double precision / nullif(decisions, 0) end as coverage
from audit.labelled_group_shown;

create view audit.odds_by_group as
select model, version, attribute, "group",
       case when not hidden then labelled end as labelled,
       case when not hidden then positive end as positive,
       case when not hidden then true_positive end as true_positive,
       case when not hidden then labelled - positive end as negative,
       case when not hidden then favourable - true_positive end as false_positive,
       case when not hidden then true_positive::double precision / nullif(positive, 0) end as true_positive_rate,
       case when not hidden then (favourable - true_positive)::double precision / nullif(labelled - positive, 0) end
           as false_positive_rate,
       case when not hidden then labelled::double precision / nullif(decisions, 0) end as coverage
from audit.labelled_group_shown g
where exists (select from audit.model_setting_now s
              where s.model = g.model and s.version = g.version and s.favourable is not null);

create view audit.label_coverage as
select r.model, r.version, sum(d.decisions)::bigint as decisions, coalesce(sum(l.labelled), 0)::bigint as labelled,
       coalesce(sum(l.labelled), 0)::double precision / nullif(sum(d.decisions), 0) as coverage
from (
    select release_id, count(*) as decisions
    from audit.decision_row where status = 0 and decision is not null group by 1
) d
left join (
    select d.release_id, count(*) as labelled
    from audit.label_join j
    join audit.decision_row d on d.topic_id = j.topic_id and d.request_partition = j.request_partition
        and d.request_offset = j.request_offset and d.received_at = j.received_at
    group by 1
) l on l.release_id = d.release_id
join audit.release r on r.id = d.release_id
group by 1, 2;

-- A complaint, the answer that it is about (known: whether there is one), and what was done about it.
create view audit.complaint_state as
select c.complaint_id, case when a.closed_at is null then 'open' else 'closed' end as state,
       c.request_id, d.request_id is not null as known,
       coalesce(d.model, c.model) as model, d.version, d.variant, d.status, d.decision, d.score, d.answered_at, d.frozen,
       c.at as opened_at, c.by_pseudonym,
       case when audit.sees_small_groups() then c.text end as text,
       a.actions, a.closed_at, a.closed_by,
       case when audit.sees_small_groups() then a.closing_text end as closing_text
from audit.complaint c
left join lateral (
    select d.request_id, r.model, r.version, r.variant, r.frozen, d.decision, d.score, d.answered_at,
           (array['OK', 'REJECTED', 'EXPIRED', 'FAILED'])[d.status + 1] as status
    from audit.decision_row d
    join audit.release r on r.id = d.release_id
    where d.request_id = c.request_id and (c.model is null or r.model = c.model)
    order by d.received_at, d.topic_id, d.request_partition, d.request_offset limit 1
) d on true
left join lateral (
    select count(*) as actions,
           min(at) filter (where action = 'closed') as closed_at,
           (array_agg(by order by at, topic, partition, "offset") filter (where action = 'closed'))[1] as closed_by,
           (array_agg(text order by at, topic, partition, "offset") filter (where action = 'closed'))[1] as closing_text
    from audit.complaint_action a where a.complaint_id = c.complaint_id
) a on true;

create view audit.complaints_by_week as
select date_trunc('week', opened_at) as week, model, count(*) as complaints,
       count(*) filter (where state = 'open') as open, count(*) filter (where not known) as unknown_requests
from audit.complaint_state
group by 1, 2;
