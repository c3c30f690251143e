"""The setup: task, units, sites, constraint and draws of a search, checked before any long work."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from amc.config.search import SearchConfig
from amc.problem.bounds import Ends, bind, bind_ends, choose_sites, measured_only, recount, skipped_patterns
from amc.problem.given.objects import NO_OBJECTS, Objects
from amc.profiling.store import load_table
from amc.scoring.draws import Draws, Role
from amc.scoring.scorer import Scorer, scoring_chunk
from amc.tasks.checks import check_labelled, check_task
from amc.tasks.metrics import accuracy
from amc.tasks.plugins import describe, find_function
from amc.tasks.splits import Split, verification_samples
from amc.tasks.task import Task, load_task
from envs.network.inputs import call
from envs.parallel import return_memory, single_threaded
from envs.reward import REWARDS, Reward, accuracy_latency
from envs.space.assignment import Assignment
from envs.space.constraint import Constraint, Costing, InfeasibleBudget
from envs.space.sites import Site
from envs.units.anatomy import Anatomy, dissect
from envs.units.units import Fixed
from hw_profiles.cost import Cost, Macs, Params
from hw_profiles.latency.table import LatencyTable
from hw_profiles.layers import IntArray
from hw_profiles.shape_rules import ShapeRules, load_rules

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how many done, how many in all)."""

KEPT_BYTES, MIN_JUDGED = 512e6, 16
"""Outputs of the dense network that are kept at most, and images of which they are kept for judging the starts even so.
"""

PROBED = 4
"""Random outputs by which a prediction is known again."""


def no_progress(what: str, done: int, total: int) -> None:
    """Shows nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """One task under one constraint.

    Attributes:
        config: The configuration.
        task: The task.
        anatomy: Graph, units and layouts.
        sites: The decisions, one per step.
        fixed: What stays, with the reason.
        shapes: Which shapes a device takes in which pattern, None without such rules.
        tables: Latencies by the names of profiles: that of the configuration, and those of further devices.
        constraint: The budgets over the sites.
        ends: The lowest and the highest budgets of a range, whose middle is the constraint; None without one.
        devices: The same by the profiles of several devices, in their order; empty for one device.
        draws: Which images are used for what.
        scorer: Scores networks in full precision.
        reward: Turns an evaluation into a number.
        output_shape: [1, ...] of the outputs for the example input.
        objects: What was passed in.
        dense_reward: The reward of the dense network on the first validation images, by which a resumed search knows
            data, metric and reward again.
    """

    config: SearchConfig
    task: Task
    anatomy: Anatomy
    sites: tuple[Site, ...]
    fixed: tuple[Fixed, ...]
    shapes: ShapeRules | None
    tables: Mapping[str, LatencyTable]
    constraint: Constraint
    ends: Ends | None
    devices: tuple[Ends, ...]
    draws: Draws
    scorer: Scorer
    reward: Reward
    output_shape: tuple[int, ...]
    objects: Objects
    dense_reward: float

    @property
    def outputs_kept(self) -> int:
        """Images of which a network's outputs can be kept."""
        return images_kept(self.output_shape)

    @property
    def keeps_outputs(self) -> bool:
        """Whether the dense network's outputs on all validation images can be kept."""
        return self.outputs_kept >= len(self.task.validation)

    @property
    def table(self) -> LatencyTable | None:
        """Latencies by the profile of the configuration, None without one."""
        return self.tables.get(str(self.config.profile))

    def assignment(self, values: Sequence[int] | IntArray) -> Assignment:
        """The assignment of [S] values."""
        return Assignment.of(self.sites, values)

    def dense(self) -> Assignment:
        """The dense network's assignment."""
        return self.assignment(self.constraint.costing.dense())

    def uniform(self) -> Assignment:
        """The largest common preserve ratio within the budgets."""
        return self.assignment(self.constraint.uniform())

    def judged(self) -> dict[str, str]:
        """What the metric's prediction makes of random outputs, by which it is known again; nothing without one."""
        metric = self.task.metric
        if metric.prediction is None:
            return {}
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn((PROBED, *self.output_shape[1:]), generator=generator, device="cpu")
        return {"judged": " ".join(f"{float(row.sum()):.4g}" for row in metric.judged(drawn))}

    def audition(self) -> tuple[Role, list[int]]:
        """The images on which starts are judged, and their split: as many as outputs can be kept of."""
        role, indices = self.draws.audition()
        return role, indices[: max(MIN_JUDGED, self.outputs_kept)]

    def reward_split(self) -> Split:
        """The split that the reward's images are from."""
        return self.task.validation if self.config.reward_split == "validation" else self.task.calibration

    def own_modules(self) -> list[str]:
        """Modules of the user's that the configuration names, or that define what was passed in."""
        named = [name.partition(":")[0] for name in (self.config.task, self.config.reward) if ":" in name]
        return named + self.objects.modules()

    def real_costs(self, network: nn.Module, patterns: Mapping[str, str] | None = None) -> dict[str, float]:
        """MACs, parameters and every budget's cost, recounted on a real network (traced anew).

        Args:
            network: Whose weights keep to their patterns: they are checked before they are counted.
            patterns: Layer name -> pattern.
        """
        macs = Macs(skips=skipped_patterns(self.shapes, self.table))
        wanted: list[Cost] = [macs, Params(), *(budget.cost for budget in self.constraint.budgets)]
        wanted += [self.table] if self.table is not None else []
        return recount(network, self.task.example_input, wanted, patterns or {}, self.anatomy.graph)


