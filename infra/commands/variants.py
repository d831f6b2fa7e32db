"""`lrai variant`: which variant of a model answers, and how to force another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from infra.commands import live_state
from infra.commands.live_state import user
from infra.commands.options import Kafka, Models, Prefix, Version, group
from kernels import manifest as manifests
from kernels.manifest import ORIGINAL, Manifest
from kernels.repository import load_model
from kernels.spec import ModelSpec
from schemas.errors import BadSetting
from streams.control import VARIANT, Control
from streams.log import set_level
from streams.settings import Settings, load

app = group("Which compiled variant of a model answers.")
Model = Annotated[str, typer.Argument(help="Name of the model.")]
By = Annotated[str | None, typer.Option("--by", help="Who asks for it; the user of this shell without.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept with the change.")]


@app.command("set")
def set_variant(
    model: Model, name: Annotated[str, typer.Argument(help="A variant, or `original`.")], version: Version = None,
    by: By = None, reason: Reason = "", models: Models = None, kafka: Kafka = None, prefix: Prefix = None,
) -> None:  # fmt: skip
    """Every actor of the model answers with this variant, whatever the load, until `lrai variant clear`."""
    settings = load(models=models, kafka=kafka, prefix=prefix)
    spec = _spec(settings, model, version)
    problems = {ORIGINAL: "", **{each.name: each.problem for each in spec.variants}}
    if name not in problems:
        there = ", ".join(problems)
        raise BadSetting(f"{name!r} is no variant of {model} {spec.version} that may serve; name one of {there}")
    if problems[name]:
        raise BadSetting(f"{name!r} cannot serve: {problems[name]}")
    change(settings, spec, name, by, reason)
    print(f"{model} {spec.version}: {name} answers")


@app.command("clear")
def clear(
    model: Model, version: Version = None, by: By = None, reason: Reason = "",
    models: Models = None, kafka: Kafka = None, prefix: Prefix = None,
) -> None:  # fmt: skip
    """Policy and load choose again."""
    settings = load(models=models, kafka=kafka, prefix=prefix)
    spec = _spec(settings, model, version)
    change(settings, spec, None, by, reason)
    print(f"{model} {spec.version}: policy and load choose")


@app.command("list")
def show(
    model: Model, version: Version = None, models: Models = None, kafka: Kafka = None, prefix: Prefix = None
) -> None:
    """Each variant with its bits, error, time and certificate, when it answers, and whether it is forced."""
    settings = load(models=models, kafka=kafka, prefix=prefix)
    set_level("error")
    spec = _spec(settings, model, version)
    forced = forced_now(settings, spec)
    Console(width=None if Console().is_terminal else 240).print(table(spec, forced))
    if forced and forced.variant:
        print(f"{forced.variant} is forced by {forced.by}{': ' if forced.reason else ''}{forced.reason}")


def forced_now(settings: Settings, spec: ModelSpec) -> Control | None:
    """What lrai.control says. Raises BadSetting, KafkaUnavailable."""
    return live_state.read(settings).get(f"{VARIANT}/{spec.model}/{spec.version}")


def change(settings: Settings, spec: ModelSpec, name: str | None, by: str | None, reason: str) -> None:
    """Writes the change and waits until Kafka has it. Raises BadSetting, KafkaUnavailable."""
    record = Control(VARIANT, spec.model, spec.version, name, by or user(), reason, live_state.now_ms())
    live_state.write(settings, record)


def table(spec: ModelSpec, forced: Control | None) -> Table:
    """A line a variant; those that may not serve are left out."""
    folder = Path(spec.path).parent
    found: dict[str, Manifest | str | None] = {ORIGINAL: _read(folder / manifests.FOLDER / manifests.ORIGINAL_FILE)}
    for each in spec.variants:
        path = folder / manifests.FOLDER / each.name / manifests.MANIFEST
        found[each.name] = each.problem or _read(path) or "no manifest.json; run `lrai compile` again"
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("variant", "answers", "bits", "error max", "error mean", "labels", "ms at 1", "ms a row", "rows",
                 "MB", "certificate"):  # fmt: skip
        shown.add_column(name, justify="left" if name in ("variant", "answers", "certificate") else "right")
    for name, manifest in found.items():
        cells = _cells(manifest) if isinstance(manifest, Manifest) else ["-"] * 8 + [manifest or "-"]
        shown.add_row(name, _when(spec, name, forced), *cells)
    return shown


def _read(path: Path) -> Manifest | str | None:
    """The manifest, what is wrong with it, or None where there is none."""
    try:
        return manifests.read(path) if path.exists() else None
    except manifests.BadManifest as err:
        return str(err)


def _when(spec: ModelSpec, name: str, forced: Control | None) -> str:
    if forced and forced.variant:
        return "forced" if forced.variant == name else "-"
    calm = name in spec.prefer or (name == ORIGINAL and not spec.prefer)
    found = [word for word, holds in (("in calm times", calm), ("under load", name in spec.under_load)) if holds]
    return ", ".join(found) or "when forced"


def _cells(manifest: Manifest) -> list[str]:
    profile, error = manifest.profile, manifest.error
    best = profile.seconds.get(profile.best_rows, profile.fixed_s + profile.row_s * profile.best_rows)
    labels = "-" if error.label_agreement is None else f"{error.label_agreement:.2%}"
    one = profile.seconds.get(1)
    return [
        manifest.bits, f"{error.max:.2%}", f"{error.mean:.2%}", labels,
        "-" if one is None else f"{1e3 * one:.3f}", f"{1e3 * best / profile.best_rows:.4f}", str(profile.best_rows),
        f"{manifest.memory_bytes / 1e6:.1f}", manifest.certificate or "-",
    ]  # fmt: skip


def _spec(settings: Settings, model: str, version: str | None) -> ModelSpec:
    """Raises BadSetting."""
    folder = settings.models / model
    versions = [each.name for each in folder.iterdir() if each.name.isdigit()] if folder.is_dir() else []
    if not versions or version not in (None, *versions):
        there = f"it has the versions {', '.join(sorted(versions, key=int))}" if versions else "there is none"
        raise BadSetting(f"model {model!r}, version {version or 'newest'}, in {str(settings.models)!r}: {there}")
    return load_model(settings.models, model, version or max(versions, key=int))
