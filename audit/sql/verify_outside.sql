with ranges as (
    select topic_id, partition, from_offset, next_offset, max(next_offset) over earlier as chained_to
    from audit.source_range_row
    window earlier as (partition by topic_id, partition order by from_offset, next_offset
                       rows between unbounded preceding and 1 preceding)
), gaps as (
    select topic_id, partition, coalesce(chained_to, -9223372036854775808) as first, from_offset as following
    from ranges
    where chained_to is null or chained_to < from_offset
    union all
    select topic_id, partition, max(next_offset), 9223372036854775807
    from ranges
    group by topic_id, partition
    union all
    select distinct topic_id, request_partition, -9223372036854775808, 9223372036854775807
    from audit.decision_row d
    where not exists (
        select from audit.source_range_row s where s.topic_id = d.topic_id and s.partition = d.request_partition)
)
select t.topic, g.partition, f.first, f.last, f.fresh, f.decisions
from gaps g
cross join lateral (
    select min(request_offset) as first, max(request_offset) as last, d.answered_at > %(cutoff)s as fresh,
           count(*) as decisions
    from audit.decision_row d
    where d.topic_id = g.topic_id and d.request_partition = g.partition
      and d.request_offset >= g.first and d.request_offset < g.following
    group by d.answered_at > %(cutoff)s
) f
left join audit.topic t on t.id = g.topic_id
order by 1, 2, 3