def set_up(config: SearchConfig, progress: Progress = no_progress, objects: Objects = NO_OBJECTS) -> Setup:
    """Loads and checks task and budgets; nothing is calibrated yet.

    Args:
        config: The configuration.
        progress: Is told how far long work is.
        objects: What the configuration names in parentheses.

    Raises:
        ValueError: If task, rules, budgets or objects are not usable, or an object is missing.
    """
    objects.check(config)
    single_threaded()
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a CUDA device, but torch sees none here: use --device cpu")
    task = objects.task or load_task(config.task, data=config.data, checkpoint=config.checkpoint)
    check_task(task)
    if config.reward_split == "calibration":
        check_labelled(task, "reward_split=calibration")
    if "loss" in config.knapsack.damages:
        check_labelled(task, "the damage 'loss'")
    _check_savings(config, task)
    draws = Draws(config, len(task.calibration), len(task.validation))
    tables = _tables(config, objects)
    progress("finding units", 0, 1)
    samples = verification_samples(task.calibration)
    anatomy = dissect(task.network, task.example_input, samples, config.attention, branches=config.branches)
    task = task.of_network(anatomy.network)
    return_memory()
    progress("finding units", 1, 1)
    shapes = load_rules(config.shapes) if config.shapes is not None else None
    sites, skipped = choose_sites(config, task.network, anatomy, shapes)
    for each in tables.values():
        sites, unmeasured = measured_only(sites, anatomy, each)
        skipped = (*skipped, *unmeasured)
        _say_unmeasured(unmeasured)
    _check_decidable(sites, (*anatomy.fixed, *skipped))
    tables = {name: each.for_network(anatomy.family.dense) for name, each in tables.items()}
    if any(each.correction is None for each in tables.values()):
        logger.warning("latencies of %s are uncorrected: `amc profile check` measures how true they are", task.name)
    table = tables.get(str(config.profile))
    costing = Costing(anatomy.family, sites, shapes)
    constraint = bind(config, costing, table, objects)
    chunk = scoring_chunk(anatomy.family.dense, config.device)
    scorer = Scorer(graph=anatomy.graph, metric=task.metric, counts=task.counts, chunk=chunk, device=config.device)
    output_shape = shape_of_outputs(task)
    kept = images_kept(output_shape) >= len(task.validation)
    reward = objects.reward or _reward(config, task, constraint, kept)
    dense_reward = _dense_reward(config.reward, reward, task, scorer, constraint, kept)
    return Setup(
        config=config,
        task=task,
        anatomy=anatomy,
        sites=sites,
        fixed=(*anatomy.fixed, *skipped),
        shapes=shapes,
        tables=tables,
        constraint=constraint,
        ends=bind_ends(config, costing, table, objects),
        devices=_devices(config, costing, tables, objects),
        draws=draws,
        scorer=scorer,
        reward=reward,
        output_shape=output_shape,
        objects=objects,
        dense_reward=dense_reward,
    )


