"""What is packed arrives as it was, from memory that cannot be written to; results on disk are computed once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents.searcher import FixedPlan
from amc.config.search import SearchConfig
from amc.pool.parcel import Parcel, pack, unpack
from amc.pool.pool import InProcess
from amc.problem.prepare import prepare
from amc.problem.setup import set_up
from amc.search.loop import make_rollout, play
from amc.search.rollout import Rollout, Round
from amc.storage.cache import cached_tensors
from envs.network.graph import trace
from envs.reward import Evaluation


def read_only(parcel: Parcel) -> Parcel:
    for array in parcel.arrays:
        array.setflags(write=False)
    return parcel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("size", [0, 3, 20_000])
def test_tensors_keep_values_type_and_layout(dtype: torch.dtype, size: int) -> None:
    tensor = torch.arange(size).remainder(7).to(dtype).reshape(size, 1, 1, 1).expand(size, 2, 3, 1).contiguous()
    tensor = tensor.to(memory_format=torch.channels_last)
    arrived = unpack(read_only(pack({"it": tensor})))["it"]
    assert arrived.dtype == dtype
    assert arrived.stride() == tensor.stride()
    assert torch.equal(arrived, tensor)


@pytest.mark.cuda
def test_tensors_of_a_gpu_arrive_on_the_gpu() -> None:
    layer = nn.Linear(300, 300).cuda()
    sent = {"it": layer, "rows": torch.ones(100, 100, device="cuda").T}
    arrived = unpack(read_only(pack(sent)))
    assert torch.equal(arrived["it"].weight, layer.weight)
    assert arrived["it"].weight.is_cuda
    assert arrived["rows"].is_cuda
    assert arrived["rows"].stride() == (1, 100)


def test_weights_arrive_in_memory_of_their_own() -> None:
    arrived = unpack(read_only(pack(nn.Linear(300, 300))))
    with torch.no_grad():
        arrived.weight.add_(1)


def test_a_traced_graph_may_be_deep() -> None:
    program = trace(nn.Sequential(*[nn.Identity() for _ in range(2000)]).eval(), torch.zeros(1, 3)).program
    assert program is not None
    node = list(program.nodes)[1000]
    arrived, place = unpack(pack((program, node)))
    assert [n.name for n in arrived.nodes] == [n.name for n in program.nodes]
    assert list(arrived.nodes)[1000] is place


def test_an_episode_is_the_same_where_it_arrives() -> None:
    config = SearchConfig(
        task="digits", constraint={"macs": 0.3}, reward_images=100, compression={"images": 48, "positions": 4}
    )
    prepared = prepare(set_up(config))
    setup, plan = prepared.setup, FixedPlan(tuple(prepared.setup.uniform().actions), "uniform")
    sent = Rollout(setup.constraint, prepared.measurement.excerpt(), setup.reward)
    arrived = unpack(read_only(pack((sent, Round(known=prepared.ledger.known), plan))))
    here, there = play(make_rollout(prepared, InProcess()), Round(known={}), plan), play(*arrived)
    assert there.evaluation == here.evaluation == prepared.measurement(setup.uniform())
    assert (there.assignment, there.reward) == (here.assignment, here.reward)
    assert np.array_equal(there.observations, here.observations)


def test_a_round_arrives_with_what_is_known() -> None:
    known = {(1, 2): evaluated(0.1), (8, 8, 0, 3): evaluated(0.2)}
    assert unpack(pack(Round(known=MappingProxyType(known)))).known == known


def evaluated(accuracy: float) -> Evaluation:
    return Evaluation(metric=accuracy, loss=None, images=1, image_forwards=1)


ASKER = """
import logging, sys, torch
from amc.storage.cache import cached_tensors

def compute():
    print("computed again", flush=True)
    return {"it": torch.zeros(3)}

logging.basicConfig(stream=sys.stdout, level=logging.DEBUG, format="%(message)s")
print(cached_tensors("kind", {"key": 1}, compute)["it"].tolist(), flush=True)
"""
"""Asks for the same result in another process; filelock logs that it waits."""


def test_what_two_processes_ask_for_at_once_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    others: list[subprocess.Popen[str]] = []

    def compute() -> dict[str, Tensor]:
        """Returns only when the other process waits at the lock, or has ended without waiting."""
        others.append(subprocess.Popen([sys.executable, "-c", ASKER], stdout=subprocess.PIPE, text=True))
        assert others[0].stdout is not None
        assert any("not acquired" in line for line in others[0].stdout), "it did not wait"
        return {"it": torch.ones(3)}

    assert cached_tensors("kind", {"key": 1}, compute)["it"].tolist() == [1.0, 1.0, 1.0]
    said = others[0].communicate(timeout=60)[0]
    assert "[1.0, 1.0, 1.0]" in said
    assert "computed again" not in said
