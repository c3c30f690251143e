"""A profile as it stands in a file: header, sessions, entries, corrections; read with one clear line for what is wrong.

The JSON Schema of this file is committed as `profile.schema.json`; docs/hardware_profiles.md explains the fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import sqrt
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from hw_profiles.documents import SCHEMA_VERSION, Strict, parse_model
from hw_profiles.latency.graphs import Probe
from hw_profiles.latency.kernels import Formats, Kernel, Mode, Op
from hw_profiles.latency.runtimes import EXECUTIONS
from hw_profiles.latency.runtimes.execution import Execution
from hw_profiles.passes import MAX_DISTURBED, in_words
from hw_profiles.patterns import parse_pattern

LEAST_MS, MOST_MS, MOST_SIZE = 1e-6, 1e9, 2**31
"""Of a time (a nanosecond, twelve days) and of a size: what is computed of them stays finite, and 64 bits hold it."""

Milliseconds = Annotated[float, Field(ge=0, le=MOST_MS)]
Positive = Annotated[float, Field(ge=LEAST_MS, le=MOST_MS)]
Variance = Annotated[float, Field(ge=0, le=MOST_MS**2)]
Difference = Annotated[float, Field(ge=-MOST_MS, le=MOST_MS)]
Share = Annotated[float, Field(ge=0, le=MOST_MS)]
Size = Annotated[int, Field(ge=1, le=MOST_SIZE)]
Extent = Annotated[list[Size], Field(max_length=8)]
Dtype = Literal["fp32", "fp16"]


def known_runtime(name: str) -> str:
    """The name of a runtime, if it is one.

    Raises:
        ValueError: If it is none of `EXECUTIONS`.
    """
    if name not in EXECUTIONS:
        raise ValueError(f"the runtime must be {' or '.join(EXECUTIONS)}, but got {name!r}")
    return name


RuntimeName = Annotated[
    str, AfterValidator(known_runtime), WithJsonSchema({"enum": list(EXECUTIONS), "type": "string"})
]


class Device(Strict):
    """Where it was measured, as far as it can be read."""

    name: str = Field(description="host name")
    cpu: str = Field(description="model of the processor")
    gpu: str | None = Field(None, description="model of the GPU, where one computes")
    machine: str = Field(description="architecture, such as x86_64 or aarch64")
    system: str = Field(description="operating system")
    cores: Size = Field(description="cores of the device")
    cores_used: Size = Field(description="threads that compute")
    governor: str | None = Field(None, description="frequency governor")
    mhz: float | None = Field(None, description="clock when the session began")


class Disturbance(Strict):
    """How disturbed a sitting was: what ran off its usual time, scattered, or was timed while the machine was busy."""

    entries: Size = Field(description="what was timed")
    at_first: Annotated[int, Field(ge=0)] = Field(description="disturbed ones after the first pass")
    left: Annotated[int, Field(ge=0)] = Field(description="disturbed ones that stayed so when timed again")

    @property
    def trusted(self) -> bool:
        """Whether so few are left that the measurement can be trusted."""
        return self.left <= MAX_DISTURBED * self.entries

    def in_words(self, what: str = "entries") -> str:
        """The same as a sentence."""
        return in_words(self.model_dump(), what)


class Session(Strict):
    """One sitting of measurements."""

    date: str = Field(description="UTC, ISO 8601")
    device: Device
    runtime_version: str
    yardstick_ms: Positive = Field(description="median time of the yardstick graph")
    overhead_ms: Milliseconds = Field(description="fixed cost of one call of the runtime")
    disturbed: Disturbance | None = Field(None, description="how disturbed it was; not known of older profiles")


class Entry(Strict):
    """One kernel at one pair of widths; milliseconds per execution, call overhead and helpers taken off."""

    inputs: Size = Field(description="channels in")
    outputs: Size = Field(description="channels out")
    n: Size = Field(description="repeats")
    median_ms: Milliseconds
    mean_ms: Milliseconds
    variance: Variance = Field(description="of the repeats, ms squared")
    p95_ms: Milliseconds
    yardstick_ms: Positive = Field(description="the yardstick, timed alternately with this entry")
    session: Annotated[int, Field(ge=0)] = Field(description="index of the sitting")

    @property
    def standard_error_ms(self) -> float:
        """Of the median, were the repeats normally distributed."""
        return 1.2533 * sqrt(self.variance / self.n)


class KernelKey(Strict):
    """A fused layer shape without its widths."""

    op: Op
    mode: Mode
    add: bool = Field(description="whether it also adds a residual")
    activation: Annotated[str, Field(pattern="^[a-z0-9_]*$", max_length=40)]
    kernel: Extent
    stride: Extent
    groups: Size
    in_map: Extent
    out_map: Extent


class KernelTimes(Strict):
    """All entries of one kernel."""

    kernel: KernelKey
    entries: list[Entry] = Field(min_length=1)

    def key(self) -> Kernel:
        """The kernel."""
        return Kernel.from_json(self.kernel.model_dump())


class FormatsKey(Strict):
    """Tensor formats of the runtime on the device."""

    block: Annotated[int, Field(ge=0)] = Field(description="channels in a block, 0: only the plain format")
    align: Size = Field(description="input channels are a multiple of this where a convolution runs blocked")
    fuses: bool = Field(description="whether activations and additions run inside convolutions")

    def formats(self) -> Formats:
        """The same for look-ups."""
        return Formats(**self.model_dump())


class Correction(Strict):
    """Whole network = intercept + slope x (overhead + sum of kernels), for one network; with its held-out error."""

    network: str = Field(description="digest of the dense network's layout")
    task: str
    intercept_ms: Difference
    slope: Positive
    networks: Size = Field(description="pruned networks timed whole")
    median_relative_error: Share = Field(description="held out")
    p95_relative_error: Share = Field(description="held out")
    spearman: Annotated[float, Field(ge=-1, le=1)]
    dense_ms: Positive = Field(description="the dense network, timed in the same sitting")
    date: str
    disturbed: Disturbance | None = Field(None, description="how disturbed it was; not known of older profiles")


class Profile(Strict):
    """A measured device: which kernels take how long."""

    schema_version: Literal[1] = SCHEMA_VERSION
    runtime: RuntimeName
    dtype: Dtype
    layout: Literal["NCHW"] = "NCHW"
    batch: Size
    threads: Size
    formats: FormatsKey
    sessions: list[Session] = Field(min_length=1)
    kernels: list[KernelTimes]
    corrections: list[Correction] = Field([])
    skips: dict[str, str] = Field({}, description="pattern whose zeros are not multiplied -> source; unstructured: any")

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        first = self.sessions[0]
        for session in self.sessions[1:]:
            _same_device(first, session)
        if any(session.device.cores_used != self.threads for session in self.sessions):
            raise ValueError("`cores_used` of every session must equal `threads`: it was measured otherwise")
        for text in self.skips:
            if text != "unstructured":
                parse_pattern(text)
        seen: set[Kernel] = set()
        for times in self.kernels:
            key = times.key()
            if key in seen:
                raise ValueError(f"a kernel must stand once in a profile, but {key.label!r} stands twice: join them")
            seen.add(key)
            _check_entries(key, times.entries, len(self.sessions))
        return self

    def execution(self) -> Execution:
        """How the runtime executes networks on this device."""
        return EXECUTIONS[self.runtime](self.formats.formats())

    @property
    def version(self) -> str:
        """Version of the runtime."""
        return self.sessions[0].runtime_version

    def disturbances(self) -> list[tuple[str, Disturbance, str]]:
        """When and how each sitting and check was disturbed, and what was timed; only where that is known."""
        found = [(f"measured {s.date}", s.disturbed, "entries") for s in self.sessions]
        found += [(f"checked on {c.task}", c.disturbed, "networks") for c in self.corrections]
        return [(when, disturbed, what) for when, disturbed, what in found if disturbed is not None]

    def probes(self) -> dict[Probe, Entry]:
        """All entries by what they measure."""
        return {Probe(t.key(), e.inputs, e.outputs): e for t in self.kernels for e in t.entries}

    def text(self) -> str:
        """The file's content: one entry per line, kernels in a fixed order, so that versions can be compared."""
        data = self.model_dump(mode="json")
        kernels = data.pop("kernels")
        if not self.skips:
            del data["skips"]  # as files were before there were patterns
        for part in (*data["sessions"], *data["corrections"]):
            if part["disturbed"] is None:
                del part["disturbed"]  # as files were before it was recorded
        blocks = [
            f'    {{\n      "kernel": {json.dumps(times["kernel"])},\n      "entries": [\n'
            + ",\n".join(f"        {json.dumps(entry)}" for entry in times["entries"])
            + "\n      ]\n    }"
            for times in kernels
        ]
        head = json.dumps(data, indent=2, allow_nan=False).removesuffix("\n}")
        return head + ',\n  "kernels": [\n' + ",\n".join(blocks) + "\n  ]\n}\n"


