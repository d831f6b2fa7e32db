insert into audit.dead_letter (request_topic, request_partition, request_offset, received_at,
    dlt_topic, dlt_partition, dlt_offset, sha256, size, reason, message, stage, at)
values (%(topic)s, %(partition)s, %(offset)s, %(received_at)s,
    %(dlt_topic)s, %(dlt_partition)s, %(dlt_offset)s, %(sha256)s, %(size)s, %(reason)s, %(message)s, %(stage)s, %(at)s)
on conflict do nothing
