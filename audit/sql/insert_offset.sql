insert into audit.source_offset (topic, partition, next_offset) values (%s, %s, %s) on conflict do nothing
