-- Roles belong to the whole cluster: they may exist, another database may make them now, or we may not make roles.
create function audit.make_reader_roles() returns void language plpgsql as $$
declare
    reader text;
begin
    foreach reader in array array['lrai_reader', 'lrai_attributes_reader'] loop
        continue when exists (select from pg_roles where rolname = reader);
        begin
            execute format('create role %I nologin', reader);
        exception
            when insufficient_privilege then
                raise notice 'role % needs CREATEROLE: create it, then call audit.grant_readers()', reader;
            when duplicate_object or unique_violation then
                null;
        end;
    end loop;
end $$;

-- lrai_reader: everything but attributes; lrai_attributes_reader: everything.
create function audit.grant_readers() returns void language plpgsql as $$
declare
    reader text;
begin
    for reader in select rolname from pg_roles where rolname in ('lrai_reader', 'lrai_attributes_reader') loop
        execute format('grant usage on schema audit to %I', reader);
        execute format('grant select on audit.topic, audit.worker, audit.release, audit.refused, audit.dead_letter,
            audit.source_range_row, audit.source_range, audit.source_range_check,
            audit.source_offset, audit.decision_without_attributes,
            audit.latency_by_model, audit.outcome_by_model_hour to %I', reader);
        execute format('grant select (received_at, answered_at, request_offset, request_partition, topic_id,
            release_id, worker_id, rows, batch_rows, queue_s, execution_s, status, request_id, score, decision,
            subject_pseudonym, consent_id, purpose, error_code, error_message) on audit.decision_row to %I', reader);
    end loop;
    if exists (select from pg_roles where rolname = 'lrai_attributes_reader') then
        grant select on audit.decision_row, audit.attribute_set, audit.decision, audit.selection_rate_by_attribute
            to lrai_attributes_reader;
    end if;
end $$;

select audit.make_reader_roles();
select audit.grant_readers();
