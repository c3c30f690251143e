"""What a search needs beyond its setup: the calibrated compressor, the arithmetic of scoring, the dense outputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor, nn

from amc.config.parts import BackendConfig
from amc.config.search import SearchConfig
from amc.problem.setup import Progress, Setup, no_progress
from amc.scoring.backend import Agreement, choose_backend, repairs_alike
from amc.scoring.draws import read_batches
from amc.scoring.evaluate import Measurement
from amc.scoring.ledger import Ledger
from amc.scoring.racing import Race
from amc.scoring.scorer import Backend, Score, read
from amc.storage.cache import cached_tensors
from amc.tasks.splits import Split, chunks, known_targets
from envs.compression.calibration import CalibrationPlan, plan_calibration
from envs.compression.compress import Compressor
from envs.compression.settings import CompressionSettings
from envs.measure import ACCURACY
from envs.pruning_env import PruningEnv
from envs.reward import Evaluation
from envs.space.assignment import Assignment
from envs.space.branch_sites import BranchSite
from envs.space.pattern_sites import PatternSite
from envs.space.policy import Policy, weights_fingerprint
from envs.units.branches.trial import VerifiedBranch

LIMITS = ("episodes", "effort", "max_minutes", "confirm")
"""Keys of the configuration that say when a search ends, and may change when it goes on."""
BACKEND_IMAGES, BACKEND_STEPS = 1000, (0.5, 1.0)
"""Images on which backends are compared, and how far from dense to uniform the pruned networks are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A setup with everything that no episode changes, and the books of the search.

    Attributes:
        setup: The setup.
        config: Its configuration, with the backend settled.
        compressor: Makes smaller networks.
        measurement: Evaluates assignments on the images of the reward; counts and remembers nothing.
        ledger: What has been paid so far, and every evaluation.
        agreement: How well the backend agrees with fp32, if it was chosen here.
        progress: Is told how far long work is.
        origin: SHA-256 of what determines the episodes: configuration (without limits), weights, calibration images,
            and the dense network's reward, which other data, another metric or another reward changes.
    """

    setup: Setup
    config: SearchConfig
    compressor: Compressor
    measurement: Measurement
    ledger: Ledger
    agreement: Agreement | None
    origin: str
    progress: Progress = field(default=no_progress, repr=False)

    def policy(self, assignment: Assignment) -> Policy:
        """The policy of an assignment."""
        return self.compressor.policy_of(assignment)

    def evaluate(self, assignment: Assignment) -> Evaluation:
        """The counted evaluation: each assignment is charged once, and remembered."""
        known = self.ledger.known.get(assignment.key)
        if known is None:
            return self.ledger.account(assignment.key, self.measurement(assignment))
        # it may have been played for another device
        own = replace(known, costs=self.setup.constraint.costs(assignment.values))
        return self.ledger.account(assignment.key, own)

    def environment(self) -> PruningEnv:
        """A fresh environment to be stepped by the caller; its evaluations are counted."""
        return PruningEnv(self.setup.constraint, self.policy, self.evaluate, self.setup.reward)

    def confirmation_forwards(self) -> int:
        """Image-forwards that confirmation will take at most, which an effort must leave room for."""
        images = len(self.setup.task.validation)
        repaired = (self.config.confirm + 3) * (self.compressor.repair_forwards + images)
        return repaired + images * self.setup.keeps_outputs


def calibration_plan(setup: Setup) -> CalibrationPlan:
    """How many images repair takes, in what chunks."""
    images = len(setup.draws.repair())
    compression = setup.config.compression
    return plan_calibration(setup.anatomy.family, compression, images, may_walk_beside=not _removable(setup))


def calibrate(setup: Setup, progress: Progress = no_progress) -> Compressor:
    """The compressor, with its calibration statistics; its image-forwards are the caller's to charge."""
    progress("calibrating", 0, 1)
    config = setup.config
    anatomy = setup.anatomy
    plan = calibration_plan(setup)
    settings = CompressionSettings(
        **{**config.compression.model_dump(exclude={"positions"}), **setup.objects.of_compression()},
        positions=plan.positions,
        seed=config.seed,
        narrow_targets=plan.narrow_targets,
        keep_targets=plan.keep_targets,
        device=config.device,
    )
    batches = read_batches(setup.task.calibration, setup.draws.repair()[: plan.images], plan.chunk)
    compressor = Compressor(
        setup.task.network,
        anatomy.graph,
        anatomy.family,
        anatomy.units,
        [inputs for inputs, _ in batches],
        settings,
        cached_tensors,
        [site.layer for site in setup.sites if isinstance(site, PatternSite)],
        anatomy.forms,
        _removable(setup),
        setup.task.counts,
    )
    progress("calibrating", 1, 1)
    return compressor


def _removable(setup: Setup) -> list[VerifiedBranch]:
    """The branches that some site decides."""
    decided = {site.name for site in setup.sites if isinstance(site, BranchSite)}
    return [one for one in setup.anatomy.branches if one.name in decided]


