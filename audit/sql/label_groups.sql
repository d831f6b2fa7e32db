select c.model, c.version, c.attribute, c."group"
from audit.label_count c
where (c.model, c.version) in (select * from unnest(%s::text[], %s::text[]))
