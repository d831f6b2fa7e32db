with {% include "labelled.sql" %}
select model, version, attribute, coalesce("group", '(not stated)') as "group", decisions, decided as labelled,
       decided::double precision / decisions as label_coverage, correct::double precision / decided as accuracy,
       true_positive_rate, false_positive_rate
from rates
order by 1, 2, 3, decisions desc, 4
