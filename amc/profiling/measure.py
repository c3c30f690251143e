"""Measuring this device for a task: what its units can reach, timed by the same script that runs elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from amc.profiling.bench import Bench, Setting
from amc.profiling.runtimes import make_bench
from amc.profiling.store import read_profile, write_profile
from envs.parallel import single_threaded
from envs.units.anatomy import Anatomy
from hw_profiles.bench.bundle import (
    KNOWN_FORMATS,
    MOST_ENTRIES,
    fixed_grid,
    write_bundle,
)
from hw_profiles.bench.device_script import now
from hw_profiles.bench.measure import Effort, Survey
from hw_profiles.bench.plan import reachable
from hw_profiles.latency.graphs import Probe
from hw_profiles.latency.kernels import Kernel
from hw_profiles.latency.profile import Correction, Device, Disturbance, FormatsKey, Profile, Session, kernel_times
from hw_profiles.layers import IntArray, Widths
from hw_profiles.passes import Journal, Law, check_trust

SWEPT = 96
"""Widths of a unit that are all tried; of wider ones the ends and a random choice."""
MIXED = 1500
"""Random assignments tried, for kernels that only some combinations of widths execute."""

Progress = Callable[[str, int, int], None]


def measure_profile(
    anatomy: Anatomy, setting: Setting, effort: Effort, out: Path, progress: Progress, bench: Bench | None = None
) -> Profile:
    """Measures what the network needs and `out` does not hold yet, and writes it there.

    An interrupted or refused measurement leaves `out`.partial and goes on from it.

    Args:
        anatomy: The network's units and layouts.
        setting: How networks are run.
        effort: How carefully.
        out: File of the profile; measured entries are added to an existing one.
        progress: Told what is done.
        bench: What times; None: that of the setting's runtime.

    Raises:
        ValueError: If `out` holds a profile of another device, runtime version or setting, or if too many entries
            stay disturbed and `effort` does not keep them.
    """
    single_threaded()
    bench = make_bench(setting) if bench is None else bench
    device = bench.device()
    old = read_profile(out) if out.exists() else None
    if old is not None:
        check_same(old, device, setting, bench, out)
    reaches = reachable(anatomy.family.dense, sample_widths(anatomy), bench.formats)
    journal = Journal(out.with_name(out.name + ".partial"), _header(device, setting, bench, effort, old))
    remembered = {_probe(row): row["raw"] for row in journal.records if not row.get("again")}
    earlier = [(_probe(row), row["raw"]) for row in journal.records if row.get("again")]

    def timed(probe: Probe, **mark: bool) -> dict[str, Any]:
        raw: dict[str, Any] | None = remembered.pop(probe, None)
        if raw is None:
            raw = bench.time(probe, effort)
            place = {"kernel": probe.kernel.to_json(), "inputs": probe.inputs, "outputs": probe.outputs}
            journal.add({**place, "raw": raw, **mark})
        return raw

    survey = Survey(bench.formats, timed, old.probes() if old else {})
    survey.progress = lambda done, planned: progress("timing kernels", done, planned)
    survey.repeated = lambda done, planned: progress("timing disturbed ones again", done, planned)
    survey.cover(reaches, effort)
    law = Law(device.cores - setting.threads)
    found = survey.settle(lambda probe: timed(probe, again=True), law, 60 * effort.again_minutes, earlier)
    if found is not None and not effort.keep_disturbed:
        check_trust(found.model_dump())
    profile = _joined(old, survey, device, setting, bench, found)
    write_profile(out, profile)
    journal.remove()
    return profile


def _joined(
    old: Profile | None, survey: Survey, device: Device, setting: Setting, bench: Bench, found: Disturbance | None
) -> Profile:
    """The old profile with a new session, or a new profile."""
    sessions = list(old.sessions) if old else []
    entries = survey.entries(len(sessions))
    if survey.timed:
        usual = {
            k: float(np.median([raw[k] for raw in survey.timed.values()])) for k in ("yardstick_ms", "overhead_ms")
        }
        sessions.append(Session(date=now(), device=device, runtime_version=bench.version, disturbed=found, **usual))
    formats = FormatsKey(block=bench.formats.block, align=bench.formats.align, fuses=bench.formats.fuses)
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


def check_same(profile: Profile, device: Device, setting: Setting, bench: Bench, where: Path) -> None:
    """Refuses to mix measurements of different devices, versions or settings.

    Raises:
        ValueError: naming the first difference.
    """
    there = profile.sessions[0].device
    for what, a, b in (
        ("runtime", profile.runtime, setting.runtime),
        ("runtime version", profile.version, bench.version),
        ("processor", there.cpu, device.cpu),
        ("architecture", there.machine, device.machine),
        ("GPU", there.gpu, device.gpu),
        ("threads", profile.threads, setting.threads),
        ("batch", profile.batch, setting.batch),
        ("dtype", profile.dtype, setting.dtype),
        ("tensor formats", profile.formats.formats(), bench.formats),
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
    setting = Setting(runtime=profile.runtime, threads=profile.threads, batch=profile.batch, dtype=profile.dtype)
    bench = make_bench(setting)
    check_same(profile, bench.device(), setting, bench, where)


def bundle_for(anatomy: Anatomy, setting: Setting, most: int = MOST_ENTRIES) -> bytes:
    """The archive that measures a network's kernels elsewhere, with at most so many entries."""
    if setting.runtime != "onnxruntime":
        raise ValueError("a bundle measures onnxruntime only: on a device with torch, run `amc profile measure` there")
    widths = sample_widths(anatomy)
    plans = {f: fixed_grid(reachable(anatomy.family.dense, widths, f), f, most) for f in KNOWN_FORMATS}
    return write_bundle(plans, setting.batch, setting.dtype)


def sample_widths(anatomy: Anatomy) -> Widths:
    """Many variants of the network: each unit at all its widths beside light and heavy others, and random ones."""
    family, generator = anatomy.family, np.random.default_rng(0)
    granules = {unit.name: unit.granule for unit in anatomy.units}
    steps = np.asarray([granules[name] for name in family.units], dtype=np.int64)
    counts = family.channels // np.maximum(steps, 1)
    rows: list[IntArray] = [counts, np.ones_like(counts)]
    for index, count in enumerate(counts.tolist()):
        for others in (counts, np.ones_like(counts)):
            block = np.repeat(others[None, :], len(swept := _swept(count, generator)), axis=0)
            block[:, index] = swept
            rows.extend(block)
    rows.extend(generator.integers(1, counts + 1, size=(MIXED, len(counts))))
    return family.widths(np.stack(rows) * steps)


def _swept(count: int, generator: np.random.Generator) -> IntArray:
    if count <= SWEPT:
        return np.arange(1, count + 1)
    ends = np.concatenate([np.arange(1, 41), np.arange(count - 15, count + 1)])
    return np.unique(np.concatenate([ends, generator.integers(1, count + 1, size=SWEPT // 2)]))


def _header(device: Device, setting: Setting, bench: Bench, effort: Effort, old: Profile | None) -> dict[str, Any]:
    """What must be equal for an interrupted measurement to go on."""
    return {
        "device": device.model_dump(exclude={"mhz"}),
        "runtime": setting.runtime,
        "version": bench.version,
        "batch": setting.batch,
        "dtype": setting.dtype,
        "confidence": effort.confidence,
        "sessions": len(old.sessions) if old else 0,
    }


def _probe(row: Mapping[str, Any]) -> Probe:
    return Probe(Kernel.from_json(row["kernel"]), row["inputs"], row["outputs"])
