"""The contract of every searcher (`agents.searcher.Searcher`), on a toy problem of seven steps."""

from __future__ import annotations

import copy
import json
import pickle
import random
from collections.abc import Sequence
from typing import Any

import cloudpickle
import numpy as np
import torch

from agents.searcher import MakeSearcher, Searcher, SearcherState, SearchInputs, Trajectory
from agents.settings import DDPGSettings
from amc.problem.given.door import SEARCHER, is_maker
from amc.problem.given.fit import check_fit
from amc.testing.suite import Suite, require
from amc.testing.toy import SIZE, STEPS, toy

STARTS = (("uniform", (0.45,) * STEPS), ("falling", tuple(np.linspace(0.9, 0.3, STEPS).tolist())))
SMALL = DDPGSettings(hidden=(16, 16), warmup_episodes=6, replay_episodes=12)

Given = Searcher | MakeSearcher
"""A searcher, or what makes one."""


def made(given: Given, seed: int = 0, starts: Sequence[tuple[str, Sequence[float]]] = STARTS) -> Searcher:
    """A searcher for the toy: made, or a copy."""
    if not is_maker(given):
        return copy.deepcopy(given)  # type: ignore[return-value]  # it is no function
    inputs = SearchInputs(
        observation_size=SIZE, steps=STEPS, seed=seed, starts=starts, settings=SMALL, shares=toy().cost.tolist()
    )
    searcher: Searcher = given(inputs)  # type: ignore[operator]  # it is no searcher
    return searcher


def play_round(searcher: Searcher, count: int = 4) -> list[Trajectory]:
    """Plays a round, and tells the searcher."""
    played = [toy().play(plan) for plan in searcher.propose(count)]
    searcher.tell(played)
    return played


def rewards(searcher: Searcher, rounds: int, count: int = 4) -> list[float]:
    """Rewards of some rounds."""
    return [trajectory.reward for _ in range(rounds) for trajectory in play_round(searcher, count)]


def stored(state: SearcherState) -> SearcherState:
    """The state as it comes back from arrays on disk and JSON."""
    arrays = {name: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for name, a in state.arrays.items()}
    return SearcherState(arrays, json.loads(json.dumps(state.numbers, allow_nan=False)))


def same_states(one: SearcherState, other: SearcherState) -> bool:
    """Whether two states hold the same."""
    return (
        one.numbers == other.numbers
        and one.arrays.keys() == other.arrays.keys()
        and all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
    )


def it_has_the_methods_of_a_searcher(given: Given) -> None:
    """`propose`, `tell`, `state`, `load`, with their arguments."""
    check_fit("searcher", made(given), Searcher, SEARCHER)


def it_proposes_as_many_labelled_plans_as_asked(given: Given) -> None:
    """Whatever the size of the round."""
    searcher = made(given)
    for count in (1, 3, 8):
        plans = searcher.propose(count)
        require(isinstance(plans, list) and len(plans) == count, f"asked for {count} plans, it proposed {plans!r}")
        require(all(isinstance(plan.label, str) and plan.label for plan in plans), "a plan has no label")
        searcher.tell([toy().play(plan) for plan in plans])


def a_plan_plays_the_same_after_pickling(given: Given) -> None:
    """It may be played by a worker."""
    searcher = made(given)
    for _ in range(4):
        for plan in searcher.propose(3):
            twin = pickle.loads(cloudpickle.dumps(plan))
            require(twin.label == plan.label, "a pickled plan has another label")
            same = np.array_equal(toy().play(plan).actions, toy().play(twin).actions)
            require(same, f"a pickled plan {plan.label!r} plays other actions")
        play_round(searcher, 3)


def asking_twice_gives_the_same_plans(given: Given) -> None:
    """`propose` changes nothing."""
    searcher = made(given)
    rewards(searcher, rounds=3)
    once, twice = ([toy().play(plan).actions for plan in searcher.propose(3)] for _ in range(2))
    require(np.array_equal(once, twice), "propose, asked again without tell, gives other plans")


def a_start_is_proposed_as_it_is_and_once(given: Given) -> None:
    """A searcher need not propose the starts; if it does, their labels are theirs alone."""
    searcher = made(given)
    known, seen = dict(STARTS), list[str]()
    for count in (1, 1, 4, 4):
        for plan in searcher.propose(count):
            if plan.label in known:
                played = [plan(step, np.zeros(SIZE, np.float32)) for step in range(STEPS)]
                require(played == list(known[plan.label]), f"the start {plan.label!r} is played with other actions")
                seen.append(plan.label)
        play_round(searcher, count)
    require(len(seen) == len(set(seen)), f"a start is proposed more than once: {seen}")


