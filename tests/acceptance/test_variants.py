"""A compiled variant answers when an operator says so, and every answer and row names what answered."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psycopg
import pytest
from typer.testing import CliRunner

from infra.commands.certifying import certify
from infra.commands.variants import app
from infra.parts import Parts
from kernels import gate
from kernels.compile import rows
from kernels.manifest import BatchProfile
from kernels.repository import load_model
from kernels.session import Session
from kernels.spec import VariantSpec
from schemas.errors import BadSetting
from tests import nets
from tests.acceptance.client import Client, Record, Source, framed, request, until
from tests.acceptance.conftest import Service, running
from tests.chaos.models import KILLS, crashing, killer
from tests.variants import add
from workers import slot

Floats = npt.NDArray[np.float32]
FEATURES = np.random.default_rng(3).standard_normal((24, 6), np.float32)
RANGE = np.random.default_rng(4).uniform(-5, 5, (80, 6)).astype(np.float32)
EPSILON = 0.5
WAIT_S = 20.0


def certificate_of(models: Path) -> Path:
    return models / "net/1/variants/int8" / gate.FILE


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net/1 with a quantized variant that is certified, one that is not, and one that answers otherwise than its golden
    answers; killer/1, whose variant `crashing` kills the process that loads it, and whose others one that runs a
    certain value."""
    folder = tmp_path_factory.mktemp("variants")
    nets.mlp(folder / "net/1/model.onnx", (6, 16, 3))
    (folder / "net/1/model.toml").write_text(f"epsilon_max = {EPSILON}")
    spec = load_model(folder, "net", "1")
    add(spec, "uncertified")
    given = rows.given([{"features": RANGE}], spec, "range", "file")
    certify(add(spec, "int8"), spec, None, given, EPSILON, "softmax", 4.0, tests=2_000, balls=0)
    golden = add(spec, "elsewhere") / "golden.npz"
    shutil.copy(certificate_of(folder), golden.parent)  # the same graph
    arrays = dict(np.load(golden))
    np.savez(golden, **{**arrays, "output/probabilities": arrays["output/probabilities"] + 1})
    killer(folder / "killer/1/model.onnx")
    spec, value = load_model(folder, "killer", "1"), {"value": np.array([[5]])}
    add(spec, "same", value, killer, profile=BatchProfile(2048, 0.0, 1e-6, 2048, {2048: 2e-3}))  # few runs apart
    add(spec, "crashing", value, crashing)
    text = 'require_certificate = "none"\n[variants]\nprefer = ["crashing", "same"]'
    (folder / "killer/1/model.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def service(parts: Parts, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(parts, tmp_path_factory.mktemp("service"), repository) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Client]:
    found = Client(service.kafka, service.prefix)
    yield found
    found.close()


def lrai(service: Service, *args: str) -> str:
    """What a command prints, as a process of its own."""
    command = [str(Path(sys.executable).with_name("lrai")), *args, *places(service)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def places(service: Service) -> list[str]:
    return ["--kafka", service.kafka, "--prefix", service.prefix, "--models", str(service.models)]


def variant(service: Service, *args: str) -> str:
    """What `lrai variant` prints, or why it refuses; in this process, which is faster."""
    done = CliRunner().invoke(app, [args[0], *places(service), *args[1:]])
    assert done.exception is None or isinstance(done.exception, BadSetting), done.exception
    return str(done.exception or done.stdout)


def asked(client: Client, name: str, features: Floats = FEATURES) -> list[tuple[Source, Record]]:
    """A request a row, all answered OK."""
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 6]}
    records = [
        request("net", [{**tensor, "data": row.tobytes()}], f"{name}-{i}") for i, row in enumerate(features)
    ]
    sources = client.send([framed(each) for each in records], "interactive")
    answers = [each.record() for each in client.wait(sources)]
    assert {(each["status"], each["error_code"]) for each in answers} == {("OK", None)}
    return list(zip(sources, answers, strict=True))


def answered_by(client: Client, variant: str) -> list[tuple[Source, Record]]:
    """Asks until one variant answers all; no request fails on the way."""
    found: list[tuple[Source, Record]] = []

    def switched() -> bool:
        found[:] = asked(client, variant)
        return {each["variant"] for _, each in found} == {variant}

    until(switched, WAIT_S, lambda: {each["variant"] for _, each in found})
    return found


def expected(service: Service, variant: str, features: Floats = FEATURES) -> Floats:
    spec = load_model(service.models, "net", "1")
    session = Session(spec if variant == "original" else spec.of(VariantSpec(variant)))
    found: Floats = session.run({"features": features})["probabilities"]
    return found