def prepare(setup: Setup, progress: Progress = no_progress) -> Prepared:
    """Calibrates, settles the backend, and computes the dense network's outputs on the images of the reward.

    Raises:
        ValueError: If a validation image cannot be read, or is not finite; before any long work.
    """
    _read_once(setup.task.validation, setup.scorer.chunk)
    ledger = Ledger()
    compressor = calibrate(setup, progress)
    ledger.charge(compressor.preparation_forwards)
    traces = _traces(setup, compressor, ledger)
    backend, agreement = setup.config.backend, None
    if backend.name == "auto" and setup.config.single:
        backend = BackendConfig(name="fp32")  # a trial would take longer than the one evaluation
    elif backend.name == "auto":
        backend, agreement = _settle_backend(setup, compressor)
    ledger.charge(_backend_forwards(setup, compressor, backend))
    config = setup.config.model_copy(update={"backend": backend})
    split, images = setup.reward_split(), setup.draws.reward()
    race = _race(setup, len(images))
    dense: list[Tensor] | None = None
    if setup.keeps_outputs:
        first = len(images) if race is None else race.first  # what is scored by itself has chunks of its own
        parts = [part for part in (images[:first], images[first:]) if part]
        dense = [one for part in parts for one in setup.scorer.outputs(setup.task.network, split, part)]
        ledger.charge(len(images))
    measurement = Measurement(
        compressor=compressor,
        scorer=replace(setup.scorer, backend=_settled(backend)),
        split=split,
        images=images,
        constraint=setup.constraint,
        dense=dense,
        half=bool(backend.half_repair),
        race=race,
    )
    return Prepared(
        setup=setup,
        config=config,
        compressor=compressor,
        measurement=measurement,
        ledger=ledger,
        agreement=agreement,
        origin=_origin(setup, config, compressor, traces),
        progress=progress,
    )


def _read_once(split: Split, size: int) -> None:
    """Reads a split that is not in memory: confirmation, hours later, needs every image of it."""
    if known_targets(split) is None:
        for part in chunks(len(split), size):
            read(split, part)


def _settled(backend: BackendConfig) -> Backend:
    if backend.name == "auto":
        raise ValueError("the backend must be settled before networks are scored by it, but is 'auto'")
    return backend.name


def _settle_backend(setup: Setup, compressor: Compressor) -> tuple[BackendConfig, Agreement]:
    """The arithmetic that scores policies during the search, tried on the dense network and two pruned ones."""
    images, split = setup.draws.reward()[:BACKEND_IMAGES], setup.reward_split()

    def score(network: nn.Module, backend: Backend) -> Score:
        return replace(setup.scorer, backend=backend)(network, split, images)

    tried = [setup.task.network, *(_halfway(setup, compressor, share) for share in BACKEND_STEPS)]
    name, agreement = choose_backend(tried, score, setup.config.device)
    half = None
    if name == "bf16":
        half = repairs_alike(compressor, compressor.policy_of(setup.uniform()), setup.scorer, split, images)
    return BackendConfig(name=name, difference=agreement.difference, half_repair=half), agreement


def _backend_forwards(setup: Setup, compressor: Compressor, backend: BackendConfig) -> int:
    """Image-forwards that choosing the backend took, here or before this run was resumed."""
    if backend.difference is None:
        return 0
    images = min(BACKEND_IMAGES, len(setup.draws.reward()))
    forwards = 2 * (1 + len(BACKEND_STEPS)) * images
    return forwards + (2 * compressor.quick_forwards + 3 * images if backend.half_repair is not None else 0)


def _halfway(setup: Setup, compressor: Compressor, share: float) -> nn.Module:
    """A network on the way from dense to uniform, repaired by look-up only."""
    costing = setup.constraint.costing
    dense = costing.dense()
    wanted = dense - share * (dense - setup.constraint.uniform())
    near = [min(site.values(), key=lambda k: abs(k - w)) for site, w in zip(setup.sites, wanted, strict=True)]
    values = costing.fitted(np.asarray([near]))[0]  # a pattern need not fit a width in between
    return compressor.compress(compressor.policy_of(setup.assignment(values)), "layerwise").network


def _race(setup: Setup, images: int) -> Race | None:
    savings = setup.config.savings
    if savings.images is None or savings.images >= images:
        return None
    return Race(first=savings.images, error=savings.error, reward=setup.reward)


def _traces(setup: Setup, compressor: Compressor, ledger: Ledger) -> dict[str, object]:
    """What the objects of the user's do on this network, by which a resumed search knows them again; a repair is tried
    on the uniform policy, and charged.
    """
    objects, traces = setup.objects, dict[str, object]()
    if objects.importance is not None:
        traces["orders"] = compressor.orders
    if objects.costs:
        traces["limits"] = {name: f"{limit:.6g}" for name, limit in setup.constraint.limits().items()}
    if objects.repair is not None:
        before = weights_fingerprint(compressor.network)
        small, forwards = compressor.compress(compressor.policy_of(setup.uniform()), quick=True)
        ledger.charge(forwards)
        if weights_fingerprint(compressor.network) != before:
            raise ValueError(
                f"a repair must leave the dense network as it is, but {objects.repair.__name__} changed it: "
                "give layers that are refitted tensors of their own"
            )
        traces["repaired"] = f"{sum(float(p.detach().abs().sum()) for p in small.parameters()):.4g}"
    return traces


def _origin(setup: Setup, config: SearchConfig, compressor: Compressor, traces: Mapping[str, object]) -> str:
    key = {
        "config": config.model_dump(mode="json", exclude=set(LIMITS)),
        "weights": weights_fingerprint(setup.task.network),
        "calibration": compressor.calibration_fingerprint,
        "reward": f"{setup.dense_reward:.4g}",  # other CPUs differ in the last digits
        **({"metric": measure.to_json()} if (measure := setup.task.metric.measure) != ACCURACY else {}),
        **setup.judged(),
        **({"principal": compressor.principal} if compressor.principal else {}),
        **({"profile": setup.table.profile.text()} if setup.table is not None else {}),
        **({"profiles": [setup.tables[name].profile.text() for name in config.profiles]} if config.profiles else {}),
        **({"objects": traces} if traces else {}),
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
