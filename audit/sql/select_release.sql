select key, id from audit.release where key = any(%s)
