select r.model, r.version, sum(d.decisions)::bigint as decisions, sum(d.labelled)::bigint as labelled,
       (sum(d.labelled) / sum(d.decisions))::double precision as label_coverage,
       (sum(d.consented) / sum(d.decisions))::double precision as consent_coverage
from (
    select w.release_id, count(*) as decisions, count(j.label_id) as labelled, count(w.consent_id) as consented
    from audit.decision_row w
    left join audit.label_join j on j.topic_id = w.topic_id and j.request_partition = w.request_partition
        and j.request_offset = w.request_offset and j.received_at = w.received_at
    where w.received_at >= %(first)s and w.received_at < %(following)s and w.status = 0 and w.decision is not null
    group by 1
) d
join audit.release r on r.id = d.release_id and r.model = any(%(models)s)
group by 1, 2
order by 1, 2
