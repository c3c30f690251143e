"""An inspection as tables that read well at 80 columns: long names are folded, never cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from amc.problem.inspection import CostSpan, InspectedBranch, InspectedUnit, InspectedWeight, Inspection, Stay
from amc.reporting.notebook import as_html


class Inspected(Inspection):
    """An inspection that shows itself, in a notebook as a table."""

    @classmethod
    def of(cls, found: Inspection) -> Inspected:
        """The same, to be shown."""
        return cls(**{field.name: getattr(found, field.name) for field in fields(found)})

    def show(self, console: Console | None = None) -> None:
        """Prints the tables of `amc inspect`."""
        (console or Console()).print(inspection_tables(self), highlight=False)

    def _repr_html_(self) -> str:
        return as_html(self.show)


def inspection_tables(found: Inspection) -> RenderableType:
    """Costs, units with their members, what stays by reason, patterns where chosen, and what limits the counts."""
    parts: list[RenderableType] = [_units(found.task, found.units)]
    parts += [_stays(found.stays)] if found.stays else []
    parts += [_patterns(found.patterns)] if found.patterns else []
    parts += [_branches(found.branches)] if found.branches else []
    parts.append(_costs(found.costs))
    if found.uncounted:
        parts.append(Text(f"no cost counts these operators: {', '.join(found.uncounted)}"))
    if found.untraced:
        parts.append(
            Text(
                f"this network could not be traced ({found.untraced}): layer-wise repair is used instead of "
                "sequential, and memory= budgets are not available"
            )
        )
    return Group(*_spaced(parts))


def _spaced(parts: Iterable[RenderableType]) -> list[RenderableType]:
    return [spaced for part in parts for spaced in (part, Text())][:-1]


def _table(*numbers: str, last: str) -> Table:
    """A table of narrow numbers, and names or words in what is left of the line."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(last, overflow="fold")
    return table


def _titled(title: str, *parts: RenderableType) -> Group:
    return Group(Text(title, style="bold"), *parts)


def _costs(costs: Iterable[CostSpan]) -> Group:
    table = _table("dense", "lowest", "share", last="cost")
    for cost in costs:
        said = cost.name if cost.name == cost.unit.lower() else f"{cost.name} ({cost.unit})"
        table.add_row(f"{cost.dense:,.0f}", f"{cost.lowest:,.0f}", f"{cost.share:.1%}", said)
    return _titled("costs, and the lowest that the rules allow", table)


def _units(task: str, units: tuple[InspectedUnit, ...]) -> Group:
    table = _table("channels", "step", "least", "MACs", last="members (> writes, = carries, < reads)")
    for unit in units:
        members = Text(" ").join(
            [
                Text(f">{unit.writes[0]}", style="bold"),
                *(
                    Text(f"{mark}{name}")
                    for mark, names in ((">", unit.writes[1:]), ("=", unit.carries), ("<", unit.reads))
                    for name in names
                ),
            ]
        )
        counted = str(unit.channels) if unit.kind == "channels" else f"{unit.channels} {unit.kind}"
        table.add_row(counted, str(unit.step), str(unit.lightest), f"{unit.macs:.1%}", members)
    return _titled(f"{task}: {len(units)} units can be pruned", table)


def _stays(stays: Iterable[Stay]) -> Group:
    """Each reason with the layers that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for stay in stays:
        by_reason.setdefault(stay.reason, []).append(stay.layer)
    lines: list[RenderableType] = []
    for reason, layers in by_reason.items():
        lines += [Text(f"{reason}:"), Padding(Text(" ".join(layers), overflow="fold"), (0, 0, 0, 4))]
    return _titled("layers whose output channels stay", *lines)


def _branches(branches: tuple[InspectedBranch, ...]) -> Group:
    table = _table("MACs", last="branch: layers that go with it, or why it stays")
    for branch in branches:
        said = branch.reason or " ".join(branch.layers)
        row = Text.assemble((branch.name, "bold"), f": {said}")
        table.add_row("" if branch.reason else f"{branch.macs:.1%}", row)
    going = sum(not branch.reason for branch in branches)
    return _titled(f"{going} residual branches can be removed", table)


def _patterns(weights: tuple[InspectedWeight, ...]) -> Group:
    table = _table("inputs*", "outputs", "MACs", last="layer: choices, or why dense (* per group)")
    for weight in weights:
        said = ", ".join(weight.choices) or f"dense: {weight.reason}"
        row = Text.assemble((weight.layer, "bold"), f": {said}")
        table.add_row(str(weight.inputs), str(weight.outputs), f"{weight.macs:.1%}", row)
    choosing = sum(bool(weight.choices) for weight in weights)
    return _titled(f"{choosing} layers may take a pattern, at full width", table)
