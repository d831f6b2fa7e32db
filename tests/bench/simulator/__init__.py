"""A discrete-event simulator of the pipeline: deterministic, without Kafka, a store or a clock."""
