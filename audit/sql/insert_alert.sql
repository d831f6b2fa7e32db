insert into audit.alert (id, kind, severity, model, version, message, action, taken, evidence, at)
values (%(id)s, %(kind)s, %(severity)s, %(model)s, %(version)s, %(message)s, %(action)s, %(taken)s, %(evidence)s, %(at)s)
on conflict do nothing
