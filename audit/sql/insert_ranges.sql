insert into audit.source_range_row (topic_id, worker_id, partition, from_offset, next_offset, records)
select * from unnest(%s::integer[], %s::integer[], %s::integer[], %s::bigint[], %s::bigint[], %s::bigint[])
