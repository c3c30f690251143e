"""Objects of the user's at every door: what does not fit, and what does nonsense, is one line that names it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import amc
from agents.random_search import RandomSearch
from agents.searcher import FixedPlan, SearcherState, SearchInputs
from agents.settings import DDPGSettings
from amc.problem.given.door import competitors, passed, taken
from amc.problem.given.objects import NO_OBJECTS
from amc.problem.given.searcher import watched_searcher
from amc.problem.prepare import prepare
from amc.problem.setup import set_up
from amc.testing.specimens import halved, specimens
from envs.importance.importance import Evidence
from envs.repair.repair import Pruned
from envs.reward import Evaluation
from envs.units.units import Unit
from hw_profiles.cost import cost_of
from tests.tasks.small import make_task

INPUTS = SearchInputs(observation_size=6, steps=3, seed=0, starts=(), settings=DDPGSettings(), shares=(1.0, 1.0, 1.0))


def random(inputs: SearchInputs) -> RandomSearch:
    return RandomSearch(inputs.steps, inputs.seed, inputs.starts)


class Silent(RandomSearch):
    tell: Any = None


class Curious(RandomSearch):
    def propose(self) -> Any:  # type: ignore[override]
        return []


class Energy:
    name, unit = "energy", "pJ"

    def many(self, layout: Any, widths: Any) -> Any:
        return widths.outputs.sum(axis=1).astype(float)


class Flat(Energy):
    def many(self, layout: Any) -> Any:  # type: ignore[override]
        return 1.0


class Unnamed(Energy):
    name: Any = None


class Shipped(Energy):
    name = "macs"


class Unrepairing:
    def __init__(self, dense: Any) -> None:
        self.dense = dense


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"searcher": Silent(3, 0)}, "needs the method tell, called as tell.trajectories., but Silent has none"),
        ({"searcher": Curious(3, 0)}, r"called as propose\(count\), but propose of Curious takes \(\)"),
        ({"searcher": 3}, r"needs the method propose, called as propose\(count\), but int has none"),
        ({"searcher": lambda: None}, r"called as \(inputs\), but <lambda> takes \(\)"),
        ({"searcher": "dpg"}, "must be one of ddpg, .* but got 'dpg': did you mean ddpg"),
        ({"costs": [Flat()]}, r"called as many\(layout, widths\), but many of energy takes \(layout\)"),
        ({"costs": [Unnamed()]}, "needs the attribute 'name', but Unnamed has none"),
        ({"costs": [Shipped()]}, "needs a name of its own, but 'macs' is shipped"),
        ({"costs": [Energy(), Energy()]}, "told apart by their names, but got energy, energy"),
        ({"task": make_task(), "checkpoint": "a.safetensors"}, "has data and weights, but got checkpoint="),
        ({"costs": "energy"}, "needs the method many"),
        ({"importance": lambda unit: None}, r"called as \(unit, evidence\), but .* takes \(unit\)"),
        ({"importance": 0.5}, r"called as \(unit, evidence\), but float has none"),
        ({"repair": Unrepairing}, r"called as \(pruned\), but Unrepairing has none"),
        ({"repair": lambda pruned: None}, "must be a class"),
        ({"reward": 0.5}, "must be called as .evaluation., but float is no function"),
        ({"reward": lambda a, b: 0.0}, r"takes \(a, b\)"),
        ({"profile": {"kernels": []}}, "must be a name, a file, a Profile or a LatencyTable, but got dict"),
        ({"task": torch.nn.Linear(2, 2)}, "needs an amc.Task, .* but got Linear"),
        ({"epochs": 3}, "must be a known one, but got 'epochs'"),
    ],
)
def test_an_object_that_does_not_fit_is_refused_at_the_door(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        passed(**{"task": "digits", **given})
    assert "\n" not in str(error.value)


def test_the_configuration_holds_names_in_parentheses_and_keeps_the_rest() -> None:
    settings = {"compression": {"images": 64}}
    objects = {"searcher": random, "reward": lambda evaluation: 0.0, "importance": lambda unit, evidence: None}
    config, held = passed(make_task(), {"energy": 0.5, "macs": 0.6}, [Energy()], **objects, **settings)
    assert (config.task, config.agent, config.reward) == ("(small)", "(random)", "(<lambda>)")
    assert (config.compression.importance, config.compression.images) == ("(<lambda>)", 64)
    assert config.constraint == {"(energy)": 0.5, "macs": 0.6}
    assert settings == {"compression": {"images": 64}}
    held.check(config)
    with pytest.raises(ValueError, match=r"costs \(energy\), importance .* searcher \(random\), task \(small\)"):
        NO_OBJECTS.check(config)
    with pytest.raises(ValueError, match=r"every object must be used, but the search has no searcher \(random\)"):
        held.check(config.model_copy(update={"agent": "ddpg"}))


def test_a_recipe_is_searched_as_a_name_is(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('task = "digits"\nagent = "cmaes"\nseed = 3\n')
    config = passed(str(tmp_path / "recipe.toml"), {"params": 0.5}, episodes=7).config
    assert (config.task, config.agent, config.seed, config.episodes) == ("digits", "cmaes", 3, 7)
    assert passed(tmp_path / "recipe.toml", searcher=random).config.agent == "(random)"


def test_agents_of_a_study_are_told_apart() -> None:
    names, each = competitors(NO_OBJECTS, ["ddpg", random])
    assert names == ("ddpg", "(random)")
    assert (each["ddpg"].searcher, each["(random)"].searcher) == (None, random)
    with pytest.raises(ValueError, match=r"two are called \(random\)"):
        competitors(NO_OBJECTS, [random, random])


class Locked(FixedPlan):
    """A plan that holds what cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a lock")