def check(
    service: Service, found: list[tuple[Source, Record]], variant: str, certificate: str | None,
    features: Floats = FEATURES,
) -> None:  # fmt: skip
    """The answers are that variant's, and so say the rows."""
    values = np.array([np.frombuffer(each["outputs"][0]["data"], "<f4") for _, each in found])
    np.testing.assert_allclose(values, expected(service, variant, features), rtol=1e-5, atol=1e-6)
    names = (variant, certificate)
    assert {(each["variant"], each["certificate"]) for _, each in found} == {names}

    def audited() -> dict[Source, tuple[str, str | None]]:
        with psycopg.connect(service.store) as connection:
            query = "select request_topic, request_partition, request_offset, variant, certificate from audit.decision"
            return {(row[0], row[1], row[2]): (row[3], row[4]) for row in connection.execute(query)}

    until(lambda: all(audited().get(source) == names for source, _ in found), WAIT_S, audited)


def events(service: Service) -> list[tuple[str | None, ...]]:
    with psycopg.connect(service.store) as connection:
        query = "select model, version, variant, requested_by, reason from audit.control_event order by requested_at"
        return connection.execute(query).fetchall()


def kill_the_actor(service: Service) -> None:
    (path,) = (service.log.parent / "state").glob("*-work-net-1-*.slot")
    os.kill(slot.read(path).pid, signal.SIGKILL)


def test_a_variant_is_forced_and_let_go(service: Service, client: Client) -> None:
    check(service, asked(client, "first"), "original", None)
    assert "int8 answers" in lrai(service, "variant", "set", "net", "int8", "--by", "ann", "--reason", "a test")
    found = answered_by(client, "int8")
    certificate = json.loads(certificate_of(service.models).read_text())["id"]
    check(service, found, "int8", certificate)
    outside = np.concatenate([FEATURES[:3], 10 * np.sign(FEATURES[:3])])
    split = asked(client, "outside", outside)  # the original answers what the variant is not certified for
    check(service, split[:3], "int8", certificate, outside[:3])
    check(service, split[3:], "original", None, outside[3:])
    assert np.abs(expected(service, "int8") - expected(service, "original")).max() > 1e-4
    shown = variant(service, "list", "net")
    assert "int8 is forced by ann: a test" in shown and "w8a8" in shown
    kill_the_actor(service)  # the next one knows before it answers
    check(service, asked(client, "again"), "int8", certificate)
    assert "policy and load choose" in variant(service, "clear", "net", "--by", "bob")
    check(service, answered_by(client, "original"), "original", None)
    assert "is forced" not in variant(service, "list", "net")
    until(lambda: events(service) == [("net", "1", "int8", "ann", "a test"), ("net", "1", None, "bob", "")], WAIT_S,
          lambda: events(service))  # fmt: skip


def refused(service: Service) -> dict[str, str]:
    lines = [json.loads(each) for each in service.log.read_text().splitlines() if each.startswith("{")]
    return {each["variant"]: each["error"] for each in lines if each["event"].startswith("a variant is refused")}


def test_a_variant_that_answers_otherwise_is_refused_and_the_original_serves(service: Service, client: Client) -> None:
    assert "golden" in refused(service)["elsewhere"]
    assert "it has no certificate" in refused(service)["uncertified"]
    variant(service, "set", "net", "elsewhere")
    check(service, asked(client, "elsewhere"), "original", None)
    variant(service, "clear", "net")


def test_what_kills_a_variant_fails_alone(service: Service, client: Client) -> None:
    """The variant that kills at its load is left out; the request that kills at its run runs apart, in its variant."""
    assert "killed the process that loaded it" in refused(service)["crashing"]
    values = [np.full((1000, 1), 5), np.full((1000, 1), KILLS), np.full((1000, 1), 6)]
    tensor = {"name": "value", "datatype": "INT64", "shape": [1000, 1]}
    sent = [framed(request("killer", [{**tensor, "data": each.tobytes()}])) for each in values]
    found = [each.record() for each in client.wait(client.send(sent), 60)]
    ended = [(each["error_code"], each["variant"]) for each in found]
    assert ended == [(None, "same"), ("kernel_failed", None), (None, "same")]
    assert "SIGFPE" in found[1]["error_message"]


def test_what_cannot_be_forced(service: Service) -> None:
    assert "'int9' is no variant of net 1" in variant(service, "set", "net", "int9")
    assert "there is none" in variant(service, "set", "nobody", "int8")
    assert "the versions 1" in variant(service, "list", "net", "--version", "7")
    assert "no topic" in variant(service, "clear", "net", "--prefix", "elsewhere")
