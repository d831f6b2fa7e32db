-- Of decisions that were made since the last freeze was ended.
select r.model, r.version, g.decision, coalesce(a.attributes, '{}'), g.outcome, g.n
from (
    select d.release_id, d.attributes_id, d.decision, l.outcome, count(*) as n
    from audit.label_join j
    join audit.label l on l.id = j.label_id
    join audit.decision_row d on d.topic_id = j.topic_id and d.request_partition = j.request_partition
        and d.request_offset = j.request_offset and d.received_at = j.received_at
    join audit.release r on r.id = d.release_id
    left join audit.label_epoch e on e.model = r.model and e.version = r.version
    where r.model = %s and r.version = %s
        and (e.ended is null or d.answered_at > e.since and r.frozen is distinct from e.ended)
    group by 1, 2, 3, 4
) g
join audit.release r on r.id = g.release_id
left join audit.attribute_set a on a.id = g.attributes_id
