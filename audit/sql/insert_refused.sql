insert into audit.refused (request_topic, request_partition, request_offset, sqlstate, reason, row)
values (%s, %s, %s, %s, %s, %s)
