-- With all that wait for the same requests, so that the first one stored is the first one judged.
with due as (
    select id, request_id from audit.label
    where state = 'pending' and retry_at <= now() order by retry_at, id limit %(labels)s
)
select id, request_id, model, outcome from audit.label
where state = 'pending' and (id in (select id from due) or request_id in (select request_id from due))
order by id limit %(labels)s * 2
