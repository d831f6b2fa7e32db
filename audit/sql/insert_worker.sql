insert into audit.worker (key, worker)
select * from unnest(%s::uuid[], %s::text[])
on conflict do nothing
