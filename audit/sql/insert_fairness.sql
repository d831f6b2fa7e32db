insert into audit.fairness_row (id, place, model, version, attribute, definition, epoch, since, at, decisions, coverage, value, ratio,
    "limit", alpha, method, state, "group", decided, favourable, rate, low, high, compared_with,
    difference, difference_low, difference_high, group_state)
values (%(id)s, %(place)s, %(model)s, %(version)s, %(attribute)s, %(definition)s, %(epoch)s, %(since)s, %(at)s, %(decisions)s,
    %(coverage)s, %(value)s, %(ratio)s, %(limit)s, %(alpha)s, %(method)s, %(state)s, %(group)s, %(decided)s, %(favourable)s,
    %(rate)s, %(low)s, %(high)s, %(compared_with)s, %(difference)s, %(difference_low)s, %(difference_high)s, %(group_state)s)
on conflict do nothing
