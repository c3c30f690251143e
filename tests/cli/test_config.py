"""The configuration: recipes, overrides, and every wrong value in one line."""

from pathlib import Path

import pytest

from amc.config.budgets import parse_constraints
from amc.config.search import SearchConfig, load_config, parse_override

RECIPES = sorted((Path(__file__).resolve().parents[2] / "experiments").rglob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_loads(recipe: Path) -> None:
    assert load_config(recipe, {}).task


def test_the_written_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(RECIPES[0], {"seed": 7, "rules.skip": ("a*",), "constraint": {"params": 0.25, "macs": 0.5}})
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "config.toml", {}) == config


def test_options_override_the_recipe_and_none_does_not() -> None:
    config = load_config(RECIPES[0], {"seed": 3, "episodes": None})
    assert config.seed == 3
    assert config.episodes == load_config(RECIPES[0], {}).episodes


def test_flops_is_a_synonym_for_macs() -> None:
    assert SearchConfig(task="digits", constraint={"flops": 0.5}).constraint == {"macs": 0.5}


def test_several_constraints_keep_their_order() -> None:
    assert list(parse_constraints(["params=0.5", "macs=1e6"])) == ["params", "macs"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({}, "needs a task"),
        ({"task": "digits", "agent": "ppo"}, "'ddpg', 'td3', 'sac', 'cmaes', 'random', 'knapsack' or 'uniform'"),
        ({"task": "digits", "compression.importance": "l7"}, "'obs', 'l1', 'l2'"),
        ({"task": "digits", "compression.repair": "magic"}, "'none', 'layerwise' or 'sequential'"),
        ({"task": "digits", "colour": 1}, "'colour'"),
        ({"task": "digits", "rules.colour": 1}, "'rules.colour'"),
        ({"task": "digits", "task.colour": 1}, "plain value"),
        ({"task": "digits", "constraint": {"macs": 0}}, "positive number"),
        ({"task": "digits", "constraint": {"macs": -1.0}}, "positive number"),
        ({"task": "digits", "constraint": {"macs": float("nan")}}, "positive number"),
        ({"task": "digits", "constraint": {"macs": float("inf")}}, "positive number"),
        ({"task": "digits", "constraint": {"macs": "half"}}, "positive number"),
        ({"task": "digits", "constraint": {"joules": 1}}, "one of macs, params, memory, latency, latency_ms, flops"),
        ({"task": "digits", "constraint": {}}, "at least one"),
        ({"task": "digits", "episodes": 0}, "episodes"),
        ({"task": "digits", "rules.round_to": 0}, "round_to"),
        ({"task": "digits", "rules.max_ratio": 1.5}, "max_ratio"),
    ],
)
def test_wrong_values_are_told_in_one_line(overrides: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        load_config(None, overrides)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["macs", "macs=", "macs=half", "=0.5x"])
def test_a_constraint_must_read_name_equals_number(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=NUMBER"):
        parse_constraints([text])


def test_two_budgets_for_one_cost_are_refused() -> None:
    with pytest.raises(ValueError, match="one budget"):
        parse_constraints(["macs=0.5", "flops=0.4"])


def test_a_recipe_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("task = [")
    with pytest.raises(ValueError, match="readable TOML"):
        load_config(tmp_path / "bad.toml", {})
    with pytest.raises(ValueError, match="readable TOML"):
        load_config(tmp_path / "missing.toml", {})


def test_overrides_are_read_as_toml_or_as_a_bare_word() -> None:
    assert parse_override("compression.images=500") == ("compression.images", 500)
    assert parse_override("rules.skip=['a', 'b']") == ("rules.skip", ["a", "b"])
    assert parse_override("compression.repair=none") == ("compression.repair", "none")
    with pytest.raises(ValueError, match="KEY=VALUE"):
        parse_override("nothing")


def test_the_paper_preset_fills_only_what_is_left_open() -> None:
    config = load_config(None, {"task": "digits", "preset": "paper", "episodes": 7, "compression.images": 64})
    assert (config.episodes, config.warmup, config.round_size, config.starts) == (7, 100, 1, ())
    assert config.compression.repair == "layerwise"
    assert config.compression.images == 64


def test_paths_are_made_absolute_so_that_a_run_can_be_resumed_from_anywhere() -> None:
    assert load_config(None, {"task": "digits", "data": Path("here")}).data == Path.cwd() / "here"
