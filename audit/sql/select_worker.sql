select key, id from audit.worker where key = any(%s)
