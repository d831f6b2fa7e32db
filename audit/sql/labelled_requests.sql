select l.id, d.topic_id, d.request_partition, d.request_offset, d.received_at, d.model, d.version,
       case when d.status = 0 then d.decision end as decision, coalesce(a.attributes, '{}'),
       (select g.outcome from audit.label_join j join audit.label g on g.id = j.label_id
        where j.topic_id = d.topic_id and j.request_partition = d.request_partition and j.request_offset = d.request_offset),
       e.ended is null or d.answered_at > e.since and d.frozen is distinct from e.ended
from unnest(%(ids)s::bigint[], %(request_ids)s::text[], %(models)s::text[]) l (id, request_id, model)
cross join lateral (
    select d.*, r.model, r.version, r.frozen
    from audit.decision_row d join audit.release r on r.id = d.release_id
    where d.request_id = l.request_id and (l.model is null or r.model = l.model)
    limit %(most)s
) d
left join audit.attribute_set a on a.id = d.attributes_id
left join audit.label_epoch e on e.model = d.model and e.version = d.version
order by l.id, d.received_at, d.topic_id, d.request_partition, d.request_offset
