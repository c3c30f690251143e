"""Measuring this device for a task: what its units can reach, timed by the same script that runs elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from amc.profiling.networks import reaches_of
from amc.profiling.runtimes import make_runtime
from amc.profiling.runtimes.runtime import Runtime
from amc.profiling.setting import Setting
from amc.profiling.store import read_profile, write_profile
from envs.parallel import single_threaded
from envs.units.anatomy import Anatomy
from hw_profiles.bench.bundle import (
    BUNDLED_RUNTIME,
    KNOWN_FORMATS,
    MAX_ENTRIES,
    fixed_grid,
    write_bundle,
)
from hw_profiles.bench.measure import MeasureOptions, TableBuilder
from hw_profiles.device import now
from hw_profiles.latency.graphs import Probe
from hw_profiles.latency.kernels import Kernel
from hw_profiles.latency.profile import Correction, Device, Disturbance, FormatsKey, Profile, Session, kernel_times
from hw_profiles.latency.runtimes import EXECUTIONS
from hw_profiles.passes import Journal, TrustLimits, check_trust

Progress = Callable[[str, int, int], None]


def measure_profile(
    anatomy: Anatomy,
    setting: Setting,
    options: MeasureOptions,
    out: Path,
    progress: Progress,
    runtime: Runtime | None = None,
    *,
    round_to: int = 1,
) -> Profile:
    """Measures what the network needs and `out` does not hold yet, and writes it there.

    An interrupted or refused measurement leaves `out`.partial and goes on from it.

    Args:
        anatomy: The network's units and layouts.
        setting: How networks are run.
        options: How carefully.
        out: File of the profile; measured entries are added to an existing one.
        progress: Told what is done.
        runtime: What times; None: the setting's.
        round_to: Only widths that are multiples of this are wanted, as a search with this rule chooses them.

    Raises:
        ValueError: If `out` holds a profile of another device, runtime version or setting, or if too many entries
            stay disturbed and `options` do not keep them.
    """
    single_threaded()
    runtime = make_runtime(setting) if runtime is None else runtime
    device = runtime.device()
    old = read_profile(out) if out.exists() else None
    if old is not None:
        check_same(old, device, setting, runtime, out)
    reaches = reaches_of(anatomy, round_to, runtime.execution)
    out.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(out.with_name(out.name + ".partial"), _header(device, setting, runtime, options, old))
    remembered = {_probe(row): row["raw"] for row in journal.records if not row.get("again")}
    earlier = [(_probe(row), row["raw"]) for row in journal.records if row.get("again")]

    def timed(probe: Probe, **mark: bool) -> dict[str, Any]:
        raw: dict[str, Any] | None = remembered.pop(probe, None)
        if raw is None:
            raw = runtime.time(probe, options)
            place = {"kernel": probe.kernel.to_json(), "inputs": probe.inputs, "outputs": probe.outputs}
            journal.add({**place, "raw": raw, **mark})
        return raw

    builder = TableBuilder(runtime.execution, timed, old.probes() if old else {})
    builder.progress = lambda done, planned: progress("timing kernels", done, planned)
    builder.repeated = lambda done, planned: progress("timing disturbed ones again", done, planned)
    builder.cover(reaches, options)
    limits = TrustLimits(device.cores - setting.threads)
    found = builder.settle(lambda probe: timed(probe, again=True), limits, 60 * options.again_minutes, earlier)
    if found is not None and not options.keep_disturbed:
        check_trust(found.model_dump())
    profile = _joined(old, builder, device, setting, runtime, found)
    write_profile(out, profile)
    journal.remove()
    return profile


def _joined(
    old: Profile | None,
    builder: TableBuilder,
    device: Device,
    setting: Setting,
    runtime: Runtime,
    found: Disturbance | None,
) -> Profile:
    """The old profile with a new session, or a new profile."""
    sessions = list(old.sessions) if old else []
    entries = builder.entries(len(sessions))
    if builder.timed:
        usual = {
            k: float(np.median([raw[k] for raw in builder.timed.values()])) for k in ("yardstick_ms", "overhead_ms")
        }
        sessions.append(Session(date=now(), device=device, runtime_version=runtime.version, disturbed=found, **usual))
    formats = FormatsKey(**asdict(runtime.execution.formats))
    corrections: Iterable[Correction] = old.corrections if old else []
    return Profile.model_validate(
        {
            "runtime": setting.runtime,
            "dtype": setting.dtype,
            "batch": setting.batch,
            "threads": setting.threads,
            "formats": formats,
            "sessions": sessions,
            "kernels": kernel_times(entries),
            "corrections": list(corrections),
        }
    )


def check_same(profile: Profile, device: Device, setting: Setting, runtime: Runtime, where: Path) -> None:
    """Refuses to mix measurements of different devices, versions or options.

    Raises:
        ValueError: naming the first difference.
    """
    there = profile.sessions[0].device
    for what, a, b in (
        ("runtime", profile.runtime, setting.runtime),
        ("runtime version", profile.version, runtime.version),
        ("processor", there.cpu, device.cpu),
        ("architecture", there.machine, device.machine),
        ("GPU", there.gpu, device.gpu),
        ("threads", profile.threads, setting.threads),
        ("batch", profile.batch, setting.batch),
        ("dtype", profile.dtype, setting.dtype),
        ("tensor formats", profile.formats.formats(), runtime.execution.formats),
    ):
        if a != b:
            raise ValueError(
                f"a profile can only be measured and checked on the same {what}, but {str(where)!r} has {a} and here "
                f"is {b}: write another file with --out, or go to that device"
            )


def check_here(profile: Profile, where: Path) -> None:
    """Refuses a profile of another device or runtime version than this one, because nothing can be timed for it here.

    Raises:
        ValueError: naming the first difference.
    """
    setting = Setting.of(profile)
    runtime = make_runtime(setting)
    check_same(profile, runtime.device(), setting, runtime, where)


def bundle_for(anatomy: Anatomy, setting: Setting, max_entries: int = MAX_ENTRIES) -> bytes:
    """The archive that measures a network's kernels elsewhere, with at most so many entries.

    Raises:
        ValueError: If the setting's runtime is not the one that a bundle measures.
    """
    if setting.runtime != BUNDLED_RUNTIME:
        raise ValueError(
            f"a bundle measures {BUNDLED_RUNTIME} only, but got {setting.runtime}: run `amc profile measure` on the "
            "device"
        )
    plans = {}
    for formats in KNOWN_FORMATS:
        execution = EXECUTIONS[BUNDLED_RUNTIME](formats)
        plans[formats] = fixed_grid(reaches_of(anatomy, 1, execution), execution, max_entries)
    return write_bundle(plans, setting.batch, setting.dtype)


def _header(
    device: Device, setting: Setting, runtime: Runtime, options: MeasureOptions, old: Profile | None
) -> dict[str, Any]:
    """What must be equal for an interrupted measurement to go on."""
    return {
        "device": device.model_dump(exclude={"mhz"}),
        "runtime": setting.runtime,
        "version": runtime.version,
        "batch": setting.batch,
        "dtype": setting.dtype,
        "confidence": options.confidence,
        "sessions": len(old.sessions) if old else 0,
    }


def _probe(row: Mapping[str, Any]) -> Probe:
    return Probe(Kernel.from_json(row["kernel"]), row["inputs"], row["outputs"])
