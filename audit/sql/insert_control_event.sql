insert into audit.control_event (topic, partition, "offset", kind, model, version, variant, requested_by, reason, requested_at, control_id)
values (%(topic)s, %(partition)s, %(offset)s, %(kind)s, %(model)s, %(version)s, %(variant)s, %(by)s, %(reason)s, %(at)s, %(id)s)
on conflict do nothing
