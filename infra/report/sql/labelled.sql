counted as (
    select d.release_id, d.attributes_id, d.decision, l.outcome, count(*) as decisions, count(l.id) as n
    from audit.decision_row d
    left join audit.label_join j on j.topic_id = d.topic_id and j.request_partition = d.request_partition
        and j.request_offset = d.request_offset and j.received_at = d.received_at
    left join audit.label l on l.id = j.label_id
    where d.received_at >= %(first)s and d.received_at < %(following)s and d.status = 0 and d.decision is not null
    group by 1, 2, 3, 4
), cells as (
    select r.model, r.version, g.attribute, g."group", sum(c.decisions)::bigint as decisions,
           sum(c.n)::bigint as decided, sum(sum(c.n)) over (partition by r.model, r.version) as labelled_in_all,
           coalesce(sum(c.n) filter (where c.decision = c.outcome), 0)::bigint as correct,
           coalesce(sum(c.n) filter (where c.decision = s.favourable), 0)::bigint as favourable,
           coalesce(sum(c.n) filter (where c.outcome = s.favourable), 0)::bigint as positive,
           coalesce(sum(c.n) filter (where c.decision = s.favourable and c.outcome = s.favourable), 0)::bigint
               as true_positive
    from counted c
    join audit.release r on r.id = c.release_id and r.model = any(%(models)s)
    {% include "attributes.sql" %}
    group by 1, 2, 3, 4
), {% set cell = "model, version, attribute" %}{% include "hidden.sql" %}, rates as (
    select *, case when positive >= 30 then true_positive::double precision / positive end as true_positive_rate,
           case when decided - positive >= 30
                then (favourable - true_positive)::double precision / (decided - positive) end as false_positive_rate
    from hidden
    where not hidden and labelled_in_all > 0
)