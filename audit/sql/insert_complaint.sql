-- The same complaint again is ignored; another one under its id is refused.
with given (complaint_id, request_id, model, by_pseudonym, text) as (
    values (%(complaint_id)s::text, %(request_id)s::text, %(model)s::text, %(by)s::text, %(text)s::text)
), added as (
    insert into audit.complaint (complaint_id, request_id, model, by_pseudonym, text, stated_at, at, topic, partition, "offset")
    select complaint_id, request_id, model, by_pseudonym, text, %(stated_at)s::timestamptz, least(%(stated_at)s::timestamptz, now()),
           %(topic)s, %(partition)s, %(offset)s
    from given
    on conflict do nothing
    returning complaint_id
)
insert into audit.refused_record (topic, partition, "offset", reason, message, sha256, size)
select %(topic)s, %(partition)s, %(offset)s, 'duplicate_id',
       'complaint_id is that of another complaint; choose another one', sha256(convert_to(g.text, 'UTF8')), length(g.text)
from given g
where not exists (select from added)
  and not exists (select from audit.complaint c
                  where c.complaint_id = g.complaint_id and c.text = g.text
                    and (c.request_id, c.model, c.by_pseudonym) is not distinct from (g.request_id, g.model, g.by_pseudonym))
on conflict do nothing
