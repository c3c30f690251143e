"""AMC's released procedure against ours: fitting and evaluation of one policy, at the same images.

Command: python -m experiments.bench.released [--task digits] [--data DIR --weights DIR] [--images 1000] [--json]
The released procedure (written from its description, not from its code): inputs and outputs of every layer are
cached from the dense network at ten random positions per image; in each episode and layer scikit-learn's
LinearRegression(fit_intercept=False) fits the kept inputs to the cached outputs; weights of dropped inputs become
zeros, and the full-size network is run in fp32 as it is. It knows 1 x 1 convolutions only; k x k ones are unfolded,
as its maintainers advise. Ours looks the same scheme's fits up (layer-wise repair) and runs the sliced network by
the chosen backend; what our look-up costs once is printed too. CPU time of one thread. With --run RUN (a finished
search of ours) the whole procedure, 800 such episodes shared by two cores, is set against that search's wall time.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from amc.problem.prepare import Prepared, prepare
from amc.problem.setup import set_up
from amc.scoring.scorer import read
from amc.tasks.splits import Split
from envs.parallel import THREADS
from envs.space.policy import Policy
from experiments.bench.episode import add_task, config_of
from experiments.chain import commit, processor

POSITIONS = 10
"""Random output positions per image."""
BATCH = 50
"""Images per forward pass."""
EPISODES, CORES = 800, 2
"""The released code's default; cores that both searches may use."""


class Features(NamedTuple):
    """Cached rows of one layer: [m, C, k] inputs and [m, O] outputs, float32."""

    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]


def cached_features(network: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Features]:
    """Inputs and outputs of the layers at the same random positions, over all images."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    generator = torch.Generator().manual_seed(0)

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def take(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x, y = inputs[0], output
            if isinstance(layer, nn.Conv2d):
                x = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
                at = torch.randint(x.shape[2], (POSITIONS,), generator=generator)
                x, y = x[:, :, at].transpose(1, 2).flatten(0, 1), y.flatten(2)[:, :, at].transpose(1, 2).flatten(0, 1)
                x = x.reshape(len(x), layer.in_channels, -1)
            found[name].append((x if x.ndim == 3 else x[:, :, None], y))

        return take

    handles = [network.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    with torch.no_grad():
        for part in torch.split(images, BATCH):
            network(part)
    for handle in handles:
        handle.remove()
    return {
        name: Features(torch.cat([x for x, _ in rows]).numpy(), torch.cat([y for _, y in rows]).numpy())
        for name, rows in found.items()
    }


def fit(layer: nn.Module, features: Features, kept: Sequence[int]) -> None:
    """Least squares on the kept inputs; the others' weights become zeros."""
    weight = layer.get_parameter("weight")
    x = features.inputs[:, kept].reshape(len(features.inputs), -1)
    solved = LinearRegression(fit_intercept=False).fit(x, features.outputs).coef_
    full = np.zeros((len(weight), *features.inputs.shape[1:]), np.float32)
    full[:, kept] = solved.reshape(len(weight), len(kept), -1)
    weight.data = torch.from_numpy(full).view(weight.shape)


def evaluate(network: nn.Module, images: Tensor) -> None:
    """The full-size network over the reward's images."""
    with torch.no_grad():
        for part in torch.split(images, BATCH):
            network(part)


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of a piece of work."""
    began = time.process_time()
    work()
    return time.process_time() - began


def consumers(prepared: Prepared, policy: Policy) -> dict[str, Sequence[int]]:
    """Layers that read one unit, with the inputs that the policy keeps."""
    kept: Mapping[str, Sequence[int]] = policy.kept()
    found: dict[str, Sequence[int]] = {}
    for unit in prepared.setup.anatomy.units:
        for member in unit.role("consumer"):
            layer = prepared.setup.task.network.get_submodule(member.module)
            whole = isinstance(layer, (nn.Conv2d, nn.Linear)) and int(getattr(layer, "groups", 1)) == 1
            if whole and all(len(row) == 1 for row in member.positions):
                found[member.module] = [member.positions[channel][0] for channel in kept[unit.name]]
    return found


def compare(prepared: Prepared, images: int) -> dict[str, float]:
    """CPU seconds of both procedures for the uniform policy."""
    setup, compressor = prepared.setup, prepared.compressor
    task = setup.task
    policy = prepared.policy(setup.uniform())
    layers = consumers(prepared, policy)
    calibration: Split = task.calibration
    masked = copy.deepcopy(task.network)
    features = cached_features(masked, list(layers), read(calibration, range(images))[0])

    def fit_all() -> None:
        for name, kept in layers.items():
            fit(masked.get_submodule(name), features[name], kept)

    fitting = seconds(fit_all)
    pixels = read(task.validation, setup.draws.reward())[0]
    theirs = seconds(lambda: evaluate(masked, pixels))
    once = seconds(lambda: compressor.compress(policy, "layerwise"))  # factorizes: once per search
    sliced = seconds(lambda: compressor.compress(policy, "none"))
    ours = min(seconds(lambda: compressor.compress(policy, "layerwise")) for _ in range(3))
    small = compressor.compress(policy, "layerwise").network
    scorer = prepared.measurement.scorer
    scoring = min(seconds(lambda: scorer(small, task.validation, setup.draws.reward())) for _ in range(2))
    bank = compressor.dense.banks.get()
    if alone := [name for name in layers if not bank.fits(name)]:
        raise ValueError(f"both procedures must fit the same layers, but ours does not fit {alone}")
    return {
        "layers": len(layers),
        "their fitting": fitting,
        "our first repair": once,
        "our slicing alone": sliced,
        "our slicing and repair": ours,
        "their evaluation": theirs,
        "our evaluation": scoring,
        "fitting, factor": fitting / ours,
        "evaluation, factor": theirs / scoring,
    }


def main() -> None:
    """Prints both procedures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task(parser)
    parser.add_argument("--run", type=Path, help="a finished search on this task, for the whole procedure")
    options = parser.parse_args()
    os.environ[THREADS] = "1"
    with threadpool_limits(1):
        found = compare(prepare(set_up(config_of(options, "layerwise"))), options.images)
    if options.run is not None:
        theirs = EPISODES * (found["their fitting"] + found["their evaluation"]) / CORES
        ours = json.loads((options.run / "result.json").read_text())["measured"]["seconds"]
        found |= {"their whole search": theirs, "our whole search": ours, "whole search, factor": theirs / ours}
    about: dict[str, Any] = {"task": options.task, "images": options.images, "commit": commit(), "on": processor()}
    if options.json:
        print(json.dumps({**about, **found}))
        return
    print(about, "\n\n| one policy | CPU seconds (or factor) |\n|---|---|")
    print("\n".join(f"| {name} | {value:.4g} |" for name, value in found.items()))


if __name__ == "__main__":
    main()
