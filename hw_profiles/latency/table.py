"""The latency of a network from a profile: a `Cost` like any other, and one that knows its error."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from math import hypot

import numpy as np

from hw_profiles.latency.execution import Work, executed
from hw_profiles.latency.kernels import Kernel
from hw_profiles.latency.profile import Correction, Profile
from hw_profiles.latency.runtimes.execution import Execution
from hw_profiles.latency.steps import steps_of
from hw_profiles.latency.surface import FloatArray, MissingProfileEntry, Surface
from hw_profiles.layers import Layout, Widths


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one forward pass, from measured kernels: overhead + sum, corrected where a correction is known.

    Attributes:
        profile: What was measured.
        title: Where it came from, for messages.
        dense: The network that is asked about, which a correction may be known for; None: any.
    """

    profile: Profile
    title: str
    dense: Layout | None = None
    name: str = "latency_ms"
    unit: str = "ms"

    def for_network(self, dense: Layout) -> LatencyTable:
        """The same with the correction that `amc profile check` stored for this network, if it did."""
        return replace(self, dense=dense)

    @cached_property
    def correction(self) -> Correction | None:
        """From the sum to the whole network, if known for the network that is asked about."""
        if self.dense is None:
            return None
        digest = network_digest(self.dense)
        return next((c for c in self.profile.corrections if c.network == digest), None)

    @cached_property
    def intercept_per_operator_ms(self) -> float:
        """Of the correction: a network with fewer of them has as much less of it."""
        if self.dense is None or self.correction is None:
            return 0.0
        return self.correction.intercept_ms / len(steps_of(self.dense, self.execution))

    def many(self, layout: Layout, widths: Widths) -> FloatArray:
        """[K] milliseconds.

        Raises:
            MissingProfileEntry: If a kernel or a width was not measured; names the command that measures it.
        """
        total = np.full(len(widths.outputs), self.overhead_ms)
        for work in executed(layout, widths, self.execution):
            times = self._surface(work).at(work.inputs[work.where], work.outputs[work.where])
            total[work.where] += times
        if self.correction is None:
            return total
        intercept = self.intercept_per_operator_ms * len(steps_of(layout, self.execution))
        return np.maximum(intercept + self.correction.slope * total, 1e-9)

    def layers(self, layout: Layout) -> FloatArray:
        """[N] milliseconds of each operator itself, without conversions of format; uncorrected.

        Fused operators count for the one that they are fused into.
        """
        found = np.zeros(len(layout.layers))
        for work in executed(layout, layout.widths(), self.execution):
            if work.where[0] and work.kernel.op not in ("to_plain", "to_blocked"):
                found[work.layer] += float(self._surface(work).at(work.inputs, work.outputs)[0])
        return found

    def standard_error(self, layout: Layout) -> float:
        """Of the predicted milliseconds: entries and interpolation, and the correction's held-out error.

        Equal kernels share their error; different ones are taken as independent.
        """
        errors: dict[Kernel, float] = {}
        total = self.overhead_ms
        for work in executed(layout, layout.widths(), self.execution):
            if work.where[0]:
                surface = self._surface(work)
                total += float(surface.at(work.inputs, work.outputs)[0])
                own = surface.error_at(int(work.inputs[0]), int(work.outputs[0]))
                errors[work.kernel] = errors.get(work.kernel, 0.0) + own
        entries = float(np.sqrt(np.sum(np.square(list(errors.values())))))
        if self.correction is None:
            return entries
        # The median of |error| of a normal law is 0.6745 standard deviations.
        spread = self.correction.median_relative_error / 0.6745
        return hypot(self.correction.slope * entries, spread * total)

    @cached_property
    def execution(self) -> Execution:
        """How the profile's runtime executes networks."""
        return self.profile.execution()

    @cached_property
    def overhead_ms(self) -> float:
        """Fixed cost of a call."""
        return float(np.median([session.overhead_ms for session in self.profile.sessions]))

    def _surface(self, work: Work) -> Surface:
        surface = self.surfaces.get(work.kernel)
        if surface is None:
            raise MissingProfileEntry(
                f"a profile must hold every kernel of the network, but {self.title!r} has no {work.kernel.label!r}: "
                "add it with `amc profile measure --task TASK --out PROFILE` on the device, or by a bundle, with "
                "--attention and --branches as in the search"
            )
        return surface

    @cached_property
    def surfaces(self) -> dict[Kernel, Surface]:
        """Times by kernel, in milliseconds of a common clock: what the yardstick drifted is taken out."""
        found = {}
        for times in self.profile.kernels:
            rows = []
            for entry in times.entries:
                drift = self.profile.sessions[0].yardstick_ms / entry.yardstick_ms
                error = drift * entry.standard_error_ms
                rows.append((entry.inputs, entry.outputs, drift * entry.median_ms, error))
            key = times.key()
            found[key] = Surface.of(key, rows)
        return found


def network_digest(layout: Layout) -> str:
    """Identifies a dense network by its operators, whatever they are called."""
    data = layout.to_json()
    for row in data["layers"]:
        del row["name"]
    return "sha256:" + hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
