with {% include "groups.sql" %}, cells as (
    select model, version, attribute, "group", sum(decided)::bigint as decided
    from grouped
    group by 1, 2, 3, 4
), {% set cell = "model, version, attribute" %}{% include "hidden.sql" %}, timed as (
    select g.*, sum(g.decided) over (partition by g.model, g.version, g.attribute, g."group"
                                     order by g.decided >= 30, g.decided, g.bucket
                                     rows between unbounded preceding and 1 preceding) as earlier
    from grouped g
    join hidden h on h.model = g.model and h.version = g.version and h.attribute = g.attribute
        and h."group" = g."group" and not h.hidden
)
select model, version, attribute, bucket, "group", decided, favourable, rate as selection_rate, low, high
from timed
{% include "wilson.sql" %}
where decided >= 30 and (earlier is null or earlier >= 30)
order by 1, 2, 3, 4, 5
