cells as (
    select f.* from audit.fairness_window f join records using (id)
), {% set cell = "id" %}{% set missing = "round(decisions * (1 - coverage))" %}{% include "hidden.sql" %}, flagged as (
    select *, coalesce(bool_or(hidden) over (partition by id), false) as any_hidden,
           sum(decided) over (partition by id) - decided as others
    from hidden
), rounded as (
    -- where a group is hidden, differences from all others are rounded to 30 decisions of those
    select *, case when not any_hidden or compared_with <> '*' then 1e-12
                   when others >= 1500 then 30.0 / others end::double precision as step
    from flagged
    where hidden is not true
)
