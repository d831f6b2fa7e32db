select r.model, r.version, (array['OK', 'REJECTED', 'EXPIRED', 'FAILED'])[d.status + 1] as status, d.error_code,
       sum(d.n)::bigint as requests,
       (sum(d.n) / sum(sum(d.n)) over (partition by r.model, r.version))::double precision as share,
       coalesce(sum(d.n) filter (where r.frozen is not null), 0)::bigint as under_a_freeze
from (
    select release_id, status, error_code, count(*) as n
    from audit.decision_row
    where received_at >= %(first)s and received_at < %(following)s
    group by 1, 2, 3
) d
join audit.release r on r.id = d.release_id and r.model = any(%(models)s)
group by 1, 2, d.status, 4
order by 1, 2, requests desc, 4