def _tables(config: SearchConfig, objects: Objects) -> dict[str, LatencyTable]:
    """Profile name -> its table; that of the profile itself, then those of further devices."""
    named = [] if config.profile is None else [config.profile]
    given = {} if objects.profile is None else {str(config.profile): objects.profile}
    wanted = [name for name in dict.fromkeys((*named, *config.profiles)) if name not in given]
    return given | {name: load_table(name, logger.warning) for name in wanted}


def _devices(
    config: SearchConfig, costing: Costing, tables: Mapping[str, LatencyTable], objects: Objects
) -> tuple[Ends, ...]:
    """The ends of the range by each profile of several."""
    found = (bind_ends(config, costing, tables[name], objects) for name in config.profiles)
    return tuple(one for one in found if one is not None)


def _say_unmeasured(branches: Sequence[Fixed]) -> None:
    """Warns of branches that stay because of the profile."""
    if branches:
        logger.warning("%d residual branches stay: %s", len(branches), branches[0].reason)


def _check_decidable(sites: Sequence[Site], fixed: Sequence[Fixed]) -> None:
    """Refuses a network of which nothing can be decided, with the reasons that `amc inspect` shows.

    Raises:
        InfeasibleBudget: If there is no site.
    """
    if sites:
        return
    by_reason: dict[str, list[str]] = {}
    for entry in fixed:
        by_reason.setdefault(entry.reason, []).append(entry.name)
    said = "; ".join(f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in by_reason.items())
    raise InfeasibleBudget(
        "a search needs at least one unit, but nothing in this network can be pruned "
        f"({said or 'it has no layer whose channels could go'}): `amc inspect` lists every layer"
    )


def _check_savings(config: SearchConfig, task: Task) -> None:
    """Refuses to save images where the metric of parts of them does not tell that of all."""
    if config.savings.images is not None and not task.metric.is_mean:
        raise ValueError(
            f"savings.images needs a metric per sample, whose mean over parts of the samples tells that over all, but "
            f"{task.metric.name!r} is per {task.metric.per}: leave savings.images out"
        )


def shape_of_outputs(task: Task) -> tuple[int, ...]:
    """[1, ...] of the outputs for the example input."""
    with torch.no_grad():
        one: Tensor = call(task.network, task.example_input)
    return tuple(one.shape)


def images_kept(output_shape: Sequence[int]) -> int:
    """Images whose outputs of that shape can be kept."""
    return int(KEPT_BYTES / (4 * math.prod(output_shape)))


def _reward(config: SearchConfig, task: Task, constraint: Constraint, kept: bool) -> Reward:
    """The reward by name, or the user's own."""
    name = config.reward
    if name == "auto":
        name = "output_error" if task.metric is accuracy and kept else "accuracy"
    if name.startswith("("):
        raise ValueError(
            f"the reward {name} was passed in as an object, which no file can hold: run the script that made it again, "
            "or name another reward"
        )
    if name == "accuracy_latency":
        return partial(accuracy_latency, target_ms=constraint.limits()["latency_ms"])
    return REWARDS[name] if name in REWARDS else find_function("reward", name)


def _dense_reward(name: str, reward: Reward, task: Task, scorer: Scorer, constraint: Constraint, kept: bool) -> float:
    """The reward of the dense network on the first images, tried because it may be the user's code.

    Raises:
        ValueError: If it raises, or gives no finite number.
    """
    first = range(min(16, len(task.validation)))
    dense = scorer.outputs(task.network, task.validation, first) if kept else None
    score = scorer(task.network, task.validation, first, dense)
    evaluation = score.evaluation(constraint.costs(constraint.costing.dense()), 0)
    try:
        value = float(reward(evaluation))
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"reward {name!r} must turn an Evaluation into a number, but raised {describe(error)}: correct it"
        ) from error
    if not np.isfinite(value):
        raise ValueError(f"a reward must be a finite number, but {name!r} gave {value}: correct it")
    return value
