insert into audit.release (key, model, version, variant, certificate, frozen)
select * from unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
on conflict do nothing
