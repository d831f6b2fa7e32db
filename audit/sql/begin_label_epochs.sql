-- By the newest unfreeze of each release that says which freeze it ends, as the monitor does. A clock that is ahead does
-- not date it later than it was stored.
insert into audit.label_epoch (model, version, ended, since)
select u.model, u.version, u.ended, u.since
from (
    select distinct on (model, version) model, version, control_id as ended, least(requested_at, at) as since
    from audit.control_event where kind = 'unfreeze' and control_id <> ''
    order by model, version, partition, "offset" desc
) u
left join audit.label_epoch e on e.model = u.model and e.version = u.version
where e.ended is distinct from u.ended
    and exists (select from audit.model_setting s where s.model = u.model and s.version = u.version)
on conflict (model, version) do update set ended = excluded.ended, since = excluded.since
returning model, version
