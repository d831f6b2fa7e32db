select kind, severity, model, version, count(*) as alerts, min(at) as first, max(at) as last,
       (array_agg(message order by at desc, id))[1] as latest_message, (array_agg(action order by at desc, id))[1] as action
from audit.alert
where (model = any(%(models)s) or model is null) and at >= %(first)s and at < %(following)s
group by 1, 2, 3, 4
order by 1, 2, 3, 4
