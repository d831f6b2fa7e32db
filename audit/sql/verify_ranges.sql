select topic, partition, from_offset, next_offset, records, decisions, dead_letters, refused, chained_to,
       at > %(cutoff)s as fresh
from audit.source_range_check
where chained_to > from_offset
   or decisions + dead_letters + refused > records
   or at <= %(cutoff)s and (decisions + dead_letters + refused < records or chained_to < from_offset)
order by topic, partition, from_offset
limit %(limit)s
