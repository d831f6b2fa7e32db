with {% include "labelled.sql" %}
select model, version, attribute, count(*) as groups_compared,
       greatest(max(true_positive_rate) - min(true_positive_rate), max(false_positive_rate) - min(false_positive_rate))
           as equalized_odds_difference,
       max(true_positive_rate) - min(true_positive_rate) as equal_opportunity_difference,
       sum(decided)::double precision / sum(decisions) as label_coverage
from rates
where "group" is not null and true_positive_rate is not null and false_positive_rate is not null
group by 1, 2, 3
having count(*) > 1
order by 1, 2, 3
