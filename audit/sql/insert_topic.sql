insert into audit.topic (key, topic)
select * from unnest(%s::uuid[], %s::text[])
on conflict do nothing