def proposing(*plans: Any) -> Callable[[SearchInputs], Any]:
    class Nonsense(RandomSearch):
        def propose(self, count: int) -> Any:
            return list(plans)

    return lambda inputs: Nonsense(inputs.steps, inputs.seed)


GOOD = FixedPlan((0.5,) * 3, "good")


@pytest.mark.parametrize(
    ("plans", "said"),
    [
        ([GOOD], "must propose as many plans as it is asked for, 2, but <lambda> gave 1"),
        ([GOOD, 0.5], "must have a label and be called as .step, observation., but <lambda> proposed a float"),
        ([GOOD, Locked((0.5,) * 3, "locked")], "must be picklable, .* but that of <lambda> is not .*lock"),
    ],
)
def test_a_searcher_that_proposes_nonsense_is_named(plans: list[Any], said: str) -> None:
    searcher = watched_searcher(proposing(*plans), INPUTS)
    with pytest.raises(ValueError, match=said):
        searcher.propose(2)


@pytest.mark.parametrize("action", [1.5, -0.1, float("nan"), "half"])
def test_an_action_that_is_none_is_named(action: Any) -> None:
    class Wild:
        label = "wild"

        def __call__(self, step: int, observation: Any) -> Any:
            return action

    (plan,) = watched_searcher(proposing(Wild()), INPUTS).propose(1)
    with pytest.raises(ValueError, match=r"a plan of the searcher <lambda> (gave|raised) .* at step 0"):
        plan(0, np.zeros(6, np.float32))


def test_a_searcher_that_raises_or_keeps_what_no_file_holds_is_named() -> None:
    class Broken(RandomSearch):
        def tell(self, trajectories: Any) -> None:
            raise KeyError("a shoe")

        def state(self) -> SearcherState:
            return SearcherState({}, {"lock": threading.Lock()})  # type: ignore[dict-item]

    searcher = watched_searcher(lambda inputs: Broken(inputs.steps, 0), INPUTS)
    with pytest.raises(ValueError, match=r"the searcher <lambda> raised KeyError: 'a shoe' .* in tell"):
        searcher.tell([])
    with pytest.raises(ValueError, match="must be JSON, but those of <lambda> are not"):
        searcher.state()


