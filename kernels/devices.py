"""Where a model runs: execution providers of the runtime under short names, and what this processor can do."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnxruntime
from pydantic import TypeAdapter

from schemas.errors import BadSetting, LraiError

# those that change what integer and float kernels the runtime picks
_FEATURES = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "avx512_fp16", "amx_int8", "amx_bf16", "amx_tile", "asimd", "asimddp", "asimdhp", "i8mm", "sve",
)  # fmt: skip


# what a runtime computes on the CPU for another device on purpose: sizes, places and what is made of them
_BESIDE = """Shape Size Gather GatherElements GatherND Unsqueeze Squeeze Concat Slice Cast Constant ConstantOfShape Tile
Reshape Flatten Expand Range Identity Add Sub Mul Div Mod Neg Min Max Equal Less Greater Not And Or Where NonZero Floor
Ceil ReduceProd ReduceSum"""


class KernelError(LraiError):
    """The runtime could not load or run the model."""


class NoDevice(KernelError, BadSetting):
    """The execution provider is not there, or not for this model: to start again does not help."""


@dataclass(frozen=True, slots=True)
class Device:
    """An execution provider. `options` decide what it answers and are in manifests, `placed` only where it runs.

    `package`: what brings it; `before_cpu`: devices whose providers may take what it leaves; `which`: the option for
    the part of the name behind the colon; `threads`: the option for threads a run; `cache`: options for a folder of its
    own; `pinned`: whether batches go through pinned memory; `halves`: 16-bit floats worth trying; `of_kind`: further
    options by kind of variant; `within`: how far golden answers may be away, as a share of the largest number of an
    output, 0 for bit by bit.
    """

    name: str
    provider: str
    package: str
    options: dict[str, str] = field(default_factory=dict)
    placed: dict[str, str] = field(default_factory=dict)
    before_cpu: tuple[str, ...] = ()
    which: str = ""
    threads: str = ""
    cache: dict[str, str] = field(default_factory=dict)
    pinned: bool = False
    halves: tuple[str, ...] = ()
    of_kind: dict[str, dict[str, str]] = field(default_factory=dict)
    within: float = 0.0

    @property
    def gpu(self) -> bool:
        """Whether its kernels run on a GPU of NVIDIA's, whose time and energy NVML tells."""
        return self.name.startswith(("cuda", "tensorrt"))

    def of(self, kind: str) -> Device:
        """As variants of that kind run there."""
        return replace(self, options={**self.options, **self.of_kind.get(kind, {})})

    def providers(self, threads: int) -> list[tuple[str, dict[str, str]]]:
        """As a session takes them, with their options."""
        own = {**self.options, **self.placed, **({self.threads: str(threads)} if self.threads and threads else {})}
        where = {self.which: self.placed[self.which]} if self.which in self.placed else {}
        others = [DEVICES[each] for each in self.before_cpu]
        return [(self.provider, own), *((each.provider, {**each.options, **where}) for each in others)]


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
DEVICES = {name: TypeAdapter(Device).validate_python({"name": name, **stated}) for name, stated in _TABLE.items()}
CPU = DEVICES["cpu"]


def device(name: str, cache: Path | None = None) -> Device:
    """The device of that name, such as cuda or cuda:1; `cache`: a folder for what it compiles.

    Raises NoDevice: an unknown name, or a provider that this runtime does not have.
    """
    kind, colon, which = name.partition(":")
    found = DEVICES.get(kind)
    if found is None or (colon and not (found.which and which)):
        raise NoDevice(f"device = {name!r}: use one of {', '.join(DEVICES)}; cuda:1 is the second GPU")
    there = onnxruntime.get_available_providers()
    if found.provider not in there:
        raise NoDevice(
            f"device = {name!r}: this runtime has {', '.join(there)}, not {found.provider}; install {found.package}"
            " in place of onnxruntime (only one of these packages may be there)"
        )
    own = {found.which: which} if which else {}
    options, placed = (own, {}) if found.which in found.options else ({}, own)
    kept = {key: value.format(cache) for key, value in found.cache.items() if cache}
    if kept and cache:
        cache.mkdir(parents=True, exist_ok=True)
    return replace(found, options={**found.options, **options}, placed={**placed, **kept})


def check_provider(found: Device, providers: list[str]) -> None:
    """`providers`: of a session that asked for the device. Raises NoDevice where it fell back, as the runtime hides."""
    if not providers or providers[0] != found.provider:
        raise NoDevice(
            f"device = {found.name!r}: the runtime fell back to {', '.join(providers) or 'nothing'};"
            f" install {found.package}, and see that its libraries load"
        )


def check_placement(found: Device, nodes: Sequence[tuple[str, str]]) -> None:
    """`nodes`: provider and operator of each. Raises NoDevice where one that does the work would run on the CPU."""
    left = sorted({op for provider, op in nodes if provider == CPU.provider and op not in _BESIDE.split()})
    if left or all(provider != found.provider for provider, _ in nodes):
        what = f"{', '.join(left)} on the CPU" if left else "nothing of the model there"
        raise NoDevice(f"device = {found.name!r}: the runtime runs {what}; set device = 'cpu' for this model")


def cpu_features(path: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Of this processor, those that kernels depend on; the machine's name alone where the system does not tell."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return (platform.machine(),)
    flags = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "")
    there = set(flags.partition(":")[2].split())
    return (platform.machine(), *(each for each in _FEATURES if each in there))
