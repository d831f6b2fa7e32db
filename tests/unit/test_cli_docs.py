"""The documents name what the code has: every error code, every setting, every metric."""

import re
from pathlib import Path

from prometheus_client import REGISTRY

from schemas import framing
from streams import meters
from streams.settings import Settings

ROOT = Path(__file__).parents[2]
# how a code comes into an answer or a dead letter
CODES = (
    r'BadRecord\(\s*"(\w+)"', r'reject\(\s*\w+, "(\w+)"', r'(?:FAILED|EXPIRED|REJECTED), "(\w+)"',
    r'return "(\w+_rows)"', r'code = "(\w+)"', r'code, fix = "(\w+)"',
)  # fmt: skip
INNER = {"unknown_datatype"}  # raised for a client's own tensors; admission says wrong_datatype


def test_every_error_code_is_explained() -> None:
    sources = [
        path.read_text() for folder in ("schemas", "streams", "workers") for path in (ROOT / folder).glob("*.py")
    ]
    used = {code for text in sources for pattern in CODES for code in re.findall(pattern, text)} - INNER
    rows = re.findall(r"^\| `(\w+)` \| (dead letter|REJECTED|EXPIRED|FAILED) \|", document("errors.md"), re.MULTILINE)
    assert len(rows) == len({code for code, _ in rows})
    explained = {code for code, _ in rows}
    assert not used - explained
    assert not [code for code in explained if not any(f'"{code}"' in text for text in sources)]


def test_every_setting_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", document("settings.md"), re.MULTILINE)
    assert [name for name, _ in rows] == list(Settings.model_fields)
    for name, stated in rows:
        default = Settings.model_fields[name].default
        if isinstance(default, int | float | str) and not isinstance(default, bool):
            assert re.split(r"[` ]", stated.strip("`"))[0] == str(default).removesuffix(".0"), name


def test_every_metric_is_explained() -> None:
    assert meters.WINDOWS
    names = {name for each in REGISTRY.collect() if each.name.startswith("lrai_") for name in [each.name]}
    missing = [name for name in names if name not in document("operations.md")]
    assert not missing


def test_header_bytes_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    for name, record in (("inference_request", "InferenceRequest"), ("inference_result", "InferenceResult")):
        assert f"{framing.header(name).hex(' ')}    before an {record}" in text
    assert f'bytes.fromhex("{framing.header("inference_request").hex()}")' in text


def test_links_of_the_documents_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists() or target.endswith("benchmarks.md"), f"{path.name}: {target}"


def document(name: str) -> str:
    return (ROOT / "docs" / name).read_text()
