with {% include "groups.sql" %}, cells as (
    select model, version, attribute, "group", sum(decided)::bigint as decided
    from grouped
    group by 1, 2, 3, 4
), {% set cell = "model, version, attribute" %}{% include "hidden.sql" %}
select model, version, attribute, sum(decided)::bigint as decisions,
       (coalesce(sum(decided) filter (where "group" is not null and not hidden), 0) / sum(decided))::double precision
           as attribute_coverage
from hidden
group by 1, 2, 3
order by 1, 2, 3
