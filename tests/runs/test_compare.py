"""Comparisons: pairs on the same images, intervals that hold, a verdict that says what the numbers say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from amc.config.search import SearchConfig
from amc.runs.runner import NoScreen
from amc.runs.studies.compare import DATA, PAGE, PICTURE, Run, differences, summarize, verdict
from amc.runs.studies.competition import run_compare
from amc.scoring.paired import mean_interval, paired_difference
from amc.search.result import NETWORKS


def drawn(seed: int, share: float, images: int = 2000) -> np.ndarray:
    return (np.random.default_rng(seed).random(images) < share).astype(np.float32)


def run(agent: str, seed: int, share: float, shift: float = 0.0) -> Run:
    base = drawn(7, 0.9, 4000)
    found = np.maximum(base, drawn(100 + seed, shift, 4000)) if shift else base
    scores = {
        f"{name}|{split}": part
        for name, values in (("start", base), ("found", found))
        for split, part in zip(("validation", "test"), np.split(values, 2), strict=True)
    }
    report = {"accuracy": {split: float(scores[f"found|{split}"].mean()) for split in ("validation", "test")}}
    result = {name: report for name in NETWORKS} | {"image_forwards": 10, "measured": {"seconds": 1.0}}
    return Run(agent=agent, seed=seed, result=result, scores=scores, trace=())


def test_a_network_does_not_differ_from_itself() -> None:
    scores = [drawn(0, 0.9), drawn(1, 0.9)]
    difference = paired_difference(scores, scores)
    assert difference == (0.0, 0.0)
    assert not difference.more_than_noise


def test_the_interval_holds_the_truth_nineteen_times_out_of_twenty() -> None:
    held = 0
    for trial in range(200):
        first, second = drawn(2 * trial, 0.92, 1000), drawn(2 * trial + 1, 0.90, 1000)
        difference = paired_difference([first], [second])
        held += abs(difference.mean - 0.02) <= difference.half_width
    assert 180 <= held <= 199


def test_searches_that_differ_from_seed_to_seed_widen_the_interval() -> None:
    base = drawn(0, 0.9)
    better = [np.ones_like(base), base]
    assert paired_difference(better, [base, base]).half_width > paired_difference(better[:1], [base]).half_width


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images and seeds"):
        paired_difference([drawn(0, 0.9, 10)], [drawn(0, 0.9, 11)])


def test_the_interval_of_a_mean_is_students() -> None:
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.3027 / 3**0.5, rel=1e-4)  # t(0.975, 2) s / sqrt(n)


def test_a_clear_winner_is_named_as_one() -> None:
    runs = [run(agent, seed, 0.9, shift) for seed in (0, 1, 2) for agent, shift in (("ddpg", 0.5), ("random", 0.0))]
    said = verdict(summarize(runs), differences(runs))
    assert said.startswith("ddpg is best, ahead of random by +")
    assert "points, which is more than noise. " in said


def test_a_draw_is_called_a_draw() -> None:
    runs = [run(agent, seed, 0.9) for seed in (0, 1) for agent in ("ddpg", "random")]
    assert "no more than noise" in verdict(summarize(runs), differences(runs)).split(". ")[0]


@pytest.mark.slow
def test_every_agent_pays_no_more_than_the_effort_and_a_second_call_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("amc.runs.runner.write_report", lambda path, _: path.touch())
    monkeypatch.setattr("amc.runs.ending.latency_ms", lambda *_, **__: {})
    config = SearchConfig(
        task="digits",
        constraint={"macs": 0.3},
        reward_images=100,
        warmup=2,
        confirm=1,
        effort=6_000,
        compression={"images": 64, "positions": 8},
        knapsack={"images": 32, "widths": 2, "damages": ["kl"]},
    )
    agents = ["ddpg", "random", "uniform"]
    begun: list[str] = []
    found = run_compare(config, agents, 2, tmp_path / "out", NoScreen(), begun.append)
    assert len(begun) == 6
    data = json.loads((tmp_path / "out" / DATA).read_text())
    assert data["verdict"] == found.verdict
    assert {name: row["seeds"] for name, row in data["agents"].items()} == dict.fromkeys(agents, 2)
    one_round = config.round_size * (100 + 2 * 64)
    assert all(row["image_forwards"] <= 6_000 + one_round for row in data["agents"].values())
    assert found.verdict in (tmp_path / "out" / PAGE).read_text()
    assert (tmp_path / "out" / PICTURE).read_text().startswith("<svg")
    monkeypatch.setattr("amc.runs.runner.set_up", None)
    assert run_compare(config, agents, 2, tmp_path / "out", NoScreen(), begun.append) == found
    assert len(begun) == 6
