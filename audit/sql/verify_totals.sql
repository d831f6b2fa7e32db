select count(*), count(distinct (topic, partition)), coalesce(sum(records), 0)::bigint,
       coalesce(sum(decisions), 0)::bigint, coalesce(sum(dead_letters), 0)::bigint, coalesce(sum(refused), 0)::bigint,
       count(*) filter (where at > %(cutoff)s and (decisions + dead_letters + refused < records or chained_to < from_offset)),
       coalesce(sum(records - decisions - dead_letters - refused)
           filter (where at > %(cutoff)s and decisions + dead_letters + refused < records), 0)::bigint,
       count(*) filter (where chained_to > from_offset
           or decisions + dead_letters + refused > records
           or at <= %(cutoff)s and (decisions + dead_letters + refused < records or chained_to < from_offset))
from audit.source_range_check