def a_failed_episode_counts_as_played(given: Given) -> None:
    """It stands as None among what `tell` gets."""
    searcher, resumed = made(given), made(given)
    for number in range(4):
        plans = searcher.propose(4)
        searcher.tell([None if k == number % 4 else toy().play(plan) for k, plan in enumerate(plans)])
    resumed.load(stored(searcher.state()))
    on, again = ([toy().play(plan).actions for plan in one.propose(3)] for one in (searcher, resumed))
    require(np.array_equal(on, again), "after failed episodes, a restored searcher proposes other plans")


def a_round_that_failed_as_a_whole_is_survived(given: Given) -> None:
    """However large it was, and in the first round too."""
    searcher = made(given)
    for _ in range(3):
        searcher.propose(12)
        searcher.tell([None] * 12)
    play_round(searcher)
    require(len(searcher.propose(4)) == 4, "after failed rounds it does not propose what it is asked for")


def the_same_seed_gives_the_same_search(given: Given) -> None:
    """From nothing, and with starts."""
    for starts in ((), STARTS):
        one, other = made(given, 3, starts), made(given, 3, starts)
        require(rewards(one, rounds=3) == rewards(other, rounds=3), "two searchers of one seed play otherwise")
        require(same_states(one.state(), other.state()), "two searchers of one seed end in different states")


def restored_it_goes_on_as_if_uninterrupted(given: Given) -> None:
    """From what files can hold, between any two rounds."""
    for before in (0, 3):
        uninterrupted, restored = made(given), made(given)
        rewards(uninterrupted, before)
        restored.load(stored(uninterrupted.state()))
        require(same_states(uninterrupted.state(), restored.state()), f"after {before} rounds, load loses something")
        on, again = rewards(uninterrupted, rounds=2), rewards(restored, rounds=2)
        require(on == again, f"restored after {before} rounds, it goes on otherwise")
        same = same_states(uninterrupted.state(), restored.state())
        require(same, f"restored after {before} rounds, it learns something else")


def a_state_is_a_snapshot(given: Given) -> None:
    """Later calls do not change it."""
    searcher = made(given)
    rewards(searcher, rounds=3)
    state = searcher.state()
    before = stored(state)
    rewards(searcher, rounds=2)
    require(same_states(state, before), "a state that was given away has changed: copy arrays in state()")


def global_random_states_and_threads_stay_untouched(given: Given) -> None:
    """Those of numpy, torch and `random` are the caller's."""
    before = _global_state()
    searcher = made(given)
    rewards(searcher, rounds=3)
    searcher.load(searcher.state())
    require(_global_state() == before, "a global random state has changed: use agents.searcher.keyed_generator")


def what_others_draw_does_not_change_the_search(given: Given) -> None:
    """Nor whether the caller records gradients."""

    def seeded(seed: int) -> list[float]:
        kept = np.random.get_state(), random.getstate()
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                np.random.seed(seed)
                random.seed(seed)
                torch.manual_seed(seed)
                return rewards(made(given), rounds=3)
        finally:
            np.random.set_state(kept[0])
            random.setstate(kept[1])

    require(seeded(1) == seeded(2), "a global random state changes what it proposes: key every draw by the seed")


def _global_state() -> Any:
    numpy_state = np.random.get_state(legacy=False)
    return f"{random.getstate()} {numpy_state} {torch.get_rng_state().tolist()} {torch.get_num_threads()}"


check_searcher = Suite(
    "searcher",
    it_has_the_methods_of_a_searcher,
    it_proposes_as_many_labelled_plans_as_asked,
    a_plan_plays_the_same_after_pickling,
    asking_twice_gives_the_same_plans,
    a_start_is_proposed_as_it_is_and_once,
    a_failed_episode_counts_as_played,
    a_round_that_failed_as_a_whole_is_survived,
    the_same_seed_gives_the_same_search,
    restored_it_goes_on_as_if_uninterrupted,
    a_state_is_a_snapshot,
    global_random_states_and_threads_stay_untouched,
    what_others_draw_does_not_change_the_search,
)
"""Of a `Searcher`, or of a function of `SearchInputs` that makes one."""
