select model, version, attribute, "group", decided, favourable, positive, true_positive
from audit.label_count
where (model, version) in (select * from unnest(%s::text[], %s::text[]))
order by model, version, attribute, "group"
