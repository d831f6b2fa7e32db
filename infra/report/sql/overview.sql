select r.model, r.version, sum(d.n)::bigint as requests,
       round(100 * sum(d.n) filter (where d.status = 0) / sum(d.n), 2)::double precision as answered_percent,
       (select case max(array_position(array['insufficient', 'ok', 'warn', 'alarm'], w.state))
                   when 4 then 'alarm' when 3 then 'warn' when 2 then 'ok' when 1 then 'insufficient'
                   else 'not watched' end
        from (select distinct on (f.attribute, f.definition) f.state
              from audit.fairness_window f
              where f.model = r.model and f.version = r.version and f.at >= %(first)s and f.at < %(following)s
              order by f.attribute, f.definition, f.epoch desc, f.at desc) w) as state_at_the_end,
       (select count(*) from audit.incident i
        where i.model = r.model and i.version = r.version
          and i.frozen_at >= %(first)s and i.frozen_at < %(following)s) as freezes,
       (select count(*) from audit.complaint_state c
        where c.model = r.model and c.version = r.version
          and c.opened_at >= %(first)s and c.opened_at < %(following)s) as complaints
from (
    select release_id, status, count(*) as n
    from audit.decision_row
    where received_at >= %(first)s and received_at < %(following)s
    group by 1, 2
) d
join audit.release r on r.id = d.release_id and r.model = any(%(models)s)
group by r.model, r.version
order by 1, 2
