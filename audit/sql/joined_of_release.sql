select r.model, r.version, g.decision, coalesce(a.attributes, '{}'), g.outcome, g.n
from (
    select d.release_id, d.attributes_id, d.decision, l.outcome, count(*) as n
    from audit.label_join j
    join audit.label l on l.id = j.label_id
    join audit.decision_row d on d.topic_id = j.topic_id and d.request_partition = j.request_partition
        and d.request_offset = j.request_offset and d.received_at = j.received_at
    where d.release_id in (select id from audit.release where model = %s and version = %s)
    group by 1, 2, 3, 4
) g
join audit.release r on r.id = g.release_id
left join audit.attribute_set a on a.id = g.attributes_id