def test_an_object_is_copied_so_that_each_search_begins_alike() -> None:
    own = RandomSearch(3, 0)
    first = watched_searcher(own, INPUTS)
    first.tell([None] * len(first.propose(4)))
    again = watched_searcher(own, INPUTS).propose(1)[0]
    assert again(0, np.zeros(6, np.float32)) == RandomSearch(3, 0).propose(1)[0](0, np.zeros(6, np.float32))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda widths: np.full(len(widths.outputs), np.nan), "finite and not negative, but 'energy' gave nan"),
        (lambda widths: -widths.outputs.sum(axis=1), "finite and not negative, but 'energy' gave -"),
        (lambda widths: widths.outputs, r"one value per variant, \[1\], but 'energy' gave \[1, "),
        (lambda widths: dict[str, Any]()["price"], "the cost 'energy' raised KeyError: 'price'"),
    ],
)
def test_a_cost_that_gives_nonsense_is_named(value: Callable[[Any], Any], said: str) -> None:
    class Odd(Energy):
        def many(self, layout: Any, widths: Any) -> Any:
            return value(widths)

    (cost,) = taken(costs=Odd()).costs
    with pytest.raises(ValueError, match=said):
        cost_of(cost, specimens()[0].anatomy.family.dense)


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda unit, evidence: torch.zeros(1, unit.channels), r"one score per channel, .* but odd gave \[1, "),
        (lambda unit, evidence: [0.0] * unit.channels, "but odd gave list"),
        (lambda unit, evidence: torch.full((unit.channels,), torch.nan), "must give finite scores, but some of odd"),
        (lambda unit, evidence: evidence.nothing, "the importance odd raised AttributeError"),
    ],
)
def test_an_importance_that_gives_nonsense_is_named(score: Callable[[Unit, Evidence], Any], said: str) -> None:
    def odd(unit: Unit, evidence: Evidence) -> Tensor:
        found: Tensor = score(unit, evidence)
        return found

    with pytest.raises(ValueError, match=said):
        specimens()[0].compressor(importance=taken(importance=odd).importance)


class Poison:
    def __init__(self, dense: Any) -> None:
        self.dense = dense

    def __call__(self, pruned: Pruned) -> None:
        for module in pruned.network.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight = torch.nn.Parameter(module.weight * float("nan"))


class Clumsy(Poison):
    def __call__(self, pruned: Pruned) -> None:
        raise RuntimeError("lost")


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Poison, "must leave finite weights, but Poison left others in"), (Clumsy, "Clumsy raised RuntimeError: lost")],
)
def test_a_repair_that_leaves_nonsense_is_named(kind: type[Any], said: str) -> None:
    compressor = specimens()[0].compressor(repair=taken(repair=kind).repair)
    with pytest.raises(ValueError, match=said):
        compressor.compress(halved(compressor))


class Leaking(Poison):
    def __call__(self, pruned: Pruned) -> None:
        for parameter in self.dense.network.parameters():
            parameter.data = parameter.data * 0.5


def test_a_repair_that_changes_the_dense_network_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    quick: dict[str, Any] = {"compression": {"images": 64, "quick_images": 64}, "backend": {"name": "fp32"}}
    setup = set_up(*_before_progress(passed(make_task(), repair=Leaking, **quick)))
    with pytest.raises(ValueError, match="must leave the dense network as it is, but Leaking changed it"):
        prepare(setup)


def failing(evaluation: Evaluation) -> float:
    raise KeyError("a shoe")


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (failing, r"reward '\(failing\)' must turn an Evaluation into a number, but raised KeyError"),
        (lambda evaluation: float("nan"), r"must be a finite number, but '\(<lambda>\)' gave nan"),
    ],
)
def test_a_reward_that_gives_nonsense_is_named(reward: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        set_up(*_before_progress(passed(make_task(), reward=reward)))


def _before_progress(given: Any) -> tuple[Any, Any, Any]:
    return given.config, lambda *_: None, given.objects


def test_what_cannot_go_to_workers_is_named_before_any_work() -> None:
    lock = threading.Lock()

    def holding(evaluation: Evaluation) -> float:
        with lock:
            return evaluation.accuracy

    with pytest.raises(ValueError, match="must be picklable, but the reward holding is not"):
        taken(reward=holding).check_picklable()
    taken(reward=lambda evaluation: 0.0, importance=lambda unit, evidence: None).check_picklable()


def test_functions_take_what_they_document() -> None:
    with pytest.raises(ValueError, match="one cost with a list of budgets, but 0 have one"):
        amc.sweep("digits", {"macs": 0.5})
    with pytest.raises(ValueError, match="must be a pair"):
        amc.tune("digits", {"learning.sigma": (0.3, 0.1)})
    with pytest.raises(ValueError, match=r"holds no config.toml"):
        amc.resume("nowhere")
