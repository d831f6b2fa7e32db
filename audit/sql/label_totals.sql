select e.ended, model, version, c.attribute, c."group", c.decided, c.favourable, c.positive, c.true_positive
from unnest(%s::text[], %s::text[]) asked (model, version)
left join audit.label_epoch e using (model, version)
left join audit.label_count c using (model, version)
order by model, version, attribute, "group"
