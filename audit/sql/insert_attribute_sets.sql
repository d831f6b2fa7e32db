insert into audit.attribute_set (id, attributes)
select id, attributes::jsonb from unnest(%s::uuid[], %s::text[]) as found (id, attributes)
on conflict do nothing
