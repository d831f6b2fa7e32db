join audit.model_setting_now s on s.model = r.model and s.version = r.version and s.favourable is not null
    left join audit.attribute_set a on a.id = c.attributes_id
    cross join lateral jsonb_array_elements(s.attributes) listed (parts)
    cross join lateral (
        select string_agg(part, '+' order by nth) as attribute,
               case when count(a.attributes ->> part) = count(*)
                    then string_agg(a.attributes ->> part, '+' order by nth) end as "group"
        from jsonb_array_elements_text(listed.parts) with ordinality p (part, nth)
    ) g
