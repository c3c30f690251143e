"""The report's pictures: numbers in, inline SVG out. No file, no screen, no global state of matplotlib."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.measure import Measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"dense": "#dfe4ea", "uniform": "#d9822b", "start": "#6b9e4f", "found": "#1f7a8c"}
DOTS = ("#d9822b", "#9aa7b5", "#5b8fd6", "#a06cb5", "#6b9e4f")
LINES = ("#1f7a8c", "#d9822b", "#5b8fd6", "#a06cb5", "#6b9e4f", "#c0504d", "#9aa7b5")
INK, FAINT = "#39424e", "#e8ebef"
WIDTH_INCHES = 11.0
AXIS_POINTS = 740
"""Width of the axes of a picture, about."""
MAX_LABELS, MAX_ROWS = 110, 60
LEGEND: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "frameon": False, "handlelength": 1.2}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched and takes the page's font
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 8.5,
    "axes.edgecolor": "#b6bec8",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#66717e",
    "ytick.color": "#66717e",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
}


def bullets(panels: Mapping[str, Mapping[str, Sequence[float]]], names: Sequence[str], *, salt: str) -> str:
    """One column per name: dense as a pale bar, found as a narrow bar in it, uniform and start as marks across.

    Args:
        panels: Axis label -> {"dense", "uniform", "found", perhaps "start"} -> one value per name; drawn
            one below the other.
        names: What the columns stand for, in order.
        salt: Makes the ids of this picture differ from those of the page's other pictures.

    Returns:
        An `<svg>` element.
    """
    longest = max(len(name) for name in names) if names else 0
    heights = 2.1 * len(panels) + min(0.062 * longest, 1.6)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (label, series) in zip(axes, panels.items(), strict=True):
            _columns(axis, series)
            axis.set_ylabel(label)
        slot = AXIS_POINTS / max(len(names), 1)
        every = -(-len(names) // MAX_LABELS)
        size = float(np.clip(0.75 * slot, 5.2, 8.5))
        flat = 5.5 * longest < slot
        axes[-1].set_xticks(range(0, len(names), every), names[::every], rotation=0 if flat else 90, fontsize=size)
        for axis in axes:
            axis.tick_params(axis="x", length=0)
            axis.set_xlim(-0.8, len(names) - 0.2)
        handles, labels = axes[0].get_legend_handles_labels()
        ordered = [handles[labels.index(name)] for name in COLORS if name in labels]
        axes[0].legend(handles=ordered, ncols=len(ordered), **LEGEND)

    return _svg(draw, heights, salt)


def progress(rewards: Sequence[float], labels: Sequence[str], *, salt: str) -> str:
    """Reward of every episode, coloured by the searcher that proposed it, and the best so far.

    A few very poor episodes would flatten everything else: they become triangles at the lower edge.

    Args:
        rewards: One per episode.
        labels: The searcher or start that proposed it, one per episode.
        salt: As for `bullets`.

    Returns:
        An `<svg>` element.
    """
    values = np.asarray(rewards, dtype=float)
    best = np.maximum.accumulate(values)
    low, high = float(np.quantile(values, 0.15)), float(values.max())
    margin = max(0.15 * (high - low), 0.003 * abs(high), 1e-9)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        episodes = np.arange(1, len(values) + 1)
        below = values < low - margin
        for number, label in enumerate(dict.fromkeys(labels)):
            color = DOTS[number % len(DOTS)]
            mine = np.asarray([other == label for other in labels])
            axis.scatter(episodes[mine & ~below], values[mine & ~below], s=16, color=color, label=label, zorder=2)
            out = mine & below
            axis.scatter(episodes[out], np.full(out.sum(), low - 0.9 * margin), s=16, marker="v", color=color)
        if below.any():
            axis.scatter([], [], s=16, marker="v", color="#9aa7b5", label="further below")
        axis.step(episodes, best, where="post", color=COLORS["found"], linewidth=1.8, label="best so far", zorder=3)
        axis.set_ylim(low - 1.3 * margin, high + margin)
        axis.set_xlim(0.5, len(values) + 0.5)
        axis.locator_params(axis="x", integer=True)
        axis.set_xlabel("episode")
        axis.set_ylabel("reward")
        axis.legend(ncols=7, **LEGEND)

    return _svg(draw, 2.7, salt)


def choices(ratios: Sequence[Sequence[float]], names: Sequence[str], *, salt: str) -> str:
    """Preserve ratio of every unit (rows, the first at the bottom) in every episode (columns).

    Args:
        ratios: One row of preserve ratios per episode.
        names: The units.
        salt: As for `bullets`.

    Returns:
        An `<svg>` element.
    """
    values = np.asarray(ratios, dtype=float).T

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        extent = (0.5, values.shape[1] + 0.5, -0.5, len(names) - 0.5)
        image = axis.imshow(
            values, aspect="auto", origin="lower", cmap="YlGnBu", vmin=0, vmax=1, extent=extent, interpolation="none"
        )
        every = -(-len(names) // MAX_ROWS)
        axis.set_yticks(range(0, len(names), every), names[::every], fontsize=6)
        axis.grid(visible=False)
        axis.locator_params(axis="x", integer=True)
        axis.set_xlabel("episode")
        figure.colorbar(image, ax=axis, pad=0.01, label="preserve ratio")

    return _svg(draw, 1.2 + 0.11 * min(len(names), MAX_ROWS), salt)


def efforts(curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]], measure: Measure, *, salt: str) -> str:
    """Confirmed metric of the best so far against effort: each run thin, each agent's mean at the ends bold.

    Args:
        curves: Agent -> one curve per seed, each (image-forwards, metric) in order.
        measure: Name and unit of the metric.
        salt: As for `bullets`.

    Returns:
        An `<svg>` element.
    """

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for number, (agent, runs) in enumerate(curves.items()):
            color = LINES[number % len(LINES)]
            for run in runs:
                x, y = [paid for paid, _ in run], [measure.scale * value for _, value in run]
                axis.step(x, y, where="post", color=color, linewidth=0.9, alpha=0.5)
            ends = np.asarray([run[-1] for run in runs])
            axis.scatter(
                [ends[:, 0].mean()], [measure.scale * ends[:, 1].mean()], color=color, s=42, label=agent, zorder=3
            )
        axis.set_xlabel("forward passes paid")
        axis.set_ylabel(f"confirmed validation {measure.name}{measure.heading}")
        axis.legend(ncols=7, **LEGEND)

    return _svg(draw, 3.6, salt)


def fronts(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    dense: Mapping[str, tuple[float, float]],
    measure: Measure,
    *,
    salt: str,
) -> str:
    """Metric against cost, one panel per cost, one line per agent with its intervals.

    Args:
        curves: Cost -> agent -> points (cost, metric, half width of its interval).
        dense: Cost -> (cost, metric) of the dense network.
        measure: Name and unit of the metric.
        salt: As for `bullets`.

    Returns:
        An `<svg>` element.
    """

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for axis, (cost, agents) in zip(panels, curves.items(), strict=True):
            for number, (agent, points) in enumerate(agents.items()):
                x, y, half = np.asarray(sorted(points)).T
                axis.errorbar(
                    x / dense[cost][0],
                    measure.scale * y,
                    yerr=measure.scale * half,
                    color=LINES[number % len(LINES)],
                    label=agent,
                    marker="o",
                    markersize=4,
                    linewidth=1.4,
                    capsize=3,
                )
            axis.axhline(measure.scale * dense[cost][1], color=INK, linewidth=0.8, linestyle=":", label="dense")
            axis.set_xlabel(f"{cost}, share of dense")
        panels[0].set_ylabel(f"test {measure.name}{measure.heading}")
        panels[0].legend(ncols=1, **LEGEND)

    return _svg(draw, 3.6, salt)


def _columns(axis: Axes, series: Mapping[str, Sequence[float]]) -> None:
    places = np.arange(len(series["dense"]))
    axis.bar(places, series["dense"], width=0.84, color=COLORS["dense"], label="dense")
    axis.bar(places, series["found"], width=0.5, color=COLORS["found"], label="found")
    left, right = places - 0.42, places + 0.42
    for name in ("uniform", "start"):
        if name in series:
            axis.hlines(series[name], left, right, color=COLORS[name], linewidth=1.8, label=name, zorder=3)
    axis.set_ylim(0, max([value for values in series.values() for value in values], default=1.0) * 1.04)
    axis.locator_params(axis="y", nbins=5)


def _svg(draw: Callable[[Figure], None], height: float, salt: str) -> str:
    """Draws on a fresh figure; the `<svg>` element without prolog, metadata and size (the page sets it)."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.StringIO()
    style: Any = {**STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that matplotlib's font lacks; the browser's has them
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    # Ids that nothing refers to would stand twice on a page with several pictures.
    return re.sub(r' id="[A-Za-z][\w.]*_\d+"', "", text[text.index("<svg") :])
