with records as (
    select distinct on (model, version, attribute, definition, epoch, date_trunc(%(bucket)s, at, 'UTC')) id
    from audit.fairness_window
    where model = any(%(models)s) and at >= %(first)s and at < %(following)s
    order by model, version, attribute, definition, epoch, date_trunc(%(bucket)s, at, 'UTC'), at desc, id
), {% include "tested.sql" %}
select model, version, attribute, definition, epoch, at, "group", decided, round(difference / step) * step as difference,
       round(difference_low / step) * step as difference_low, round(difference_high / step) * step as difference_high,
       "limit"
from rounded
where difference is not null and step is not null
order by model, version, attribute, definition, at, "group"
