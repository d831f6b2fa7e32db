-- A clock that is ahead does not date a label later than it was stored.
insert into audit.label (topic, partition, "offset", request_id, model, outcome, labelled_by, stated_at, at, state, reason)
values (%(topic)s, %(partition)s, %(offset)s, %(request_id)s, %(model)s, %(outcome)s, %(by)s, %(stated_at)s,
    least(%(stated_at)s::timestamptz, now()), %(state)s, %(reason)s)
on conflict do nothing
