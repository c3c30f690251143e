"""What is packed arrives as it was, from memory that cannot be written to; results on disk are computed once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc.config.search import SearchConfig
from amc.rollouts.parcel import Parcel, pack, unpack
from amc.rollouts.worker import Round
from amc.search.setup import Problem
from amc.storage.cache import cached_tensors
from envs.network.graph import trace


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


def test_an_environment_evaluates_the_same_where_it_arrives() -> None:
    problem = Problem(
        SearchConfig(
            task="digits",
            constraint={"macs": 0.3},
            reward_images=100,
            compression={"images": 48, "positions": 4},
        )
    )
    parcel = read_only(pack(problem.portable_environment()))
    policy = problem.policy(problem.constraint.uniform())
    assert unpack(parcel).evaluate(policy) == problem.measurement(policy)


def test_a_round_knows_the_widths_of_earlier_ones() -> None:
    assert not Round((), np.zeros((0,), np.int32)).knows((1, 2))
    known = Round((), np.array([[1, 2], [3, 4]], np.int32))
    assert known.knows((3, 4))
    assert not known.knows((1, 4))


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