def _same_device(first: Session, other: Session) -> None:
    for what, a, b in (
        ("processor", first.device.cpu, other.device.cpu),
        ("GPU", first.device.gpu, other.device.gpu),
        ("architecture", first.device.machine, other.device.machine),
        ("threads", first.device.cores_used, other.device.cores_used),
        ("runtime version", first.runtime_version, other.runtime_version),
    ):
        if a != b:
            raise ValueError(
                f"all sessions of a profile must have the same {what}, but got {a!r} and {b!r}: "
                "keep one profile per device and runtime version"
            )


def _check_entries(key: Kernel, entries: list[Entry], sessions: int) -> None:
    widths = {(entry.inputs, entry.outputs) for entry in entries}
    if len(widths) != len(entries):
        raise ValueError(f"an entry must stand once in a profile, but one of {key.label!r} stands twice: keep one")
    inputs, outputs = {i for i, _ in widths}, {o for _, o in widths}
    full = len(outputs) if key.square else len(inputs) * len(outputs)
    if len(widths) != full or (key.square and any(i != o for i, o in widths)):
        raise ValueError(
            f"the entries of a kernel must form a full grid, but those of {key.label!r} do not: go on with "
            "`amc profile measure`"
        )
    if any(entry.session >= sessions for entry in entries):
        raise ValueError(f"`session` of an entry must be among the {sessions} sessions, but not so in {key.label!r}")


def kernel_times(entries: Mapping[Probe, Entry]) -> list[KernelTimes]:
    """Entries grouped by kernel, in a fixed order."""
    grouped: dict[Kernel, list[Entry]] = {}
    for probe in sorted(entries):
        grouped.setdefault(probe.kernel, []).append(entries[probe])
    return [KernelTimes(kernel=KernelKey(**k.to_json()), entries=listed) for k, listed in grouped.items()]


def parse(text: str, where: str) -> Profile:
    """Reads a profile.

    Args:
        text: Content of the file.
        where: Its name, for the message.

    Raises:
        ValueError: If it is no complete, valid profile; one line.
    """
    return parse_model(Profile, text, where, "a profile")


def schema_text() -> str:
    """The published JSON Schema."""
    return json.dumps(Profile.model_json_schema(), indent=2) + "\n"
