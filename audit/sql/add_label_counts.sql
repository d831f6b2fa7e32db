insert into audit.label_count (key, model, version, attribute, "group", decided, favourable, positive, true_positive)
select encode(substr(sha256(convert_to(jsonb_build_array(model, version, attribute, "group")::text, 'UTF8')), 1, 16), 'hex')::uuid,
       model, version, attribute, "group", decided, favourable, positive, true_positive
from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
     c (model, version, attribute, "group", decided, favourable, positive, true_positive)
on conflict (key) do update
set decided = label_count.decided + excluded.decided, favourable = label_count.favourable + excluded.favourable,
    positive = label_count.positive + excluded.positive, true_positive = label_count.true_positive + excluded.true_positive
