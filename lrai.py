"""LRAI scores events that arrive on Kafka with ONNX models: batched, exactly once, audited in Postgres."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from types import FrameType
from typing import Annotated

import psycopg
import typer
from confluent_kafka import KafkaException

from infra.commands import (
    compilation,
    complaints,
    equity,
    label_files,
    letters,
    proving,
    reading,
    references,
    reporting,
    request_files,
    scheduling,
    sending,
    shown,
    traces,
)
from infra.commands import status as states
from infra.commands import variants as variant_commands
from infra.commands.options import (
    AsJson,
    Device,
    Kafka,
    Models,
    Prefix,
    Priority,
    Store,
    Version,
    errors,
    group,
    out,
)
from kernels import repository
from kernels.spec import ModelSpec
from schemas.errors import BadSetting, LraiError
from streams import topics
from streams.log import set_level
from streams.settings import Settings, load
from workers.supervisor import ChildSpec
from workers.template import BAD_SETTING

KEYBOARD = 130


app = group(__doc__ or "")
run_app = group("One role alone, for Kubernetes or systemd to own.")
models_app = group("The model repository.")
audit_app = group("The audit store.")
for name, each in (("run", run_app), ("models", models_app), ("audit", audit_app)):
    app.add_typer(each, name=name)
app.add_typer(variant_commands.app, name="variant")
app.add_typer(letters.app, name="deadletter")
app.add_typer(equity.app, name="equity")
app.add_typer(complaints.app, name="complaint")
app.add_typer(scheduling.app, name="scheduler")
app.add_typer(traces.app, name="trace")
app.command("label")(label_files.label)
app.add_typer(reporting.app, name="report")
app.command("reference")(references.make_reference)
app.command("verify")(proving.verify)
app.command("compile")(compilation.compile_)
app.add_typer(proving.certificate_app, name="certificate")


Slot = Annotated[int | None, typer.Option("--slot", help="Which instance of its role on this node this is.")]
Leave = Annotated[bool, typer.Option("--leave", help="Leave the groups on stop: for scale-down, not for a restart.")]
ForPriority = Annotated[Priority, typer.Option("--priority", help="Whose topics.")]
Model = Annotated[str, typer.Option("--model", help="Name of the model.")]


@app.command()
def up(
    models: Models = None, kafka: Kafka = None, store: Store = None, slot: Slot = None, prefix: Prefix = None,
    device: Device = None, leave: Leave = False,
) -> None:  # fmt: skip
    """The whole pipeline on this machine, supervised. Prints `lrai ready` when every part is."""
    settings, specs = _checked(
        models=models, kafka=kafka, store=store, slot=slot, prefix=prefix, device=device, leave=leave or None
    )

    def children(key: bytes) -> list[ChildSpec]:
        from workers import pipeline

        return pipeline.everything(settings, key, specs)

    _start(settings, specs, frozenset({"coalesce", "work", "audit", "monitor"}), children)


@run_app.command("coalesce")
def run_coalesce(
    priority: Annotated[Priority | None, typer.Option("--priority", help="One of them; all without.")] = None,
    models: Models = None, kafka: Kafka = None, slot: Slot = None, prefix: Prefix = None, leave: Leave = False,
) -> None:  # fmt: skip
    """Reads requests, rejects what is wrong, makes batches."""
    settings, specs = _checked(models=models, kafka=kafka, slot=slot, prefix=prefix, leave=leave or None)
    chosen = [priority.value] if priority else list(topics.PRIORITIES)

    def children(key: bytes) -> list[ChildSpec]:
        from workers import pipeline

        found = pipeline.Children(settings, key, specs)
        for each in chosen:
            found.coalesce(each, settings.slot)
        return found.made

    _start(settings, specs, frozenset({"coalesce"}), children)


@run_app.command("work")
def run_work(
    model: Model, version: Version = None, device: Device = None,
    models: Models = None, kafka: Kafka = None, slot: Slot = None, prefix: Prefix = None, leave: Leave = False,
) -> None:  # fmt: skip
    """The actor of one model: runs its batches, answers."""
    settings, specs = _checked(models=models, kafka=kafka, slot=slot, prefix=prefix, device=device, leave=leave or None)
    spec = _chosen(specs, model, version)

    def children(key: bytes) -> list[ChildSpec]:
        from workers import pipeline

        found = pipeline.Children(settings, key, [spec])
        found.work(spec, settings.slot)
        return found.made

    _start(settings, [spec], frozenset({"work"}), children)


@run_app.command("audit")
def run_audit(
    models: Models = None, kafka: Kafka = None, store: Store = None, slot: Slot = None, prefix: Prefix = None,
    leave: Leave = False,
) -> None:  # fmt: skip
    """The audit writer: decisions, dead letters, labels and what watching tells into Postgres."""
    settings = load(models=models, kafka=kafka, store=store, slot=slot, prefix=prefix, leave=leave or None)
    # without a repository it counts labels by what the store knows of the models
    specs = list(repository.load_repository(settings.models).values()) if models or settings.models.is_dir() else []

    def children(key: bytes) -> list[ChildSpec]:
        from workers import pipeline

        found = pipeline.Children(settings, key, specs)
        found.audit(settings.slot)
        return found.made

    _start(settings, [], frozenset({"audit"}), children)


@run_app.command("monitor")
def run_monitor(
    models: Models = None, kafka: Kafka = None, slot: Slot = None, prefix: Prefix = None, leave: Leave = False
) -> None:
    """Watches decisions for unfair treatment and drift; freezes what harms."""
    settings, specs = _checked(models=models, kafka=kafka, slot=slot, prefix=prefix, leave=leave or None)

    def children(key: bytes) -> list[ChildSpec]:
        from workers import pipeline

        found = pipeline.Children(settings, key, specs)
        found.monitor(settings.slot)
        return found.made

    _start(settings, specs, frozenset({"monitor"}), children)


def _checked(**given: object) -> tuple[Settings, list[ModelSpec]]:
    settings = load(**given)
    return settings, list(repository.load_repository(settings.models).values())


def _chosen(specs: Sequence[ModelSpec], model: str, version: str | None) -> ModelSpec:
    named = {each.version: each for each in specs if each.model == model}
    if not named:
        raise BadSetting(f"--model {model!r}: no such model; there are {', '.join(sorted({s.model for s in specs}))}")
    wanted = version or max(named, key=int)
    if wanted not in named:
        raise BadSetting(f"--version {wanted!r}: model {model!r} has the versions {', '.join(sorted(named, key=int))}")
    return named[wanted]


def _start(
    settings: Settings, specs: Sequence[ModelSpec], roles: frozenset[str],
    children: Callable[[bytes], list[ChildSpec]],
) -> None:  # fmt: skip
    """Checks, prepares, supervises; everything wrong with settings ends it before Kafka is touched."""
    from workers import pipeline  # half a second, and no other command needs it

    set_level(settings.log_level)
    pipeline.check(settings)
    if any(each.pinned for each in pipeline.check_devices(settings, specs if "work" in roles else [])):
        from infra import gpus

        gpus.watch()  # the supervisor's metrics are the host's
    found = children(pipeline.pseudonym_key(settings))
    with errors.status("preparing") as shown_status:

        def step(name: str) -> None:
            if errors.is_terminal:
                shown_status.update(f"preparing: {name}")
            else:
                errors.print(f"preparing: {name}")

        pipeline.prepare(settings, specs, step, roles)
    stop = threading.Event()
    code = pipeline.supervise(settings, found, lambda: print("lrai ready", flush=True), stop)
    raise SystemExit(code)


@app.command()
def send(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    file: Annotated[Path, typer.Argument(help="CSV with a header, JSONL, or NPZ.")],
    priority: ForPriority = Priority.standard,
    version: Version = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answers and sum them up.")] = False,
    wait_s: Annotated[float, typer.Option(min=0.1, help="--wait ends when no answer came for so long.")] = 30.0,
    rows_per_request: Annotated[int, typer.Option(min=1, help="Rows of the file in one request.")] = 1,
    subject_column: Annotated[str | None, typer.Option(help="CSV: the person concerned.")] = None,
    attribute: Annotated[list[str] | None, typer.Option(help="CSV: a sensitive feature; repeat it.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="CSV: a column to leave out; repeat it.")] = None,
    stated: Annotated[
        list[str] | None, typer.Option("--input", help="NAME:DATATYPE:SIZES where there is no repository.")
    ] = None,
    deadline_ms: Annotated[int | None, typer.Option(min=1, help="Answers later than this are EXPIRED.")] = None,
    models: Models = None, kafka: Kafka = None, prefix: Prefix = None,
) -> None:  # fmt: skip
    """Sends the rows of a file as requests. With --wait the exit code is 1 unless all were answered OK."""
    settings = load(models=models, kafka=kafka, prefix=prefix)
    inputs = sending.inputs_of(settings, model, version, stated or [])
    columns = request_files.Columns(subject_column, tuple(attribute or ()), tuple(ignore or ()))
    how = sending.Sending(model, version, priority.value, deadline_ms, wait_s if wait else None)

    def requests() -> Iterable[request_files.FileRequest]:
        return request_files.read(file, inputs, columns, rows_per_request)

    with shown.SendProgress(errors) as progress:
        count = progress.reading(requests())  # the whole file is read before anything is sent
        sent = sending.Sender(settings, how).send(requests(), progress.sending(count, wait))
    shown.sent(out, sent, wait)
    raise SystemExit(int(wait and not sent.all_ok))


@app.command()
def results(
    priority: Annotated[Priority | None, typer.Option("--priority", help="One of them; all without.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Only this model's.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for answers that come from now on.")] = False,
    most: Annotated[int | None, typer.Option("-n", min=1, help="At most so many; 10 without --follow.")] = None,
    kafka: Kafka = None, prefix: Prefix = None,
) -> None:  # fmt: skip
    """Prints the newest answers, one JSON object a line."""
    settings = load(kafka=kafka, prefix=prefix)
    chosen = [priority.value] if priority else topics.PRIORITIES
    names = [topics.results(settings.prefix, each) for each in chosen]
    for line in reading.answers(settings, names, model, most, follow):
        print(line, flush=True)


@app.command()
def status(as_json: AsJson = False, kafka: Kafka = None, store: Store = None, prefix: Prefix = None) -> None:
    """Topics and lag of each lane, processes of this node, last errors. Exit code 1 when something does not answer."""
    found = states.status(load(kafka=kafka, store=store, prefix=prefix), time.monotonic())
    if as_json:
        print(json.dumps(found.as_dict()))
    else:
        shown.status(out, found)
    raise SystemExit(int(bool(found.problems)))


@models_app.command("check")
def models_check(
    directory: Annotated[Path, typer.Argument(help="The model repository.")], device: Device = None
) -> None:
    """Every problem of a model repository at once, each with its fix."""
    with errors.status("loading and running each model on zeros"):
        problems = repository.check(directory, load(device=device).device)
    for problem in problems:
        print(problem)
    if problems:
        raise LraiError(f"{len(problems)} problem(s) in {directory}")
    specs = repository.load_repository(directory)
    shown.models(out, list(specs.values()))


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    out_file: Annotated[Path, typer.Option("--out", help="The NPZ file to write.")],
    from_topic: Annotated[bool, typer.Option("--from-topic", help="From the requests that Kafka still holds.")] = False,
    rows: Annotated[int, typer.Option("--rows", min=8, max=100_000, help="At most so many, the newest.")] = 1024,
    priority: Annotated[Priority | None, typer.Option("--priority", help="One of them; all without.")] = None,
    version: Version = None,
    models: Models = None, kafka: Kafka = None, prefix: Prefix = None,
) -> None:  # fmt: skip
    """Writes recorded requests of a model into a file for `lrai compile --calibration`."""
    from infra.commands import compiling

    if not from_topic:
        raise BadSetting("say where the rows come from: --from-topic")
    settings, specs = _checked(models=models, kafka=kafka, prefix=prefix)
    chosen = [priority.value] if priority else list(topics.PRIORITIES)
    names = [topics.requests(settings.prefix, each) for each in chosen]
    with errors.status("reading requests"):
        found = compiling.recorded(settings, names, _chosen(specs, model, version), rows)
    compiling.save(out_file, found)
    left = f"; {found.left_out} request(s) of other lengths left out" if found.left_out else ""
    out.print(f"{found.rows} row(s) in {out_file}{left}", markup=False, highlight=False)


@audit_app.command("verify")
def audit_verify(
    grace_s: Annotated[float, typer.Option(min=0, help="What is younger may still be under way.")] = 5.0,
    as_json: AsJson = False, store: Store = None,
) -> None:  # fmt: skip
    """Is every request there, and once? Exit code 1 with problems."""
    from audit.verify import verify

    with errors.status("verifying"):
        report = verify(load(store=store).store, datetime.now(UTC), grace_s)
    if as_json:
        print(json.dumps({**asdict(report), "ok": report.ok}))
    else:
        shown.report(out, report)
    raise SystemExit(int(not report.ok))


@app.command()
def demo(keep: Annotated[bool, typer.Option("--keep", help="Stay up until Ctrl-C.")] = False) -> None:
    """A real Kafka, a real Postgres, four small models, ten seconds of events."""
    from infra.demo import run  # training and servers: nothing that the service needs

    run(out, keep)


@app.command("version")
def show_version() -> None:
    """The version of LRAI."""
    print(installed_version("lrai"))


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise SystemExit(KEYBOARD)


def main() -> None:
    """The console script; whatever goes wrong is a message, never a traceback."""
    signal.signal(signal.SIGINT, _interrupted)
    try:
        app()
    except LraiError as err:
        _fail(str(err), getattr(err, "exit_code", BAD_SETTING if isinstance(err, BadSetting) else 1))
    except KafkaException as err:
        _fail(f"kafka: {err.args[0].str()}", 1)
    except psycopg.Error as err:
        _fail(f"the audit store: {str(err).strip()}", 1)
    except OSError as err:
        _fail(f"{err.filename or 'the system'}: {err.strerror or err}", 1)


def _fail(message: str, code: int) -> None:
    errors.print(f"lrai: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
