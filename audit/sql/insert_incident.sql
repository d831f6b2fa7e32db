-- An unfreeze that names none ends the one that is open. One whose freeze was compacted away leaves a row without it.
insert into audit.incident (id, model, version, frozen_at, by, reason, evidence, unfrozen_at, unfrozen_by, unfreeze_reason)
values (
    coalesce(%(id)s::text,
        case when not %(begins)s then (
            select id from audit.incident
            where model = %(model)s and version = %(version)s and unfrozen_at is null order by frozen_at desc limit 1) end,
        %(place)s),
    %(model)s, %(version)s, %(frozen_at)s, %(by)s, %(reason)s, %(evidence)s, %(unfrozen_at)s, %(unfrozen_by)s, %(unfreeze_reason)s)
on conflict (id) do update
set unfrozen_at = excluded.unfrozen_at, unfrozen_by = excluded.unfrozen_by, unfreeze_reason = excluded.unfreeze_reason
where audit.incident.unfrozen_at is null and excluded.unfrozen_at is not null
