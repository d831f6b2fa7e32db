"""The model repository: <folder>/<model>/<version>/model.onnx, with an optional model.toml beside it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from kernels import graph, reference, settings
from kernels.graph import Graph
from kernels.manifest import FOLDER, ORIGINAL, sha256
from kernels.outcome import words
from kernels.reference import BadReference
from kernels.settings import WATCH, ModelSettings
from kernels.spec import ModelSpec, Problem, TensorSpec, VariantSpec
from schemas.errors import BadSetting
from schemas.tensors import FLOATS

__all__ = ["ModelSpec", "Problem", "TensorSpec", "check", "load_model", "load_repository"]

PROBLEM_CHARACTERS_MAX = 500
_MODEL = re.compile(r"[a-z0-9-]{1,64}")
_VERSION = re.compile(r"0|[1-9][0-9]{0,8}")
Specs = dict[tuple[str, str], ModelSpec]


def load_repository(directory: Path) -> Specs:
    """Every model by (model, version), read without a runtime. Raises BadSetting that lists every problem."""
    specs, problems = _read(Path(directory))
    if problems:
        raise BadSetting("\n".join([f"{len(problems)} problem(s) in the model repository:", *map(str, problems)]))
    return specs


def check(directory: Path, otherwise: str = "cpu") -> list[Problem]:
    """Every problem of the repository; a model that reads well is loaded and run on zeros as well.

    `otherwise`: the device of models that name none.
    """
    from kernels import devices  # only here: reading needs no runtime
    from kernels.loading import load_variant
    from kernels.session import KernelError, Session

    specs, problems = _read(Path(directory))
    for spec in specs.values():
        try:
            device = devices.device(spec.device or otherwise)
            Session(spec, device=device).warm()
        except KernelError as err:
            fix = "export it with operators of ONNX Runtime, for any number of rows"
            fix = "or name another device" if isinstance(err, devices.NoDevice) else fix
            problems.append(Problem(spec.path, f"the runtime refuses it: {err}", fix))
            continue
        for variant in spec.variants:
            try:
                load_variant(spec, variant, 1, device=device)
            except KernelError as err:
                fix = "until then the original serves; or name it in variants.never"
                problems.append(Problem(spec.of(variant).path, f"the variant is refused: {err}", fix))
    return problems


def load_model(directory: Path, model: str, version: str) -> ModelSpec:
    """One model. Raises BadSetting that lists its problems."""
    spec, problems = _read_model(Path(directory) / model / version)
    if problems or spec is None:
        raise BadSetting("\n".join(map(str, problems)))
    return spec


def _read(directory: Path) -> tuple[Specs, list[Problem]]:
    if not directory.is_dir():
        return {}, [Problem(str(directory), "the model repository is no folder", "name an existing folder")]
    specs: Specs = {}
    problems: list[Problem] = []
    models = _folders(directory)
    if not models:
        fix = "add <model>/<version>/model.onnx"
        problems.append(Problem(str(directory), "the model repository has no models", fix))
    for model in models:
        if not _MODEL.fullmatch(model.name):
            fix = "rename it: 1 to 64 of a-z, 0-9 and -"
            problems.append(Problem(str(model), f"{model.name!r} is not a model name", fix))
        versions = _folders(model)
        if not versions:
            problems.append(Problem(str(model), "the model has no versions", "add 1/model.onnx in it"))
        for version in versions:
            if not _VERSION.fullmatch(version.name):
                fix = "rename it to an integer, such as 1"
                problems.append(Problem(str(version), f"{version.name!r} is not a version", fix))
            spec, found = _read_model(version)
            problems += found
            if spec is not None:
                specs[model.name, version.name] = spec
                problems += _reference(version, spec)
    return specs, problems


def _reference(folder: Path, spec: ModelSpec) -> list[Problem]:
    """Checked for those that serve; who makes a new one must get past an old one."""
    try:
        reference.read(folder, spec)
    except BadReference as err:
        what, _, fix = str(err).removeprefix(f"{folder / reference.FILE}: ").rpartition("; ")
        return [Problem(str(folder / reference.FILE), what, fix)]
    return []


def _folders(directory: Path) -> list[Path]:
    return sorted(each for each in directory.iterdir() if each.is_dir() and not each.name.startswith((".", "__")))


def _read_model(folder: Path) -> tuple[ModelSpec | None, list[Problem]]:
    path = folder / "model.onnx"
    stated, problems = settings.read(folder / "model.toml")
    if stated.members and not path.exists():
        unmerged = f"its members {', '.join(stated.members)} are not merged into a graph yet"
        return None, [*problems, Problem(str(path), unmerged, f"run `lrai compile {folder}`")]
    facts = graph.read(path)
    problems = [*facts.problems, *problems]
    if not facts.inputs:  # nothing to compare the settings with
        return None, problems
    score, decision = _meaning(facts.outputs)
    if stated.score:
        score = (stated.score.output, stated.score.index)
    spec = ModelSpec(
        model=folder.parent.name, version=folder.name, path=str(path), sha256="",
        inputs=facts.inputs, outputs=facts.outputs, rows_fixed=facts.rows_fixed, zipmap=facts.zipmap,
        external=facts.external, classes=facts.classes,
        padded=stated.padded or _padded(facts, stated), buckets=tuple(stated.buckets), pad_values=stated.pad_values,
        request_rows_max=stated.request_rows_max, batch_rows=stated.batch_rows,
        allow_nan=facts.allow_nan if stated.allow_nan is None else stated.allow_nan,
        score=score, threshold=stated.threshold, decision=stated.decision or decision,
        labels=tuple(stated.labels) if stated.labels else _labels(facts), favourable=stated.favourable,
        sensitive_features=tuple(stated.sensitive_features), slo_p95_ms=stated.slo_p95_ms.model_dump(exclude_none=True),
        scheduler=stated.scheduler,
        prefer=tuple(stated.variants.prefer), under_load=tuple(stated.variants.under_load),
        require_certificate=stated.require_certificate or ("proved" if stated.risk_class == "high" else "statistical"),
        coverage_min=stated.coverage_min, epsilon_max=stated.epsilon_max, device=stated.device,
        risk_class=stated.risk_class, disparity_limit=stated.disparity_limit, reference_group=stated.reference_group,
        intersections=tuple(map(tuple, stated.intersections)), groups_max=stated.groups_max,
        freeze_on=stated.freeze_on, on_freeze=stated.on_freeze,
        on_missing=stated.on_missing or ("flag" if stated.risk_class == "high" else "count"),
    )  # fmt: skip
    names = [each.name for each in _folders(folder / FOLDER)] if (folder / FOLDER).is_dir() else []
    served = [name for name in names if name not in stated.variants.never]
    fallback, unfit = _fallback(spec, folder)
    contradictions = _contradictions(spec, stated) + _unknown_variants(stated, names, served) + _watch(spec, stated)
    problems += [Problem(str(folder / "model.toml"), what, fix) for what, fix in contradictions + unfit]
    if problems:
        return None, problems
    digest = sha256(folder, ("model.onnx", *facts.external))
    variants = tuple(_variant(spec, folder / FOLDER / name) for name in served)
    return replace(spec, sha256=digest, variants=variants, fallback=fallback), []


def _fallback(spec: ModelSpec, folder: Path) -> tuple[ModelSpec | None, list[tuple[str, str]]]:
    """The version that answers while this one is frozen, or why it cannot: (what, fix)."""
    if spec.on_freeze in ("reject", "flag"):
        return None, []
    what, fix = f"on_freeze names version {spec.on_freeze}", 'name an earlier version, or "reject" or "flag"'
    if not _VERSION.fullmatch(spec.version) or int(spec.on_freeze) >= int(spec.version):
        return None, [(f"{what}, which is not earlier than {spec.version}", fix)]
    if not (folder.parent / spec.on_freeze / "model.onnx").is_file():
        return None, [(f"{what}, which is not there", fix)]
    found, problems = _read_model(folder.parent / spec.on_freeze)
    if found is None:
        return None, [(f"{what}, which has problems of its own: {problems[0].what}", "correct those first")]
    other = [
        name
        for name in ("inputs", "outputs", "padded", "buckets", "pad_values")
        if getattr(found, name) != getattr(spec, name)
    ]
    if spec.allow_nan and not found.allow_nan:
        other.append("allow_nan")
    if other:
        return None, [(f"{what}, which has other {' and '.join(other)}", "name a version that takes the same requests")]
    return replace(found, variants=(), fallback=None), []


def _variant(spec: ModelSpec, folder: Path) -> VariantSpec:
    """What the actor has to know of a variant before it loads it."""
    facts = graph.read(folder / "model.onnx")
    problem = str(facts.problems[0]) if facts.problems else ""
    for own, original in ((facts.inputs, spec.inputs), (facts.outputs, spec.outputs)):
        names, wanted = [[(each.name, each.datatype) for each in tensors] for tensors in (own, original)]
        if names != wanted and not problem:
            problem = f"it has {names} where the original has {wanted}; run `lrai compile` again"
    return VariantSpec(folder.name, facts.zipmap, facts.external, facts.rows_fixed, problem[:PROBLEM_CHARACTERS_MAX])


def _unknown_variants(stated: ModelSettings, names: list[str], served: list[str]) -> list[tuple[str, str]]:
    """Variants that model.toml names and that cannot be meant: (what, fix)."""
    chosen, known = stated.variants, [ORIGINAL, *served]
    return [
        (f"variants.{key} names {name!r}, which cannot be meant", f"name one of {', '.join(there) or 'none'}")
        for key, named, there in (
            ("prefer", chosen.prefer, known), ("under_load", chosen.under_load, known), ("never", chosen.never, names)
        )
        for name in named
        if name not in there
    ]  # fmt: skip


def _padded(facts: Graph, stated: ModelSettings) -> str | None:
    """The one varying size of the inputs, where buckets are stated."""
    varying = _varying(facts.inputs)
    return varying[0] if stated.buckets and len(varying) == 1 else None


def _varying(inputs: tuple[TensorSpec, ...]) -> list[str]:
    return sorted({size for each in inputs for size in each.varying})


def _labels(facts: Graph) -> tuple[str, ...] | None:
    """The names of the classes in the graph, unless they are plain numbers: then the number is the decision."""
    return facts.labels if facts.classes is None else None


def _meaning(outputs: tuple[TensorSpec, ...]) -> tuple[tuple[str, int | None] | None, str | None]:
    """The score and the decision where the operator states neither.

    A label and probabilities: the probability of the last of two classes, else the largest; the label.
    One float output: its value, else the largest of the row; its position.
    """
    floats = [each for each in outputs if each.datatype in FLOATS]
    words = [each for each in outputs if each.datatype in ("BYTES", "INT64", "INT32") and each.width in (1, None)]
    if len(outputs) == 2 and len(floats) == 1 and len(words) == 1:
        return (floats[0].name, 1 if floats[0].width == 2 else None), words[0].name
    if len(outputs) == 1 and floats:
        return (floats[0].name, None), None if floats[0].width == 1 else floats[0].name
    if len(outputs) == 1 and words:
        return None, words[0].name
    return None, None


def _contradictions(spec: ModelSpec, stated: ModelSettings) -> list[tuple[str, str]]:
    """What model.toml says that the graph does not bear out: (what, fix)."""
    found: list[tuple[str, str]] = []
    inputs, outputs = [each.name for each in spec.inputs], [each.name for each in spec.outputs]
    varying = _varying(spec.inputs)
    sizes = f"one of {', '.join(varying)}" if varying else "nothing: no size of the inputs varies"
    if stated.padded and stated.padded not in varying:
        found.append((f"padded is {stated.padded!r}, no varying size of the inputs", f"name {sizes}"))
    elif stated.padded and not stated.buckets:
        found.append(("padded is stated without buckets", "add buckets, such as buckets = [16, 32, 64]"))
    if stated.buckets and not spec.padded:
        fix = f"set padded to {sizes}" if varying else "remove buckets: no size of the inputs varies"
        found.append(("it is not clear which size the buckets are for", fix))
    found += [
        (f"pad_values names {name!r}, which is no input", f"name one of {', '.join(inputs)}")
        for name in stated.pad_values
        if name not in inputs
    ]
    named = {"score.output": stated.score.output if stated.score else None, "decision": stated.decision}
    found += [
        (f"{key} is {name!r}, which is no output", f"name one of {', '.join(outputs)}")
        for key, name in named.items()
        if name is not None and name not in outputs
    ]
    if spec.threshold is not None and spec.score is None:
        found.append(("threshold is stated, but no score to compare", "add score = { output = '...', index = 0 }"))
    return found + _scales(spec, stated)


def _scales(spec: ModelSpec, stated: ModelSettings) -> list[tuple[str, str]]:
    """Sizes and words that do not fit each other."""
    found: list[tuple[str, str]] = []
    by_name = {each.name: each for each in spec.outputs}
    if stated.score and (output := by_name.get(stated.score.output)):
        width, index = output.width, stated.score.index
        if output.datatype == "BYTES":
            found.append((f"score.output {output.name!r} is a string", "name an output of numbers"))
        elif width is not None and index is not None and index >= width:
            found.append((f"score.index is {index}, the output has {width} columns", f"use 0 to {width - 1}"))
    classes = len(spec.classes) if spec.classes else None
    if stated.labels and classes and len(stated.labels) != classes:
        found.append((f"labels names {len(stated.labels)} classes, the graph has {classes}", f"name {classes}"))
    known = spec.labels or words(spec)
    if spec.favourable and known and spec.favourable not in known:
        found.append((f"favourable is {spec.favourable!r}, no label", f"name one of {', '.join(known[:20])}"))
    elif spec.favourable and known == ():
        found.append((f"favourable is {spec.favourable!r}, but nothing is decided", "add threshold or decision"))
    if spec.threshold is not None and spec.labels and len(spec.labels) != 2:
        found.append((f"threshold decides between two labels, there are {len(spec.labels)}", "remove threshold"))
    if stated.batch_rows and spec.rows_fixed and stated.batch_rows != spec.rows_fixed:
        found.append((f"batch_rows is {stated.batch_rows}, the graph fixes {spec.rows_fixed}", "remove batch_rows"))
    return found


def _watch(spec: ModelSpec, stated: ModelSettings) -> list[tuple[str, str]]:
    """What is said of groups and cannot be meant: (what, fix)."""
    found: list[tuple[str, str]] = []
    features = spec.sensitive_features
    there = f"name one of {', '.join(features)}" if features else "add sensitive_features"
    repeated = sorted({each for each in features if features.count(each) > 1})
    found += [(f"sensitive_features names {each!r} more than once", "name it once") for each in repeated]
    names = ["+".join(each) for each in spec.intersections]
    for name, each in zip(names, spec.intersections, strict=True):
        unknown = [feature for feature in each if feature not in features]
        found += [(f"intersections names {feature!r}, no sensitive feature", there) for feature in unknown]
        if len(set(each)) < len(each) or names.count(name) > 1 or name in features:
            found.append((f"intersections has {list(each)!r} where features or names repeat", "name each one once"))
    found += [
        (f"reference_group names {attribute!r}, no sensitive feature or intersection", there)
        for attribute in spec.reference_group
        if attribute not in features and attribute not in names
    ]
    asked = [key for key in WATCH if key in stated.model_fields_set]
    for key, value in (("sensitive_features", features), ("favourable", spec.favourable)):
        if asked and not value:
            found.append((f"{' and '.join(asked)} without {key}", f"add {key}: without it no groups are compared"))
    return found
