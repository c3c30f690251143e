"""How a policy stands in `policy.json`: its fields, the laws among them, and the digest that shows every change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from envs.network.attention import Mask
from envs.network.tracing import numbers
from envs.units.attention.explicit import Form
from envs.units.branches.branch import ACTIVATIONS, Block, Branch, Skip
from envs.units.units import Attribute, Kind, Member, Positions, Role, Unit
from hw_profiles.documents import Strict, validated

SCHEMA_VERSION: Literal[1] = 1

MAX_POSITIONS = 2**22
"""Positions that the members of a policy may place together; ResNet-152's place 0.2 million. Runs of consecutive rows
take no room in the file, so its length does not bound them."""

MAX_AXES, MAX_OUTPUTS = 8, 16
"""Axes of a tensor inside of a network, and tensors in a tuple that one of its modules gives."""

Place = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]


class Run(Strict):
    """Rows of consecutive numbers."""

    first: Place
    size: Size
    rows: Size

    @property
    def count(self) -> int:
        """How many rows."""
        return self.rows

    @property
    def places(self) -> int:
        """Numbers in all rows."""
        return self.rows * self.size

    def expanded(self) -> Positions:
        """The rows themselves."""
        start, size = self.first, self.size
        return tuple(tuple(range(start + k * size, start + (k + 1) * size)) for k in range(self.rows))


Rows = Annotated[list[Annotated[list[Place], Field(min_length=1)]], Field(min_length=1)]


class MemberEntry(Strict):
    """One module's share in a unit."""

    module: str
    role: Role
    positions: Run | Rows


class AttributeEntry(Strict):
    """A number or table of a module, as in `envs.units.units.Attribute`."""

    name: str
    axis: Place | None = None

    def attribute(self) -> Attribute:
        """The attribute."""
        return Attribute(name=self.name, axis=self.axis)


class UnitEntry(Strict):
    """What stays of one unit."""

    name: str
    channels: Size
    kind: Kind = "channels"
    kept: Size
    indices: list[int]
    granule: Run | Rows
    shares: Run | Rows | None = None
    attributes: list[AttributeEntry] = Field(default_factory=list)
    principal: bool = False
    members: list[MemberEntry]

    @model_validator(mode="after")
    def _consistent(self) -> UnitEntry:
        if self.kept != len(self.indices):
            raise ValueError(
                f"`kept` must equal the number of `indices`, but got {self.kept} and {len(self.indices)} "
                f"for unit {self.name!r}"
            )
        for member in self.members:
            if _count(member.positions) != self.channels:
                raise ValueError(f"every member of unit {self.name!r} must place all its {self.channels} channels")
        for sets in (self.granule, self.shares):
            if sets is not None and _places(sets) != self.channels:
                raise ValueError(_not_once(self.name, self.channels))
        return self

    @property
    def places(self) -> int:
        """Positions that it places."""
        return self.channels + sum(_places(member.positions) for member in self.members)

    def unit(self) -> Unit:
        """The unit, with every position.

        Raises:
            ValueError: If the granules, or the shares, do not hold each channel once.
        """
        granules = _expanded(self.granule)
        shares = _expanded(self.shares) if self.shares is not None else ()
        for sets in (granules, shares) if shares else (granules,):
            if sorted(channel for some in sets for channel in some) != list(range(self.channels)):
                raise ValueError(_not_once(self.name, self.channels))
        members = (
            Member(module=member.module, role=member.role, positions=_expanded(member.positions))
            for member in self.members
        )
        return Unit(
            name=self.name,
            channels=self.channels,
            granules=granules,
            members=tuple(members),
            kind=self.kind,
            shares=shares,
            attributes=tuple(entry.attribute() for entry in self.attributes),
            principal=self.principal,
        )


class LayerEntry(Strict):
    """The pattern of one layer."""

    name: str
    pattern: str


class SizeEntry(Strict):
    """A number in a forward that follows the heads, as in `envs.network.tracing.numbers.Size`."""

    place: Place
    entry: Place
    axis: Annotated[int, Field(ge=-1, le=MAX_AXES)]
    width: Size


class FormEntry(Strict):
    """How one attention was made explicit, as in `envs.units.attention.explicit.Form`."""

    module: str
    q: str
    k: str
    v: str
    out: str
    head_width: Size | None
    heads: Size = 1
    groups: Size = 1
    scale: float
    causal: bool
    interleaved: bool
    dropout: float
    out_dropout: float
    mask: Mask = ""
    sizes: Annotated[list[SizeEntry], Field(default_factory=list)]

    def form(self) -> Form:
        """The form."""
        sizes = tuple(numbers.Size(**entry.model_dump()) for entry in self.sizes)
        return Form(**self.model_dump(exclude={"sizes"}), sizes=sizes)


class SkipEntry(Strict):
    """A module inside of a removed branch, as in `envs.units.branches.branch.Skip`."""

    module: str
    rank: Annotated[int, Field(ge=1, le=MAX_AXES)]
    outputs: Annotated[int, Field(ge=0, le=MAX_OUTPUTS)]


