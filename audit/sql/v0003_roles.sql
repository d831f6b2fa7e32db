alter function audit.grant_readers() rename to grant_readers_2;

-- lrai_reader: nothing that tells of a single person's attributes or of a group under 30; lrai_attributes_reader: all.
create function audit.grant_readers() returns void language plpgsql as $$
declare
    reader text;
begin
    perform audit.grant_readers_2();
    for reader in select rolname from pg_roles where rolname in ('lrai_reader', 'lrai_attributes_reader') loop
        execute format('grant select on audit.refused_record, audit.model_setting, audit.model_setting_now,
            audit.model_release, audit.cost_by_model_hour, audit.fairness_window, audit.drift_window,
            audit.label, audit.label_join, audit.label_epoch, audit.labelled_decision,
            audit.accuracy_by_group, audit.odds_by_group, audit.label_coverage, audit.complaint_state, audit.complaints_by_week to %I', reader);
        execute format('grant select (id, kind, model, version, worker, priority, at, received_at, requests,
            consent_missing, cpu_s, gpu_s, energy_j, energy_source, cost, currency, frozen, latency, outcomes, releases)
            on audit.tally_row to %I', reader);
        execute format('grant select (id, kind, severity, model, version, message, action, taken, at)
            on audit.alert to %I', reader);
        execute format('grant select (id, model, version, frozen_at, by, reason, unfrozen_at, unfrozen_by, unfreeze_reason)
            on audit.incident to %I', reader);
    end loop;
    if exists (select from pg_roles where rolname = 'lrai_attributes_reader') then
        grant select on audit.tally_row, audit.fairness_row, audit.alert, audit.incident, audit.label_count,
            audit.labelled_group, audit.complaint, audit.complaint_action
            to lrai_attributes_reader;
    end if;
end $$;

select audit.grant_readers();
