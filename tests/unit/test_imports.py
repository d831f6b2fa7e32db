"""The shape of the code: who imports whom, what pure modules may know, how long things are."""

from __future__ import annotations

import ast
import doctest
import importlib
import io
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("schemas", "kernels", "streams", "audit", "workers", "lrai")  # each may import those before it
ENGINE = ("schemas", "kernels", "streams", "workers")
ENGINE_LINES_MAX = 6_300  # with variants: they are loaded, certified, checked, chosen and forced in the engine
WATCH = ("workers/tallies.py", "workers/tallying.py", "workers/cost.py", "kernels/reference.py")
TRACE = "streams/trace.py"  # a file format that no process of the service reads
TRACE_LINES_MAX = 140
WATCH_LINES_MAX = 520  # what an actor counts beside answering, and counted apart from the engine
SCHEDULING = (
    *("streams/scheduler.py", "streams/steering.py"),
    *("workers/reporting.py", "workers/steered.py"),
)
SCHEDULING_LINES_MAX = 575  # without which the engine works, and counted apart from it
APART_LINES_MAX = {"kernels/proof": 2_900, "kernels/compile": 2_850}  # counted apart from the engine
CHECKER_LINES_MAX = 835  # of the proofs, and counted apart from them: it shares nothing with the prover
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
PURE = (
    *(f"schemas.{name}" for name in ("columns", "cursor", "requests", "results", "framing", "tensors", "errors")),
    *(f"streams.{name}" for name in ("window", "headers", "decisions", "ended", "batching", "admission", "coalesce")),
    *("streams.topics", "workers.merge", "workers.answers", "workers.turns", "workers.backoff", "workers.variants"),
    *("workers.tallies", "streams.scheduler", "streams.limits", "streams.trace"),
    *("kernels.spec", "kernels.outcome", "audit.rows"),
    *(f"audit.{name}" for name in ("fairness", "sequential", "drift", "warnings", "labels")),
    *(f"audit.{name}" for name in ("counts", "complaint_counts", "daily", "actions", "watching")),
)
OUTSIDE = """confluent_kafka kafka psycopg sqlalchemy alembic onnxruntime onnx faust pydantic_settings
prometheus_client time datetime random secrets os socket subprocess multiprocessing logging urllib http requests"""


def files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [*found, ROOT / "lrai.py"] if "lrai" in folders else found


def path_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, except for types alone."""
    tree = ast.parse(path.read_text())
    for_types = {
        each
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for each in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_know_nothing_of_the_world(module: str) -> None:
    """Neither they nor a module of LRAI's that they import; `workers.turns` waits on a condition and nothing else."""
    seen, left = {module}, [module]
    while left:
        for name in imported(path_of(left.pop())):
            assert name.split(".")[0] not in OUTSIDE.split(), f"{module} imports {name}"
            if name not in seen and path_of(name).is_file():
                seen.add(name)
                left.append(name)
    assert not any(name.endswith((".log", ".meters", ".clients", ".session", ".store")) for name in seen)


@pytest.mark.parametrize("path", files(*LAYERS), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    above = LAYERS[LAYERS.index(own) + 1 :]
    forbidden = {*above, "tests"} | (set() if own == "lrai" else {"infra"})
    assert not {name for name in imported(path) if name.split(".")[0] in forbidden}


CODE = files(*LAYERS, "infra", "tests")


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_files_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


def lines_of_code(text: str) -> int:
    """Lines that hold code: no blanks, comments or docstrings."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    docstrings = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {line for t in tokens if t.type not in silent for line in range(t.start[0], t.end[0] + 1)}
    return len(code - docstrings)


def test_lines_of_code_are_counted() -> None:
    assert lines_of_code('"""Doc\nstring."""\n\n# comment\nx = [\n    1,\n]\n') == 3


def lines_in_all(paths: Iterable[Path]) -> int:
    return sum(lines_of_code(path.read_text()) for path in paths)


def test_the_core_engine_is_small() -> None:
    apart = {path for folder in APART_LINES_MAX for path in files(folder)}
    apart |= {ROOT / each for each in (*WATCH, *SCHEDULING, TRACE)}
    assert lines_in_all(path for path in files(*ENGINE) if path not in apart) < ENGINE_LINES_MAX


def test_what_an_actor_counts_is_small_too() -> None:
    assert lines_in_all(ROOT / each for each in WATCH) < WATCH_LINES_MAX


def test_what_schedules_is_small_too() -> None:
    assert lines_in_all(ROOT / each for each in SCHEDULING) < SCHEDULING_LINES_MAX


def test_the_format_of_traces_is_small_too() -> None:
    assert lines_in_all([ROOT / TRACE]) < TRACE_LINES_MAX


CHECKER = sorted((ROOT / "kernels" / "proof").glob("checker*.py"))


@pytest.mark.parametrize("folder", APART_LINES_MAX)
def test_what_is_counted_apart_is_small_too(folder: str) -> None:
    assert lines_in_all(path for path in files(folder) if path not in CHECKER) < APART_LINES_MAX[folder]


def test_the_checker_is_small_and_knows_nothing_of_the_prover() -> None:
    assert lines_in_all(CHECKER) < CHECKER_LINES_MAX
    names = {name for path in CHECKER for name in imported(path)}
    own = {name for name in names if name.split(".")[0] in (*LAYERS, "infra")}
    assert {name.split(".")[2] for name in own if name.startswith("kernels.proof.")} <= {each.stem for each in CHECKER}
    assert not any(name.startswith(("numpy", "onnxruntime", "scipy")) for name in names)


@pytest.mark.parametrize("module", PURE)
def test_examples_in_docstrings_are_true(module: str) -> None:
    results = doctest.testmod(importlib.import_module(module))
    assert results.failed == 0


def test_there_are_examples_at_all() -> None:
    finder = doctest.DocTestFinder()
    examples = [t for module in PURE for t in finder.find(importlib.import_module(module)) if t.examples]
    assert len(examples) >= 10
