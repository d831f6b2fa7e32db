insert into audit.refused_record (topic, partition, "offset", reason, message, sha256, size, produced_at)
values (%(topic)s, %(partition)s, %(offset)s, %(reason)s, %(message)s, %(sha256)s, %(size)s, %(produced_at)s)
on conflict do nothing