class BlockEntry(Strict):
    """How a whole block is replaced, as in `envs.units.branches.branch.Block`."""

    shortcut: str
    tail: str
    function: str

    @model_validator(mode="after")
    def _known(self) -> BlockEntry:
        if self.function and self.function not in ACTIVATIONS:
            raise ValueError(f"`function` must be one of {', '.join(ACTIVATIONS)}, but got {self.function!r}")
        return self


class BranchEntry(Strict):
    """How a residual branch is removed, as in `envs.units.branches.branch.Branch`."""

    module: str
    layer: str
    axis: Place
    rank: Annotated[int, Field(ge=1, le=MAX_AXES)]
    outputs: Annotated[int, Field(ge=0, le=MAX_OUTPUTS)]
    skipped: list[SkipEntry]
    block: BlockEntry | None

    @model_validator(mode="after")
    def _inside(self) -> BranchEntry:
        if self.axis >= self.rank:
            raise ValueError(f"`axis < rank` must hold, but got {self.axis} and {self.rank} for {self.module!r}")
        return self

    def branch(self) -> Branch:
        """The branch."""
        return Branch(
            module=self.module,
            layer=self.layer,
            axis=self.axis,
            rank=self.rank,
            outputs=self.outputs,
            skipped=tuple(Skip(**entry.model_dump()) for entry in self.skipped),
            block=None if self.block is None else Block(**self.block.model_dump()),
        )


class NetworkEntry(Strict):
    """Fingerprints of the dense network."""

    structure: str
    weights: str


class PolicyFile(Strict):
    """All of `policy.json`."""

    schema_version: Literal[1]
    network: NetworkEntry
    units: list[UnitEntry]
    layers: list[LayerEntry]
    attention: list[FormEntry] = Field(default_factory=list)
    branches: list[BranchEntry] = Field(default_factory=list)
    provenance: dict[str, Any]
    digest: str

    @model_validator(mode="after")
    def _distinct_and_bounded(self) -> PolicyFile:
        named = {
            "unit": [unit.name for unit in self.units],
            "layer": [row.name for row in self.layers],
            "branch": [branch.module for branch in self.branches],
        }
        for what, names in named.items():
            if len(set(names)) != len(names):
                raise ValueError(f"every {what} must stand once in a policy, but one stands twice")
        if (places := sum(unit.places for unit in self.units)) > MAX_POSITIONS:
            raise ValueError(f"a policy may place at most {MAX_POSITIONS:,} positions, but places {places:,}")
        return self


def read_policy_file(data: Any) -> PolicyFile:
    """Checks the content of a `policy.json`.

    Raises:
        ValueError: If the schema is another one, a field is missing, unknown or of the wrong kind, or the digest is
            not that of the content; one line.
    """
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, bool) or not isinstance(version, int):
        raise ValueError("a policy must be a JSON object with an integer `schema_version`, but this is none")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"a policy's `schema_version` must be {SCHEMA_VERSION}, but got {version}: "
            "use the version of amc that wrote it"
        )
    if "digest" not in data:
        raise ValueError("a policy must carry the digest of its content, but this one has none: search again")
    file = validated(PolicyFile, data, "policy.json", "a policy")
    if file.digest != digest_of(data):
        raise ValueError(
            f"a policy must be as it was written, but its digest is {file.digest[7:19]!r} and that of its content "
            f"{digest_of(data)[7:19]!r}: take the file as it was written, or search again"
        )
    return file


def digest_of(data: Mapping[str, Any]) -> str:
    """SHA-256 over everything in a policy's file but the digest itself, however it is laid out."""
    content = {key: value for key, value in data.items() if key != "digest"}
    return "sha256:" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def unit_entry(unit: Unit, indices: Sequence[int]) -> dict[str, Any]:
    """A unit and what stays of it, as it stands in the file."""
    return {
        "name": unit.name,
        "channels": unit.channels,
        **({} if unit.kind == "channels" else {"kind": unit.kind}),
        "kept": len(indices),
        "indices": list(indices),
        "granule": _runs(unit.granules),
        **({"shares": _runs(unit.shares)} if unit.shares else {}),
        **({"attributes": [asdict(attribute) for attribute in unit.attributes]} if unit.attributes else {}),
        **({"principal": True} if unit.principal else {}),
        "members": [
            {"module": member.module, "role": member.role, "positions": _runs(member.positions)}
            for member in unit.members
        ],
    }


def _not_once(unit: str, channels: int) -> str:
    return f"the granules and shares of unit {unit!r} must hold each of its {channels} channels once"


def _runs(rows: Positions) -> Any:
    """Rows of consecutive numbers as {first, size, rows}; anything else as the rows themselves."""
    first, size = rows[0][0], len(rows[0])
    regular = tuple(tuple(range(first + k * size, first + (k + 1) * size)) for k in range(len(rows)))
    if rows == regular:
        return {"first": first, "size": size, "rows": len(rows)}
    return [list(row) for row in rows]


def _count(positions: Run | list[list[int]]) -> int:
    return positions.count if isinstance(positions, Run) else len(positions)


def _places(positions: Run | list[list[int]]) -> int:
    return positions.places if isinstance(positions, Run) else sum(map(len, positions))


def _expanded(positions: Run | list[list[int]]) -> Positions:
    if isinstance(positions, Run):
        return positions.expanded()
    return tuple(tuple(row) for row in positions)
