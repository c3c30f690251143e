"""From a policy to its network again, repaired as the search did: what `amc.apply`, `amc apply` and `amc export` do."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from amc.config.own_code import refuse_code
from amc.config.search import load_config
from amc.export.applied import POLICY, read_policy
from amc.problem.given.door import KEYS, taken
from amc.problem.given.objects import NO_OBJECTS, Objects, in_parentheses
from amc.problem.prepare import calibrate
from amc.problem.setup import Progress, Setup, no_progress, set_up
from amc.tasks.task import Task
from envs.importance.importance import Importance, Score
from envs.lookup import passed_in
from envs.network.inference import placed
from envs.repair.repair import Repair
from envs.space.policy import Policy, weights_fingerprint
from hw_profiles.cost import Cost
from hw_profiles.documents import shown
from hw_profiles.latency.profile import Profile
from hw_profiles.latency.table import LatencyTable


class Rebuilt(NamedTuple):
    """A policy's network.

    Attributes:
        setup: The setup that the policy came from, with other task, data or weights if those were given.
        network: The smaller network, repaired.
        same_weights: Whether the policy was made for these weights.
    """

    setup: Setup
    network: nn.Module
    same_weights: bool


def rebuild(
    policy: Policy,
    overrides: Mapping[str, Any],
    progress: Progress = no_progress,
    objects: Objects = NO_OBJECTS,
    *,
    source: str = "the policy",
) -> Rebuilt:
    """Makes the smaller network of a policy: sliced, and repaired as its search would.

    Args:
        policy: With the configuration of its search in its provenance.
        overrides: Task, data or checkpoint, where others than the search's are meant.
        progress: Is told how far it is.
        objects: In place of what the configuration names.
        source: Where the policy is from, for messages.

    Raises:
        ValueError: If the policy does not fit, names code that is not given, or an object is missing.
    """
    stored = _stored_config(policy, source)
    refuse_code(stored, {**overrides, **({} if objects.task is None else {"task": objects.task})}, source)
    if overrides.get("task", stored.get("task")) != stored.get("task") or objects.task is not None:
        stored.pop("data", None)
        stored.pop("checkpoint", None)
    if passed_in(stored.get("agent")):
        del stored["agent"]  # nothing is searched
    named = {KEYS[kind]: in_parentheses(thing) for kind, thing in objects.things().items()}
    setup = set_up(load_config(None, {**stored, **overrides, **named}), progress, objects)
    policy.check_structure(setup.task.network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = placed(calibrate(setup, progress).compress(policy).network, "cpu")
    return Rebuilt(setup, small, policy.weights == weights_fingerprint(setup.task.network))


def made_with(policy: Policy, overrides: Mapping[str, Any], source: str) -> bool:
    """Whether no other task, data or weights are asked for than a policy was made with.

    Raises:
        ValueError: If the policy names code that is not given: the network's module is imported by it.
    """
    stored = _stored_config(policy, source)
    refuse_code(stored, overrides, source)
    return all(str(value) == str(stored.get(key)) for key, value in overrides.items())


def _stored_config(policy: Policy, source: str) -> dict[str, Any]:
    """The configuration that a policy was made with, as far as compression needs it: no reward is computed."""
    stored = policy.provenance.get("config", {})
    if not isinstance(stored, dict):
        raise ValueError(
            f"`provenance.config` of a policy must be a table, but got {shown(stored)} in {source!r}: "
            "take the file as it was written"
        )
    return {key: value for key, value in stored.items() if key != "reward"}


def apply(
    policy: Policy | Path | str,
    task: Task | str | None = None,
    *,
    importance: Importance | Score | None = None,
    repair: type[Repair] | None = None,
    costs: Sequence[Cost] = (),
    profile: Profile | LatencyTable | None = None,
) -> nn.Module:
    """The smaller network of a policy: sliced, and repaired as its search did.

    Args:
        policy: A policy, its file, or a run folder.
        task: What it is applied to; None: what was searched, where that has a name.
        importance: The one that was passed in to the search, if one was; repair, costs and profile likewise.
        repair: As for `search`.
        costs: As for `search`.
        profile: As for `search`.

    Raises:
        ValueError: If the policy does not fit the network, or an object is missing.
    """
    if not isinstance(policy, Policy):
        path = Path(policy)
        policy = read_policy(path / POLICY if path.is_dir() else path)
    own = None if isinstance(task, str) else task
    objects = taken(task=own, importance=importance, repair=repair, costs=costs, profile=profile)
    return rebuild(policy, {"task": task} if isinstance(task, str) else {}, objects=objects).network
