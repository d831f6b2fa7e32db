"""A small schema registry on HTTP: what Confluent's clients ask of a registry, for Avro."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

VERSION_PATH = 4  # /subjects/<subject>/versions/<version>


class Registry:
    """Subjects with their versions; ids are 1, 2, ... and stay when it is stopped and started again."""

    def __init__(self) -> None:
        self.schemas: list[str] = []
        self.subjects: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Answers from now on; at the address that it had before."""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*registry.get(urlsplit(self.path).path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(*registry.post(urlsplit(self.path).path, body))

            def _answer(self, status: int, found: object) -> None:
                body = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                registry.asked.append(format % args)

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuses connections until it is started again."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Registry:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def get(self, path: str) -> tuple[int, Any]:
        """GET: a schema by id, the subjects, the versions of a subject, one of them."""
        parts = [unquote(part) for part in path.split("/")[1:]]
        if parts[:2] == ["schemas", "ids"]:
            number = int(parts[2])
            if not 0 < number <= len(self.schemas):
                return 404, {"error_code": 40403, "message": "Schema not found"}
            return 200, {"schema": self.schemas[number - 1]}
        if parts == ["subjects"]:
            return 200, list(self.subjects)
        versions = self.subjects.get(parts[1]) if parts[0] == "subjects" else None
        if versions is None:
            return 404, {"error_code": 40401, "message": "Subject not found"}
        if len(parts) < VERSION_PATH:
            return 200, list(range(1, len(versions) + 1))
        version = len(versions) if parts[3] == "latest" else int(parts[3])
        return 200, self._version(parts[1], version)

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """POST: register a schema under a subject, or look one up there."""
        parts = [unquote(part) for part in path.split("/")[1:]]
        text = body["schema"]
        try:
            json.loads(text)
        except ValueError:
            return 422, {"error_code": 42201, "message": "Invalid schema"}
        with self._lock:
            if len(parts) == VERSION_PATH - 1:
                return 200, self._register(parts[1], text)
            for version, number in enumerate(self.subjects.get(parts[1], []), 1):
                if self.schemas[number - 1] == text:
                    return 200, self._version(parts[1], version)
        return 404, {"error_code": 40403, "message": "Schema not found"}

    def _register(self, subject: str, text: str) -> dict[str, Any]:
        if text not in self.schemas:
            self.schemas.append(text)
        number = self.schemas.index(text) + 1
        versions = self.subjects.setdefault(subject, [])
        if number not in versions:
            versions.append(number)
        return self._version(subject, versions.index(number) + 1)

    def _version(self, subject: str, version: int) -> dict[str, Any]:
        number = self.subjects[subject][version - 1]
        return {"subject": subject, "version": version, "id": number, "schema": self.schemas[number - 1]}
