insert into audit.drift_window (id, model, version, feature, edges, since, at, rows, reference_rows, psi, psi_limit,
    jensen_shannon, ks, wasserstein, adwin, state)
values (%(id)s, %(model)s, %(version)s, %(feature)s, %(edges)s, %(since)s, %(at)s, %(rows)s, %(reference_rows)s, %(psi)s, %(psi_limit)s,
    %(jensen_shannon)s, %(ks)s, %(wasserstein)s, %(adwin)s, %(state)s)
on conflict do nothing
