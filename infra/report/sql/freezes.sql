select i.model, i.version, i.frozen_at, i.by as frozen_by, i.reason, i.evidence ->> 'attribute' as attribute,
       i.evidence ->> 'definition' as definition, (i.evidence ->> 'value')::double precision as value,
       (i.evidence ->> 'limit')::double precision as "limit", i.unfrozen_at, i.unfrozen_by, i.unfreeze_reason,
       (select count(*) from audit.decision_row d join audit.release r on r.id = d.release_id
        where r.frozen = i.id) as answers_under_it
from audit.incident i
where i.model = any(%(models)s) and (i.frozen_at is null or i.frozen_at < %(following)s)
  and (i.unfrozen_at is null or i.unfrozen_at >= %(first)s)
order by i.frozen_at, i.id
