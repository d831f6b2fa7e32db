with records as (
    select distinct on (model, version, attribute, definition, epoch) id
    from audit.fairness_window
    where model = any(%(models)s) and at >= %(first)s and at < %(following)s
    order by model, version, attribute, definition, epoch, at desc, id
), {% include "tested.sql" %}
select model, version, attribute, definition, epoch, "group", decided, rate, compared_with,
       round(difference / step) * step as difference, round(difference_low / step) * step as difference_low,
       round(difference_high / step) * step as difference_high, group_state as state
from rounded
where "group" is not null
order by model, version, attribute, definition, epoch, "group"
