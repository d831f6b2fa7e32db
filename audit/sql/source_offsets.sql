select topic, partition, next_offset from audit.source_offset where topic = any(%s)
