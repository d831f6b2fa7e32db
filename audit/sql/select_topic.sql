select key, id from audit.topic where key = any(%s)
