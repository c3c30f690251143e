"""Everything a search works on, built once at the door: units, sites, constraint, compressor, evaluate."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from amc.config.parts import BackendConfig
from amc.config.search import SearchConfig
from amc.profiling.store import load_table
from amc.scoring.backend import Agreement, choose_backend, repairs_alike
from amc.scoring.draws import Draws, read_batches
from amc.scoring.evaluate import Effort, Evaluator, Measurement
from amc.scoring.racing import Race
from amc.scoring.scorer import Backend, Score, Scorer
from amc.search.bounds import bind, choose_sites, recount, skipped_patterns
from amc.storage.cache import cached_tensors
from amc.tasks.checks import check_task
from amc.tasks.plugins import describe, find_function
from amc.tasks.splits import Split, verification_samples
from amc.tasks.task import Task, load_task, top1
from envs.compression.calibration import CalibrationPlan, plan_calibration
from envs.compression.compress import Compressor
from envs.compression.settings import CompressionSettings
from envs.parallel import return_memory, single_threaded
from envs.pruning_env import PruningEnv
from envs.reward import REWARDS, Evaluation, Reward, accuracy_latency
from envs.space.constraint import Costing
from envs.space.policy import Policy, weights_fingerprint
from envs.space.sites import decode, encode
from envs.units.anatomy import dissect
from hw_profiles.cost import Cost, Macs, Params
from hw_profiles.layers import IntArray
from hw_profiles.shape_rules import load_rules

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how many done, how many in all)."""

BACKEND_IMAGES, BACKEND_STEPS = 1000, (0.5, 1.0)
"""Images on which backends are compared, and how far from dense to uniform the pruned networks are."""
KEPT_BYTES, SCORING_BYTES = 512e6, 256e6
"""Outputs of the dense network that are kept at most, and activations held by one scoring chunk."""
CACHED_BYTES, FEWEST_CHUNK, MOST_CHUNK = 2**22, 8, 250
"""The largest activation of a scoring chunk, so that the next layer finds it in a core's cache: by 250 images of
32 x 32, ResNet-56 takes 1.2 (bf16) to 1.4 (fp32) times as long as by 64. Fewer than 8 give it too little to do."""


