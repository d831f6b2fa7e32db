with {% include "groups.sql" %}, cells as (
    select model, version, attribute, "group", sum(decided)::bigint as decided, sum(favourable)::bigint as favourable
    from grouped
    group by 1, 2, 3, 4
), {% set cell = "model, version, attribute" %}{% include "hidden.sql" %}
select model, version, attribute, coalesce("group", '(not stated)') as "group", decided, favourable,
       rate as selection_rate, low, high,
       case when "group" is not null
            then rate / nullif(max(rate) filter (where "group" is not null) over (partition by model, version, attribute), 0)
       end as impact_ratio
from hidden
{% include "wilson.sql" %}
where not hidden
union all
select model, version, attribute, '(' || count(*) || ' hidden)', null, null, null, null, null, null
from hidden
where hidden
group by 1, 2, 3
order by 1, 2, 3, decided desc nulls last, 4
