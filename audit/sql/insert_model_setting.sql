-- Nothing where the newest row says the same already.
insert into audit.model_setting (model, version, sha256, favourable, labels, attributes, stated)
select g.* from (
    values (%(model)s::text, %(version)s::text, %(sha256)s::text, %(favourable)s::text, %(labels)s::text[], %(attributes)s::jsonb, %(stated)s::jsonb)
) g (model, version, sha256, favourable, labels, attributes, stated)
where not exists (
    select from audit.model_setting_now n
    where n.model = g.model and n.version = g.version
      and (n.sha256, n.favourable, n.labels, n.attributes, n.stated)
          is not distinct from (g.sha256, g.favourable, g.labels, g.attributes, g.stated))
