select r.model, r.version, r.variant, left(r.certificate, 12) as certificate, min(d.first) as first_answer, max(d.last) as last_answer,
       sum(d.n)::bigint as requests, left(s.sha256, 12) as model_sha256, s.stated ->> 'risk_class' as risk_class, s.favourable,
       (s.stated ->> 'disparity_limit')::double precision as disparity_limit, s.stated ->> 'freeze_on' as freeze_on
from (
    select release_id, min(answered_at) as first, max(answered_at) as last, count(*) as n
    from audit.decision_row
    where received_at >= %(first)s and received_at < %(following)s and status = 0
    group by 1
) d
join audit.release r on r.id = d.release_id and r.model = any(%(models)s)
left join audit.model_setting_now s on s.model = r.model and s.version = r.version
group by r.model, r.version, r.variant, r.certificate, s.sha256, s.stated, s.favourable
order by 1, 2, first_answer, 3
