update audit.source_offset set next_offset = %s, at = now() where topic = %s and partition = %s and next_offset = %s
