-- What still waits is tried again ever later: after 1 s, 2 s, 4 s, up to an hour.
update audit.label l
set state = v.state, reason = v.reason,
    tries = l.tries + 1, retry_at = now() + least(interval '1 second' * power(2, least(l.tries, 12)), interval '1 hour')
from unnest(%(ids)s::bigint[], %(states)s::text[], %(reasons)s::text[]) v (id, state, reason)
where l.id = v.id
