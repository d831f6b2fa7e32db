-- Wilson's interval, 95 percent
cross join lateral (select favourable::double precision / nullif(decided, 0) as rate, 3.841458820694124 / nullif(decided, 0) as z2) w
cross join lateral (
    select greatest((rate + z2 / 2 - sqrt(z2 * rate * (1 - rate) + z2 * z2 / 4)) / (1 + z2), 0) as low,
           least((rate + z2 / 2 + sqrt(z2 * rate * (1 - rate) + z2 * z2 / 4)) / (1 + z2), 1) as high
) i
