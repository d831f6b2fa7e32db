with {% include "groups.sql" %}, cells as (
    select model, version, attribute, "group", sum(decided)::bigint as decided, sum(favourable)::bigint as favourable
    from grouped
    group by 1, 2, 3, 4
), {% set cell = "model, version, attribute" %}{% include "hidden.sql" %}
select model, version, attribute, count(*) as groups_compared, sum(decided)::bigint as decisions,
       max(rate) - min(rate) as demographic_parity_difference, min(rate) / nullif(max(rate), 0) as demographic_parity_ratio
from hidden
cross join lateral (select favourable::double precision / decided as rate) w
where not hidden and "group" is not null
group by 1, 2, 3
order by 1, 2, 3
