"""Metrics of every kind and direction go through the whole search, and everything that is said follows them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import amc
from amc.runs.folder import RunFolder
from amc.runs.library import search
from amc.runs.studies.compare import Point, differences, read_run, write_comparison, write_trace
from amc.scoring.draws import Draws
from amc.scoring.paired import RESAMPLES, score_difference
from amc.scoring.scorer import Score, Scorer
from amc.tasks.metric import Metric
from amc.tasks.metrics import accuracy, as_metric, macro_f1, mean_squared_error, perplexity, psnr, spearman
from amc.tasks.splits import ArraySplit
from envs.measure import Measure
from envs.network.graph import Graph

SETTINGS: dict[str, Any] = {
    "budgets": {"macs": 0.6},
    "searcher": "cmaes",
    "progress": False,
    "episodes": 4,
    "round_size": 2,
    "reward_images": 16,
    "confirm": 1,
    "compression": {"images": 32, "quick_images": 32},
    "knapsack": {"widths": 2, "images": 32},
}


class Tokens(nn.Module):
    """[B, T] words to [B, T, 11] scores of the next word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.wide, self.narrow = nn.Embedding(11, 8), nn.Linear(8, 24), nn.Linear(24, 11)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(torch.relu(self.wide(self.words(x))))
        return y


