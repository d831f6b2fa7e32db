insert into audit.tally_row (id, kind, model, version, worker, priority, at, received_at, requests, consent_missing,
    cpu_s, gpu_s, energy_j, energy_source, cost, currency, frozen, latency, outcomes, releases, groups)
values (%(id)s, %(kind)s, %(model)s, %(version)s, %(worker)s, %(priority)s, %(at)s, %(received_at)s, %(requests)s, %(consent_missing)s,
    %(cpu_s)s, %(gpu_s)s, %(energy_j)s, %(energy_source)s, %(cost)s, %(currency)s, %(frozen)s, %(latency)s, %(outcomes)s, %(releases)s, %(groups)s)
on conflict do nothing
