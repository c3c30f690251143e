"""Profiles for people: all known ones, and of one its header, its kernels as a table, its curves as a picture (SVG)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from amc.profiling.store import folders, known, read_profile
from hw_profiles.latency.profile import Profile
from hw_profiles.latency.surface import Surface
from hw_profiles.latency.table import LatencyTable

MAX_LINES = 5
"""Curves per kernel in the picture; between them there are more."""


def listing() -> Group:
    """Every known profile under the folder that it lies in; folders in the order in which a name is looked for."""
    found = list(known())
    parts: list[RenderableType] = []
    for folder in folders():
        parts.append(Text(str(folder), style="bold", overflow="fold"))
        own = [(name, path, hidden) for name, path, hidden in found if path.parent == folder]
        for name, path, hidden in own:
            parts.append(
                Padding(Text.assemble((name, "cyan"), "  (hidden)" if hidden else ""), (0, 0, 0, 2), expand=False)
            )
            parts += [Padding(Text(line), (0, 0, 0, 4), expand=False) for line in _listed(path)]
        if not own:
            parts.append(Text("  no profiles"))
    return Group(*parts, Text("Where two have one name, the first is used."))


def _listed(path: Path) -> Iterator[str]:
    """What a list says of one profile."""
    try:
        profile = read_profile(path)
    except ValueError as error:
        yield f"broken: {error}"
        return
    entries = sum(len(times.entries) for times in profile.kernels)
    yield (
        f"{profile.sessions[0].device.cpu}, {profile.runtime} {profile.version} {profile.dtype}, "
        f"threads {profile.threads}, batch {profile.batch}, {entries} entries"
    )
    if profile.corrections:
        checked = ", ".join(f"{c.task} ({c.median_relative_error:.1%})" for c in profile.corrections)
        yield f"median error of whole networks: {checked}"
    if not all(found.trusted for _, found, _ in profile.disturbances()):
        yield "disturbed when it was measured or checked: not to be trusted"


def summary(profile: Profile) -> str:
    """Device, runtime, setting and corrections in a few lines."""
    device, formats = profile.sessions[0].device, profile.formats
    clock = ", ".join(str(x) for x in (device.governor, f"{device.mhz:.0f} MHz" if device.mhz else None) if x)
    lines = [
        f"{device.name}: {device.cpu}{f', {device.gpu}' if device.gpu else ''}, {device.machine}, {device.system}, "
        f"{device.cores} cores, {device.cores_used} used" + (f", {clock}" if clock else ""),
        f"{profile.runtime} {profile.version}, {profile.dtype}, batch {profile.batch}, {profile.threads} threads, "
        f"tensors {'in blocks of ' + str(formats.block) if formats.block else 'plain'}",
        *(
            f"measured {s.date}: yardstick {s.yardstick_ms:.4f} ms, call {s.overhead_ms:.4f} ms"
            for s in profile.sessions
        ),
    ]
    for c in profile.corrections:
        lines.append(
            f"checked on {c.task}: median error {c.median_relative_error:.1%}, 95 % below {c.p95_relative_error:.1%}, "
            f"rank correlation {c.spearman:.3f} ({c.networks} networks, held out)"
        )
    lines += disturbances(profile)
    return "\n".join(lines)


def disturbances(profile: Profile) -> list[str]:
    """How disturbed the sittings and checks of a profile were, where that is known."""
    warning = "; do not trust it: measure again when the machine is quiet"
    return [
        f"{when}: {found.in_words(what)}{'' if found.trusted else warning}"
        for when, found, what in profile.disturbances()
    ]


def kernels_table(profile: Profile) -> Table:
    """One row per kernel: widths, times, repeats and scatter of an entry (medians), error between the widths."""
    columns = ("kernel", "in", "out", "entries", "us", "repeats", "scatter", "between")
    table = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    entries = {times.key(): times.entries for times in profile.kernels}
    for kernel, surface in LatencyTable(profile, "").surfaces.items():
        low, high = (1e3 * float(value) for value in (surface.times.min(), surface.times.max()))
        spans = [
            f"{axis[0]}-{axis[-1]}" if len(axis) > 1 else f"{axis[0]}" for axis in (surface.inputs, surface.outputs)
        ]
        error = f"{surface.interpolation_error:.1%}" if surface.left_out() else "-"
        times = f"{low:.2f}-{high:.2f}" if high > low else f"{low:.2f}"
        repeats = f"{median(entry.n for entry in entries[kernel]):g}"
        scatter = [entry.standard_error_ms / entry.median_ms for entry in entries[kernel] if entry.median_ms]
        table.add_row(
            Text(kernel.label),
            "=" if kernel.square else spans[0],
            spans[1],
            str(surface.times.size),
            times,
            repeats,
            f"{median(scatter):.1%}" if scatter else "-",
            error,
        )
    return table


def picture(profile: Profile) -> str:
    """Milliseconds over width, one panel per kernel, as SVG."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    surfaces = [s for k, s in LatencyTable(profile, "").surfaces.items() if k.op != "sink" and s.times.size > 1]
    columns = 3
    rows = max(1, -(-len(surfaces) // columns))
    figure = Figure(figsize=(5.2 * columns, 3.0 * rows), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, surface in zip(axes, surfaces, strict=False):
        _curves(axis, surface)
    for axis in axes[len(surfaces) :]:
        axis.set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _curves(axis, surface: Surface) -> None:  # type: ignore[no-untyped-def]
    """Microseconds over the longer axis, one line per width of the other."""
    times, along, across = 1e3 * surface.times, surface.outputs, surface.inputs
    names = ("channels", "in")
    if len(surface.inputs) > len(surface.outputs):
        times, along, across, names = times.T, surface.inputs, surface.outputs, ("channels in", "out")
    elif not surface.kernel.square:
        names = ("channels out", "in")
    step = max(1, -(-len(across) // MAX_LINES))
    for width, line in list(zip(across.tolist(), times, strict=True))[::-step]:
        label = None if surface.kernel.square else f"{width} {names[1]}"
        axis.plot(along, line, marker="o", markersize=3, linewidth=1, label=label)
    axis.set_title(surface.kernel.label, fontsize=8)
    axis.set_xlabel(names[0], fontsize=8)
    axis.set_ylabel("us", fontsize=8)
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=7)
    if not surface.kernel.square:
        axis.legend(fontsize=6)