class Problem:
    """One task under one constraint, ready to be searched.

    Attributes:
        task: The task.
        config: The resolved configuration.
        anatomy: Graph, units and layouts.
        sites: One decision per unit that may change.
        table: Latencies by the named profile, None without one.
        constraint: The budgets over them.
        draws: Which images are used for what.
        reward: Turns an evaluation into a number.
        effort: What has been paid so far.
        agreement: How well the backend agrees with fp32, once it was chosen here.
        progress: Is told how far long work is.
    """

    def __init__(self, config: SearchConfig, progress: Progress = lambda what, done, total: None) -> None:
        """Loads and checks the task and the budgets; statistics are computed when first needed.

        Raises:
            ValueError: If task, rules or budgets are not usable; before any long work.
        """
        single_threaded()
        self.config = config
        self.progress = progress
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda needs a CUDA device, but torch sees none here: use --device cpu")
        self.task: Task = load_task(config.task, data=config.data, checkpoint=config.checkpoint)
        check_task(self.task)
        self.draws = Draws(config, len(self.task.calibration), len(self.task.validation))
        table = load_table(config.profile, logger.warning) if config.profile is not None else None
        progress("finding units", 0, 1)
        self.anatomy = dissect(self.task.network, self.task.example_input, verification_samples(self.task.calibration))
        return_memory()
        progress("finding units", 1, 1)
        self.shapes = load_rules(config.shapes) if config.shapes is not None else None
        self.sites, skipped = choose_sites(config, self.task.network, self.anatomy, self.shapes)
        self.fixed = (*self.anatomy.fixed, *skipped)
        self.table = table.for_network(self.anatomy.family.dense) if table is not None else None
        if self.table is not None and self.table.correction is None:
            logger.warning(
                "latencies of %s are uncorrected: `amc profile check` measures how true they are", self.task.name
            )
        self.constraint = bind(config, Costing(self.anatomy.family, self.sites, self.shapes), self.table)
        self.reward = self._reward()
        self.effort = Effort()
        self.scorer = Scorer(
            graph=self.anatomy.graph, metric=self.task.metric, chunk=self._scoring_chunk(), device=config.device
        )
        self._check_reward()
        self.agreement: Agreement | None = None
        self._kept: dict[tuple[int, int], Tensor | None] = {}
        self._compressor: Compressor | None = None
        self._evaluator: Evaluator | None = None

    def _reward(self) -> Reward:
        """The reward by name, or the user's own."""
        name = self.config.reward
        if name == "auto":
            name = "output_error" if self.task.metric is top1 and self._outputs_fit() else "accuracy"
        if name == "accuracy_latency":
            return partial(accuracy_latency, target_ms=self.constraint.limits()["latency_ms"])
        return REWARDS[name] if name in REWARDS else find_function("reward", name)

    def _outputs_fit(self) -> bool:
        """Whether the dense network's outputs on all validation images can be kept."""
        with torch.no_grad():
            one: Tensor = self.task.network(self.task.example_input)
        return 4 * one.numel() * len(self.task.validation) <= KEPT_BYTES

    def _dense_outputs(self, split: Split, indices: Sequence[int]) -> Tensor | None:
        """[N, ...] outputs of the dense network, computed once for each set of images; None where they are too many."""
        key = (id(split), hash(tuple(indices)))
        if key not in self._kept:
            fit = self._outputs_fit()
            self._kept[key] = self.scorer.outputs(self.task.network, split, indices) if fit else None
            self.effort.image_forwards += len(indices) * fit
        return self._kept[key]

    def _check_reward(self) -> None:
        """Tries the reward on the dense network's first images: it may be the user's code."""
        first = range(min(16, len(self.task.validation)))
        dense = self.scorer.outputs(self.task.network, self.task.validation, first) if self._outputs_fit() else None
        score = self.scorer(self.task.network, self.task.validation, first, dense)
        evaluation = score.evaluation(self.constraint.costs(self.constraint.costing.dense()), 0)
        try:
            value = float(self.reward(evaluation))
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"reward {self.config.reward!r} must turn an Evaluation into a number, but raised {describe(error)}: "
                "correct it"
            ) from error
        if not np.isfinite(value):
            raise ValueError(f"a reward must be a finite number, but {self.config.reward!r} gave {value}: correct it")

    def _scoring_chunk(self) -> int:
        largest = 4 * max(
            layer.out_channels * int(np.prod(layer.out_map)) for layer in self.anatomy.family.dense.layers
        )
        cached = max(FEWEST_CHUNK, CACHED_BYTES / largest) if self.config.device == "cpu" else MOST_CHUNK
        return int(max(1, min(MOST_CHUNK, cached, SCORING_BYTES / (3 * largest))))

    @property
    def compressor(self) -> Compressor:
        """The compressor, with its calibration statistics."""
        if self._compressor is None:
            self.progress("calibrating", 0, 1)
            anatomy, plan = self.anatomy, self.calibration_plan
            settings = CompressionSettings(
                **self.config.compression.model_dump(exclude={"positions"}),
                positions=plan.positions,
                seed=self.config.seed,
                narrow_targets=plan.narrow_targets,
                device=self.config.device,
            )
            batches = read_batches(self.task.calibration, self.draws.repair()[: plan.images], plan.chunk)
            self._compressor = Compressor(
                self.task.network,
                anatomy.graph,
                anatomy.family,
                anatomy.units,
                [inputs for inputs, _ in batches],
                settings,
                cached_tensors,
                [site.layer for site in self.sites if site.layer],
            )
            self.effort.image_forwards += self._compressor.preparation_forwards
            self.progress("calibrating", 1, 1)
        return self._compressor

    @property
    def calibration_plan(self) -> CalibrationPlan:
        """How many images repair takes, in what chunks."""
        return plan_calibration(self.anatomy.family, self.config.compression, len(self.draws.repair()))

    @property
    def measurement(self) -> Measurement:
        """Evaluates policies on the images of the reward, with quick repair; counts and remembers nothing."""
        split, images = self._reward_split(), self.draws.reward()
        scorer = replace(self.scorer, backend=self.backend)  # settles whether repair may be narrow, too
        return Measurement(
            compressor=self.compressor,
            scorer=scorer,
            split=split,
            images=images,
            constraint=self.constraint,
            dense=self._dense_outputs(split, images),
            half=bool(self.config.backend.half_repair),
            race=self._race(len(images)),
        )

    def _race(self, images: int) -> Race | None:
        first, error = self.config.savings.images, self.config.savings.error
        return None if first is None or first >= images else Race(first=first, error=error, reward=self.reward)

    @property
    def evaluate(self) -> Evaluator:
        """The counted `evaluate(policy)` on the images of the reward, with quick repair."""
        if self._evaluator is None:
            if self.backend and self.config.backend.difference is not None:  # here or before this run was resumed
                images = min(BACKEND_IMAGES, len(self.draws.reward()))
                self.effort.image_forwards += 2 * (1 + len(BACKEND_STEPS)) * images
                if self.config.backend.half_repair is not None:
                    self.effort.image_forwards += 2 * self.compressor.quick_forwards + 3 * images
            self._evaluator = Evaluator(self.measurement, self.effort)
        return self._evaluator

    def _reward_split(self) -> Split:
        return self.task.validation if self.config.reward_split == "validation" else self.task.calibration

    @property
    def backend(self) -> Backend:
        """The arithmetic that scores policies during the search; settled when first asked for, then in `config`."""
        if self.config.backend.name == "auto":
            images = self.draws.reward()[:BACKEND_IMAGES]
            uniform, split = self.policy(self.constraint.uniform()), self._reward_split()

            def score(network: nn.Module, backend: Backend) -> Score:
                return replace(self.scorer, backend=backend)(network, split, images)

            tried = [self.task.network, *map(self._halfway, BACKEND_STEPS)]
            name, found = choose_backend(tried, score, self.config.device)
            half = repairs_alike(self.compressor, uniform, self.scorer, split, images) if name == "bf16" else None
            settled = BackendConfig(name=name, difference=found.difference, half_repair=half)
            self.config = self.config.model_copy(update={"backend": settled})
            self.agreement = found
            return name
        return self.config.backend.name

    def _halfway(self, share: float) -> nn.Module:
        """A network on the way from dense to uniform, repaired by look-up only."""
        dense = self.constraint.costing.dense()
        wanted = dense - share * (dense - self.constraint.uniform())
        near = [min(site.kept(), key=lambda k: abs(k - w)) for site, w in zip(self.sites, wanted, strict=True)]
        kept = self.constraint.costing.fitted(np.asarray([near]))[0]  # a pattern need not fit a width in between
        return self.compressor.compress(self.policy(kept), "layerwise").network

    def origin(self) -> str:
        """SHA-256 of what determines the episodes: configuration (without limits), weights, calibration images."""
        assert self.backend  # settled, whoever asks first
        limits = {"episodes", "effort", "max_minutes", "confirm"}
        key = {
            "config": self.config.model_dump(mode="json", exclude=limits),
            "weights": weights_fingerprint(self.task.network),
            "calibration": self.compressor.calibration_fingerprint,
            **({"profile": self.table.profile.text()} if self.table is not None else {}),
        }
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()

    def environment(self, evaluate: Callable[[Policy], Evaluation] | None = None) -> PruningEnv:
        """A fresh environment on this problem; its evaluations are counted, unless another `evaluate` is given."""
        return PruningEnv(self.constraint, self.compressor.policy, evaluate or self.evaluate, self.reward)

    def portable_environment(self) -> PruningEnv:
        """An environment that evaluates without memory or ledger and holds nothing else: it goes to workers."""
        measure = self.measurement.excerpt()
        return PruningEnv(self.constraint, measure.compressor.policy, measure, self.reward)

    def own_modules(self) -> list[str]:
        """Modules of the user's that the configuration names."""
        return [name.partition(":")[0] for name in (self.config.task, self.config.reward) if ":" in name]

    def confirmation_forwards(self) -> int:
        """Image-forwards that confirmation will take at most, which an effort must leave room for."""
        repaired = (self.config.confirm + 3) * (self.compressor.repair_forwards + len(self.task.validation))
        return repaired + len(self.task.validation) * self._outputs_fit()

    def policy(self, kept: IntArray) -> Policy:
        """The policy of [S] kept channels."""
        return self.compressor.policy(*decode(self.sites, kept))

    def widths(self, policy: Policy) -> IntArray:
        """[S] kept channels of a policy."""
        return encode(self.sites, policy.widths(), policy.patterns())

    def patterns(self, kept: Sequence[int] | IntArray) -> dict[str, str]:
        """Layer name -> pattern of [S] kept channels and ranks."""
        return decode(self.sites, kept).patterns

    def actions(self, kept: Sequence[int] | IntArray) -> list[float]:
        """[S] the actions that mean [S] kept channels and ranks."""
        return [site.action(value) for site, value in zip(self.sites, kept, strict=True)]

    def policy_costs(self, policy: Policy) -> dict[str, float]:
        """Predicted costs of a policy under every budget."""
        return self.constraint.costs(self.widths(policy))

    def real_costs(self, network: nn.Module, patterns: Mapping[str, str] | None = None) -> dict[str, float]:
        """MACs, parameters and every budget's cost, recounted on a real network (traced anew).

        Args:
            network: Whose weights keep to their patterns: they are checked before they are counted.
            patterns: Layer name -> pattern.
        """
        macs = Macs(skips=skipped_patterns(self.shapes, self.table))
        wanted: list[Cost] = [macs, Params(), *(budget.cost for budget in self.constraint.budgets)]
        wanted += [self.table] if self.table is not None else []
        return recount(network, self.task.example_input, wanted, patterns or {})

    def score(self, network: nn.Module, split: Literal["validation", "test"]) -> Score:
        """Scores a network on a whole split."""
        data = self.task.validation if split == "validation" else self.task.test
        dense = self._dense_outputs(data, range(len(data))) if split == "validation" else None
        score = self.scorer(network, data, range(len(data)), dense)
        return_memory()
        return score
