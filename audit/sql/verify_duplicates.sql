with sources as (
    select topic_id, request_partition, request_offset from audit.decision_row
    union all
    select t.id, l.request_partition, l.request_offset
    from audit.dead_letter l join audit.topic t on t.topic = l.request_topic
    union all
    select t.id, r.request_partition, r.request_offset
    from audit.refused r join audit.topic t on t.topic = r.request_topic
)
select t.topic, d.request_partition, d.request_offset, d.n, count(*) over () as sources
from (
    select topic_id, request_partition, request_offset, count(*) as n
    from sources
    group by topic_id, request_partition, request_offset
    having count(*) > 1
) d
left join audit.topic t on t.id = d.topic_id
order by 1, 2, 3
limit %(limit)s
