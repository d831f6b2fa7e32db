counted as (
    select release_id, attributes_id, decision, date_trunc(%(bucket)s, received_at, 'UTC') as bucket, count(*) as n
    from audit.decision_row
    where received_at >= %(first)s and received_at < %(following)s and status = 0 and decision is not null
    group by 1, 2, 3, 4
), grouped as (
    select r.model, r.version, c.bucket, g.attribute, g."group", sum(c.n)::bigint as decided,
           coalesce(sum(c.n) filter (where c.decision = s.favourable), 0)::bigint as favourable
    from counted c
    join audit.release r on r.id = c.release_id and r.model = any(%(models)s)
    {% include "attributes.sql" %}
    group by 1, 2, 3, 4, 5
)