class Values(nn.Module):
    """[B, 6] numbers to [B, outputs]."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(6, 24), nn.Linear(24, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(torch.relu(self.wide(x)))
        return y


def make(network: nn.Module, inputs: Tensor, metric: Any, answer: Callable[[Tensor], Tensor]) -> amc.Task:
    with torch.no_grad():
        targets = answer(network(inputs))
    parts: dict[str, Any] = {
        name: (inputs[k : k + 32], targets[k : k + 32])
        for k, name in ((0, "calibration"), (32, "validation"), (64, "test"))
    }
    return amc.Task(name="own", network=network, example_input=inputs[:1], metric=metric, **parts)


def reading() -> amc.Task:
    torch.manual_seed(0)
    return make(Tokens(), torch.randint(11, (96, 5)), perplexity, lambda y: y.argmax(dim=-1))


def numbers(metric: Any, outputs: int = 1, answer: Callable[[Tensor], Tensor] = lambda y: y) -> amc.Task:
    torch.manual_seed(0)
    return make(Values(outputs), torch.randn(96, 6), metric, answer)


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("amc.runs.ending.latency_ms", lambda *_, **__: {})  # three seconds


TASKS: dict[str, Callable[[], amc.Task]] = {
    "perplexity": reading,
    "Spearman": lambda: numbers(spearman),
    "PSNR": lambda: numbers(psnr, 4),
    "macro F1": lambda: numbers(macro_f1, 3, lambda y: y.argmax(dim=1)),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_metric_of_any_kind_is_searched_confirmed_and_said_by_its_name(name: str, tmp_path: Path) -> None:
    task = TASKS[name]()
    result = search(task, out=tmp_path / "run", **SETTINGS)
    measure = task.metric.measure
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert Measure.from_json(stored["metric"]) == measure
    assert stored["found"][name] == result.reports["found"].metric == result.reports["found"].accuracy
    lines = [json.loads(line) for line in (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()]
    assert all(line["reward"] == measure.signed(line[name]) for line in lines)
    page = (tmp_path / "run" / "report.html").read_text()
    shown = re.sub(r"<svg.*?</svg>", "", page.partition("<body>")[2].partition("<h2>Configuration")[0], flags=re.DOTALL)
    assert measure.text(result.reports["found"].metric["test"]) in shown
    assert f"Standard error of found's {name}" in shown
    for word in ("ccuracy", "image", " points", "per cent"):
        assert word not in shown
    unseen = [one.metric["validation"] for one in result.reports.values()]
    assert all(map(math.isfinite, unseen))


def test_a_run_goes_on_with_its_metric(tmp_path: Path) -> None:
    for out in ("whole", "parts"):
        for episodes in (4,) if out == "whole" else (2, 4):
            search(reading(), out=tmp_path / out, **{**SETTINGS, "episodes": episodes})
    whole, parts = ((tmp_path / out / "episodes.jsonl").read_bytes() for out in ("whole", "parts"))
    assert whole == parts


@pytest.mark.slow
def test_workers_find_the_same_by_a_metric_of_the_set(tmp_path: Path) -> None:
    def rank(outputs: Tensor, targets: Tensor) -> float:
        return spearman.function(outputs, targets)  # type: ignore[no-any-return]

    for workers in (0, 2):
        task = numbers(Metric("rank", rank, per="set"))
        search(task, out=tmp_path / str(workers), workers=workers, **SETTINGS)
    alone, shared = ((tmp_path / name / "episodes.jsonl").read_bytes() for name in ("0", "2"))
    assert alone == shared


def test_where_lower_is_better_the_lower_one_wins_on_unseen_samples(tmp_path: Path) -> None:
    task = numbers(mean_squared_error, 4)
    result = search(task, out=tmp_path / "run", **SETTINGS)
    config = RunFolder.reopen(tmp_path / "run").config()
    unseen = Draws(config, len(task.calibration), len(task.validation)).confirm()
    inputs, targets = task.validation.batch(unseen)
    with torch.no_grad():
        errors = {name: float((net(inputs) - targets).square().mean()) for name, net in result.networks.items()}
    assert errors["dense"] < errors["found"] <= min(errors["uniform"], errors.get("start", math.inf)) + 1e-6


def test_rewards_of_an_error_are_refused_where_the_metric_has_none() -> None:
    with pytest.raises(ValueError, match=r"needs a metric in \[0, 1\].*'PSNR'"):
        search(numbers(psnr, 4), reward="error_log_cost", **SETTINGS)


def test_a_comparison_prefers_the_lower_one_and_pairs_by_the_bootstrap(tmp_path: Path) -> None:
    runs = []
    for agent, budget in (("uniform", 0.8), ("knapsack", 0.3)):
        folder = tmp_path / agent
        search(reading(), out=folder, **{**SETTINGS, "searcher": agent, "budgets": {"macs": budget}})
        write_trace(folder, [Point(1000, 3.0)])
        run = read_run(folder, agent, 0)
        assert run is not None
        runs.append(run)
    found = {run.agent: sum(run.result["found"]["perplexity"].values()) for run in runs}
    said = write_comparison(tmp_path, runs, "own").verdict
    best, other = sorted(found, key=found.__getitem__)
    assert said.startswith(f"{best} is best, ahead of {other} by +")
    assert said.endswith("Of perplexity, lower is better.")
    page = (tmp_path / "compare.md").read_text()
    assert "| validation | test |" in page
    assert "points" not in page
    gap = differences(runs)[best, other]
    assert gap.mean == pytest.approx((found[best] - found[other]) / 2)
    assert gap.half_width > 0


def test_saving_images_is_refused_where_parts_do_not_tell_the_whole() -> None:
    with pytest.raises(ValueError, match=r"savings\.images needs a metric per sample"):
        search(numbers(spearman), savings={"images": 100}, **SETTINGS)


def test_perplexity_is_over_all_tokens_and_leaves_out_what_is_not_asked() -> None:
    outputs, targets = torch.randn(3, 4, 7), torch.randint(7, (3, 4))
    targets[0, 1:] = -100
    parts = [perplexity.statistics(outputs[k : k + 1], targets[k : k + 1]) for k in range(3)]
    expected = math.exp(float(nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())))
    assert perplexity.value(perplexity.joined(parts)) == pytest.approx(expected, rel=1e-5)


def test_networks_are_compared_with_the_dense_one_by_what_is_predicted() -> None:
    def cosine(pairs: Tensor) -> Tensor:
        return nn.functional.cosine_similarity(pairs[:, 0], pairs[:, 1])

    metric = Metric("rank", lambda o, t: float((o - t).mean()), per="set", prediction=cosine)
    pairs, targets = torch.randn(5, 2, 3), torch.randn(5)
    rows = metric.statistics(pairs, targets)
    assert torch.equal(rows[0], cosine(pairs))
    assert torch.equal(rows[1], targets)
    split = ArraySplit(pairs.numpy(), targets.numpy())
    scorer = Scorer(graph=Graph(nodes=(), program=None, channels_last=False), metric=metric, backend="eager")
    score = scorer(nn.Identity(), split, range(5), [pairs.flip(-1)])  # other embeddings with the same cosines
    assert score.errors == pytest.approx(np.zeros(5), abs=1e-10)
    moved = pairs + torch.tensor([0.0, 0.0, 1.0])
    score = scorer(nn.Identity(), split, range(5), [moved])
    assert score.errors == pytest.approx((cosine(moved) - cosine(pairs)).square().numpy(), rel=1e-4)


def test_f1_is_that_of_the_definition() -> None:
    targets, named = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 0])
    rows = macro_f1.statistics(nn.functional.one_hot(named, 3).float(), targets)
    assert macro_f1.value(macro_f1.joined([rows])) == pytest.approx((2 / 4 + 4 / 6) / 2)


def test_the_bootstrap_agrees_with_the_formula_where_both_apply() -> None:
    draws = np.random.default_rng(0)
    hard = draws.normal(size=400)
    rows = [(hard + draws.normal(0.1 * k, 0.5, size=400)).astype(np.float32) for k in (1, 0)]
    mean = Metric("mean", lambda o, t: o)
    pooled = Metric("mean", lambda o: float(o.double().mean()), per="set", keep=lambda o, t: o)
    exact, resampled = (
        score_difference(
            Score(statistics=(rows[0],), losses=None, metric=metric),
            Score(statistics=(rows[1],), losses=None, metric=metric),
            "test",
        )
        for metric in (mean, pooled)
    )
    assert resampled.mean == pytest.approx(exact.mean, abs=1e-6)
    assert resampled.half_width == pytest.approx(exact.half_width, rel=4 / math.sqrt(2 * RESAMPLES))


@pytest.mark.parametrize(
    ("metric", "law"),
    [
        (Metric("m", lambda o, t: 1 / 0), "'m' must score outputs .* raised ZeroDivisionError"),
        (Metric("m", lambda o, t: o[:, 0] * math.nan), "NaN for some sample: return what it stands for"),
        (Metric("m", lambda o, t: o), r"one score per sample, \[4\], but .* returned \[4, 1\]"),
        (Metric("m", lambda o, t: o.mean(), per="element"), r"scores \[4, ...\] of elements"),
        (Metric("m", lambda o, t: (o, t[:2] > 0), per="element"), "a pair of them and a mask"),
        (Metric("m", lambda o, t: math.nan, per="set"), "must be a finite number, but on 16 samples it is nan"),
        (Metric("m", lambda o, t: o[99], per="set"), "must have a value on any samples, .* raised IndexError"),
        (Metric("m", lambda o, t: o[:, 0], prediction=lambda o: o[9]), "prediction .* raised IndexError"),
        (Metric("m", lambda o, t: o[:, 0], prediction=lambda o: o[:2]), r"one row for each of 4 samples, but is \[2"),
        (lambda o, t: o[:, 0] * 0 + 2, r"one score in \[0, 1\] per sample, but returned .* amc.Metric"),
    ],
)
def test_a_metric_that_cannot_be_used_is_refused_at_the_door_in_one_line(metric: Any, law: str) -> None:
    with pytest.raises(ValueError, match=law) as refusal:
        search(numbers(metric), **SETTINGS)
    assert "\n" not in str(refusal.value)


def test_what_no_metric_could_be_is_refused() -> None:
    with pytest.raises(ValueError, match="a metric's name must be"):
        Metric("loss", psnr.function)
    with pytest.raises(ValueError, match="transform belongs to a metric per 'element'"):
        Metric("m", psnr.function, transform=math.exp)
    with pytest.raises(ValueError, match=r"must be an amc\.Metric or a function"):
        as_metric(3)


def test_values_and_differences_are_written_by_unit_and_direction() -> None:
    plain, decibels = perplexity.measure, psnr.measure
    assert accuracy.measure.text(0.932) == "93.20%"
    assert decibels.text(31.2) == "31.20 dB"
    assert decibels.change(0.5, 0.25) == "+0.5 ± 0.25 dB"
    assert plain.against(12.5, 12.0) == "0.5 worse than"
    assert plain.against(12.0, 12.5) == "0.5 better than"
    assert decibels.against(30.0, 31.5) == "1.5 dB below"
