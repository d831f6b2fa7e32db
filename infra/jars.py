"""The jars of Apache Kafka: named and hashed in kafka_jars.toml, fetched once with jgo, kept in the user's cache.

`python -m infra.jars` fetches what kafka_jars.toml names without its hashes and writes them anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.server import PartsError, Progress, cache_folder

PINS = Path(__file__).with_name("kafka_jars.toml")
FETCH_TRIES = 3
FETCH_THREADS = 6
REQUEST_S_MAX = 60


@dataclass(frozen=True)
class Pins:
    """What kafka_jars.toml says: the version of Kafka, SHA-256 (hex) by `group:artifact:version`."""

    version: str
    jars: dict[str, str]


def pins(path: Path = PINS) -> Pins:
    """Reads the pins."""
    table = tomllib.loads(path.read_text())
    return Pins(table["version"], table["jars"])


def kafka_folder() -> Path:
    """The cache folder of the pinned Kafka."""
    return cache_folder(f"kafka-{pins().version}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process at a time fills the folder."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def kafka_jars(folder: Path, wanted: Pins, on_progress: Progress) -> list[Path]:
    """The checked jars in `folder`, in the order of the pins; missing ones are fetched.

    Raises PartsError when a jar cannot be fetched or its SHA-256 is not the pinned one.
    """
    target = folder / "jars"
    target.mkdir(exist_ok=True)
    paths = {coordinate: target / _file_name(coordinate) for coordinate in wanted.jars}
    missing = [coordinate for coordinate, path in paths.items() if not path.exists()]
    if missing:
        _fetch(missing, paths, wanted, on_progress)
    for coordinate, path in paths.items():
        _check(coordinate, path, wanted.jars[coordinate])
    return list(paths.values())


def _file_name(coordinate: str) -> str:
    _, artifact, version = coordinate.split(":")
    return f"{artifact}-{version}.jar"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(coordinate: str, path: Path, wanted: str) -> None:
    found = _sha256(path)
    if found != wanted:
        raise PartsError(
            f"jar {coordinate} has SHA-256 {found}, pinned is {wanted}: delete {path} and try again; "
            f"when it happens again, what the repository serves is not what was released"
        )


def _fetch(missing: list[str], paths: dict[str, Path], wanted: Pins, on_progress: Progress) -> None:
    # imported here: a warm start needs neither jgo nor what it imports
    from jgo.maven import MavenContext

    repository = paths[missing[0]].parent.parent / "repository"
    context = MavenContext(repo_cache=repository, timeout=REQUEST_S_MAX)

    def fetch(coordinate: str) -> None:
        jar = _resolve(context, coordinate)
        if wanted.jars[coordinate]:
            _check(coordinate, jar, wanted.jars[coordinate])
        jar.replace(paths[coordinate])

    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        for done, _ in enumerate(pool.map(fetch, missing), 1):
            on_progress(f"Kafka: fetching Apache Kafka {wanted.version}, jar {done} of {len(missing)}")
    shutil.rmtree(repository, ignore_errors=True)


def _resolve(context: object, coordinate: str) -> Path:
    """One jar without what it depends on: all of that is pinned too. The resolver is jgo's own, without Maven."""
    cause: Exception | None = None
    for _ in range(FETCH_TRIES):
        artifact = context.create_dependency(coordinate).artifact  # type: ignore[attr-defined]
        try:
            return Path(artifact.resolve())
        except (OSError, RuntimeError) as err:  # requests' errors are OSErrors; jgo's own are RuntimeErrors
            cause = err
            artifact.cached_path.unlink(missing_ok=True)
    raise PartsError(
        f"jar {coordinate} cannot be fetched ({cause}): check the network, or set LRAI_KAFKA to a running Kafka"
    ) from cause


def main() -> None:
    """Writes the hashes of the jars that kafka_jars.toml names."""
    import tempfile

    named = pins()
    wanted = Pins(named.version, dict.fromkeys(named.jars, ""))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "jars"
        target.mkdir()
        paths = {coordinate: target / _file_name(coordinate) for coordinate in wanted.jars}
        _fetch(list(paths), paths, wanted, print)
        lines = [f'"{coordinate}" = "{_sha256(path)}"' for coordinate, path in paths.items()]
    PINS.write_text("\n".join([*_head(named.version), *lines, ""]))


def _head(version: str) -> list[str]:
    return [
        "# What the broker needs of Kafka's dependencies, and slf4j-simple for its log.",
        "# `python -m infra.jars` writes the SHA-256 of each anew.",
        f'version = "{version}"',
        "",
        "[jars]",
    ]


if __name__ == "__main__":
    main()
