select model, version, feature, at, state, rows, psi, psi_limit, jensen_shannon, ks, wasserstein, adwin as mean_changes
from (
    select *, row_number() over (partition by model, version order by psi / nullif(psi_limit, 0) desc nulls last, feature) as nth
    from (
        select distinct on (model, version, feature) *
        from audit.drift_window
        where model = any(%(models)s) and at >= %(first)s and at < %(following)s
        order by model, version, feature, at desc, id
    ) latest
) ranked
where nth <= 20 or state in ('warn', 'alarm')
order by model, version, nth
