create view audit.decision_without_attributes as
select d.request_id,
       r.model, r.version, r.variant,
       (array['OK', 'REJECTED', 'EXPIRED', 'FAILED'])[d.status + 1] as status,
       d.error_code, d.error_message, d.score, d.decision,
       d.subject_pseudonym,
       t.topic as request_topic, d.request_partition, d.request_offset,
       d.received_at, d.answered_at, d.queue_s, d.execution_s, d.rows, d.batch_rows,
       w.worker, r.certificate, d.consent_id, d.purpose
from audit.decision_row d
left join audit.release r on r.id = d.release_id
left join audit.topic t on t.id = d.topic_id
left join audit.worker w on w.id = d.worker_id;

create view audit.decision as
select d.request_id,
       r.model, r.version, r.variant,
       (array['OK', 'REJECTED', 'EXPIRED', 'FAILED'])[d.status + 1] as status,
       d.error_code, d.error_message, d.score, d.decision,
       coalesce(a.attributes, '{}') as attributes,
       d.subject_pseudonym,
       t.topic as request_topic, d.request_partition, d.request_offset,
       d.received_at, d.answered_at, d.queue_s, d.execution_s, d.rows, d.batch_rows,
       w.worker, r.certificate, d.consent_id, d.purpose
from audit.decision_row d
left join audit.release r on r.id = d.release_id
left join audit.topic t on t.id = d.topic_id
left join audit.worker w on w.id = d.worker_id
left join audit.attribute_set a on a.id = d.attributes_id;

create view audit.source_range as
select w.worker, t.topic, s.partition, s.from_offset, s.next_offset, s.records, s.at
from audit.source_range_row s
left join audit.topic t on t.id = s.topic_id
left join audit.worker w on w.id = s.worker_id;

-- inside_s: queue and execution as measured by the stages; total_s: from the broker's timestamp to the answer.
create view audit.latency_by_model as
select r.model, r.version, r.variant, r.certificate, l.requests,
       l.inside_s[1] as inside_s_p50, l.inside_s[2] as inside_s_p95, l.inside_s[3] as inside_s_p99,
       l.total_s[1] as total_s_p50, l.total_s[2] as total_s_p95, l.total_s[3] as total_s_p99
from (
    select release_id, count(*) as requests,
           percentile_cont(array[0.5, 0.95, 0.99]) within group (order by (queue_s + execution_s)::double precision) as inside_s,
           percentile_cont(array[0.5, 0.95, 0.99]) within group (
               order by extract(epoch from answered_at - received_at)::double precision) as total_s
    from audit.decision_row
    group by release_id
) l
left join audit.release r on r.id = l.release_id;

create view audit.outcome_by_model_hour as
select r.model, r.version, o.hour, o.status, o.error_code, sum(o.requests)::bigint as requests, sum(o.rows)::bigint as rows
from (
    select release_id, date_trunc('hour', answered_at) as hour,
           (array['OK', 'REJECTED', 'EXPIRED', 'FAILED'])[status + 1] as status,
           error_code, count(*) as requests, sum(rows) as rows
    from audit.decision_row
    group by 1, 2, 3, 4
) o
left join audit.release r on r.id = o.release_id
group by 1, 2, 3, 4, 5;

-- Of the n answered requests of a group, the share that got this decision.
create view audit.selection_rate_by_attribute as
with counted as (
    select release_id, attributes_id, decision, count(*) as n
    from audit.decision_row
    where status = 0 and decision is not null and attributes_id is not null
    group by release_id, attributes_id, decision
), grouped as (
    select r.model, r.version, e.key as attribute, e.value as "group", c.decision, sum(c.n)::bigint as decided
    from counted c
    join audit.release r on r.id = c.release_id
    join audit.attribute_set a on a.id = c.attributes_id
    cross join lateral jsonb_each_text(a.attributes) e
    group by 1, 2, 3, 4, 5
)
select model, version, attribute, "group", decision,
       (sum(decided) over same_group)::bigint as n,
       decided,
       (decided / sum(decided) over same_group)::double precision as selection_rate
from grouped
window same_group as (partition by model, version, attribute, "group");

-- Each source range with what became of its records: chained_to should be from_offset (null at the first one),
-- decisions + dead_letters + refused should be records. A row refused as a duplicate (23505) is no other record.
create view audit.source_range_check as
select t.topic, c.partition, c.from_offset, c.next_offset, c.records, c.at, c.chained_to,
       (select count(*) from audit.decision_row d
        where d.topic_id = c.topic_id and d.request_partition = c.partition
          and d.request_offset >= c.from_offset and d.request_offset < c.next_offset) as decisions,
       (select count(*) from audit.dead_letter l
        where l.request_topic = t.topic and l.request_partition = c.partition
          and l.request_offset >= c.from_offset and l.request_offset < c.next_offset) as dead_letters,
       (select count(*) from audit.refused r
        where r.request_topic = t.topic and r.request_partition = c.partition
          and r.request_offset >= c.from_offset and r.request_offset < c.next_offset
          and r.sqlstate <> '23505') as refused
from (
    select topic_id, partition, from_offset, next_offset, records, at, max(next_offset) over earlier as chained_to
    from audit.source_range_row
    window earlier as (partition by topic_id, partition order by from_offset, next_offset
                       rows between unbounded preceding and 1 preceding)
) c
join audit.topic t on t.id = c.topic_id;
