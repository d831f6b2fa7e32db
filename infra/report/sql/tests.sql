with records as (
    select distinct on (model, version, attribute, definition, epoch) id
    from audit.fairness_window
    where model = any(%(models)s) and at >= %(first)s and at < %(following)s
    order by model, version, attribute, definition, epoch, at desc, id
), {% include "tested.sql" %}
select distinct model, version, attribute, definition, epoch, since, at, state,
       case when not any_hidden then value end as value, "limit", case when not any_hidden then coverage end as coverage, alpha
from flagged
order by model, version, attribute, definition, epoch
