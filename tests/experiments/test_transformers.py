"""Rivals of transformers keep to their budgets and to what their papers minimize; data are read as published."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amc.tasks.metrics import IGNORED
from envs.regression.ridge import sums_of
from experiments.transformers import flap, kwon, owl
from experiments.transformers.minilm import stsb
from experiments.transformers.stories import STRIDE, WINDOW, read_stories, storyteller, windows
from experiments.transformers.sts import difference, spearman_of

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
COSTS = {"heads.0": 10.0, "heads.1": 10.0, "neurons.0": 1.0, "neurons.1": 1.0}


def fisher(seed: int) -> dict[str, kwon.FloatArray]:
    generator = np.random.default_rng(seed)
    return {name: generator.random(3 if name.startswith("heads") else 5) for name in COSTS}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [25.0, 31.0, 47.0])
def test_the_search_of_kwon_keeps_the_most_information_within_the_budget(seed: int, budget: float) -> None:
    scores = fisher(seed)
    kept = kwon.search_masks(scores, COSTS, budget)
    found = sum(scores[name][channels].sum() for name, channels in kept.items())
    assert sum(COSTS[name] * len(channels) for name, channels in kept.items()) <= budget
    best = 0.0
    for counts in itertools.product(range(1, 4), range(1, 4), range(1, 6), range(1, 6)):
        if sum(cost * count for cost, count in zip(COSTS.values(), counts, strict=True)) <= budget:
            best = max(best, sum(np.sort(s)[::-1][:n].sum() for s, n in zip(scores.values(), counts, strict=True)))
    assert found == pytest.approx(best)


def test_a_budget_below_one_head_and_neuron_of_each_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="the budget must leave each layer one head and one neuron"):
        kwon.search_masks(fisher(0), COSTS, 21.0)


def test_rearranging_loses_less_information_and_keeps_the_counts() -> None:
    gradients = {
        "neurons": np.random.default_rng(0).standard_normal((50, 12)) @ np.random.default_rng(1).random((12, 12))
    }
    kept = {"neurons": [0, 1, 2, 3, 4]}
    information = gradients["neurons"].T @ gradients["neurons"] / 50

    def lost(channels: list[int]) -> float:
        gone = np.ones(12)
        gone[channels] = 0
        return float(gone @ information @ gone)

    found = kwon.rearranged(kept, gradients)["neurons"]
    assert len(found) == 5
    assert lost(found) < lost(kept["neurons"])


def test_flap_ranks_all_layers_together_and_leaves_one_channel_of_each() -> None:
    scores = {"a": np.asarray([-2.0, -1.5, -1.0]), "b": np.asarray([0.5, 1.0, -1.2])}
    costs = {"a": 2.0, "b": 1.0}
    assert flap.within(scores, costs, 9.0) == {"a": [0, 1, 2], "b": [0, 1, 2]}
    assert flap.within(scores, costs, 4.5) == {"a": [2], "b": [0, 1]}
    assert flap.within(scores, costs, 3.0) == {"a": [2], "b": [1]}


def test_owl_leaves_layers_with_outliers_denser_at_the_same_mean() -> None:
    first, second = nn.Linear(8, 6, bias=False), nn.Linear(6, 4, bias=False)
    network = nn.Sequential(first, second)
    x = torch.ones(1, 3, 8)
    moments = {"0": sums_of(x, x[..., :0]), "1": sums_of(x[..., :6], x[..., :0])}
    with torch.no_grad():
        nn.init.ones_(first.weight)
        nn.init.ones_(second.weight)
        first.weight[0, 0] = 100.0
    found = owl.densities(network, ["0", "1"], moments, 0.5)
    assert found[0] - found[1] == pytest.approx(2 * owl.LAMBDA)
    assert np.average(found, weights=[48, 24]) == pytest.approx(0.5)


def test_differences_of_rank_correlations_are_paired() -> None:
    scores = np.random.default_rng(0).random(200)
    noise = np.random.default_rng(1).normal(size=200)
    near, far = ({"cosines": (scores + s * noise).tolist(), "scores": scores.tolist()} for s in (0.1, 0.3))
    mean, low, high = difference([near, near], [far, far])
    values = spearman_of(np.asarray([near["cosines"], far["cosines"]]), np.stack([scores, scores]))
    assert mean == pytest.approx(values[0] - values[1])
    assert 0 < low < mean < high
    assert difference([near], [near]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("length", [5, WINDOW, WINDOW + 1, WINDOW + 2, 3 * WINDOW])
def test_windows_ask_for_every_word_of_a_story_once(length: int) -> None:
    story = list(range(1, length + 1))
    ids, targets = windows([story])
    asked = targets[targets != IGNORED]
    assert asked.tolist() == story[1:]
    assert ids.shape[1] == WINDOW
    for row, target in zip(ids, targets, strict=True):
        places = np.flatnonzero(target != IGNORED)
        assert (row[places] + 1 == target[places]).all()
        assert row[0] == 1 or places[0] >= WINDOW - STRIDE


@pytest.mark.slow
def test_a_language_model_has_its_published_perplexity() -> None:
    data = DATA / "stories260k-tinystories"
    if not data.exists():
        pytest.skip("needs the language model of ../shared/data")
    network = storyteller(data / "model.safetensors")
    losses = []
    with torch.no_grad():
        for story in read_stories(data):
            ids = torch.tensor([story])
            losses.append(F.cross_entropy(network(ids[:, :-1])[0], ids[0, 1:], reduction="none"))
    every = torch.cat(losses)
    assert len(every) == 3188
    assert math.exp(float(every.mean())) == pytest.approx(3.492, abs=0.001)


@pytest.mark.slow
def test_sentences_have_the_published_embeddings_by_their_words_alone() -> None:
    data = DATA / "minilm-l6-stsb"
    if not data.exists():
        pytest.skip("needs MiniLM of ../shared/data")
    task = stsb(data)
    inputs, scores = task.test.batch(range(64))
    with torch.no_grad():
        vectors = task.network(**inputs)
    found = (vectors[:, 0] * vectors[:, 1]).sum(dim=1)
    assert float(spearman_of(found[None].numpy(), scores[None].numpy())[0]) > 90
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(64, 2))
