insert into audit.complaint_action (topic, partition, "offset", complaint_id, action, by, text, stated_at, at)
values (%(topic)s, %(partition)s, %(offset)s, %(complaint_id)s, %(action)s, %(by)s, %(text)s, %(stated_at)s,
    least(%(stated_at)s::timestamptz, now()))
on conflict do nothing
