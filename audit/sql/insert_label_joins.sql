insert into audit.label_join (topic_id, request_partition, request_offset, received_at, label_id)
select * from unnest(%s::integer[], %s::integer[], %s::bigint[], %s::timestamptz[], %s::bigint[])
