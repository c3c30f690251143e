"""The configuration: recipes, overrides, and every wrong value in one line."""

from pathlib import Path
from typing import get_args

import pytest

from agents.algorithms import ALGORITHMS
from agents.settings import PAPER_SETTINGS, Algorithm, LearningConfig
from amc.config import budgets
from amc.config.budgets import parse_constraints
from amc.config.keys import choices_of, keys_of
from amc.config.parts import BackendConfig
from amc.config.search import LIGHT, SearchConfig, load_config, parse_override
from amc.scoring.scorer import Backend
from envs.compression.settings import CompressionConfig, CompressionSettings
from envs.space.rules import Rules
from hw_profiles import cost

OLD = """\
task = "digits"
choose = "channels"
patterns = [
    "2:4",
]
densities = [
    0.05,
    0.1,
]
agent = "ddpg"
preset = "paper"
episodes = 400
warmup = 100
round_size = 1
starts = []
reward = "accuracy"
reward_split = "validation"
reward_images = 2500
confirm = 5
seed = 0
device = "cpu"

[constraint]
macs = 0.5

[backend]
name = "bf16"
difference = 0.001

[learning]
hidden = [
    16,
    16,
]
sigma = 0.2

[rules]
min_ratio = 0.0
max_ratio = 1.0
skip = [
    "stem*",
]

[compression]
importance = "l1"
repair = "layerwise"
images = 64
quick_images = 500
producers = true
selection = "magnitude"
reestimate_images = 0
memory_gb = 1.0

[knapsack]
damages = [
    "logits",
]
images = 512
widths = 10
audition_images = 2000

[savings]
error = 0.01
"""

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
        (
            {"task": "digits", "agent": "ppo"},
            "agent must be one of ddpg, td3, sac, cmaes, swap, tpe, gp, random, knapsack, uniform, but got 'ppo'",
        ),
        (
            {"task": "digits", "compression.importance": "l7"},
            "importance must be one of obs, l1, l2, bn_scale, fpgm, taylor, fluctuation, random, but got 'l7'",
        ),
        (
            {"task": "digits", "compression.repair": "magic"},
            "repair must be one of none, layerwise, sequential, but got 'magic'",
        ),
        (
            {"task": "digits", "knapsack.damages": ["joules"]},
            "knapsack.damages.0 must be one of kl, kl1, logits, loss, but got 'joules'",
        ),
        ({"task": "digits", "learning.gamma": 2}, "learning.gamma: Input should be less than or equal to 1"),
        ({"task": "digits", "learning": "hard"}, "learning must be \"light\" or a table of settings, but got 'hard'"),
        ({"task": "digits", "task.colour": 1}, "plain value"),
        ({"task": "digits", "constraint": {"macs": 0}}, "positive number"),
        ({"task": "digits", "constraint": {"macs": -1.0}}, "positive number"),
        ({"task": "digits", "constraint": {"macs": float("nan")}}, "positive number"),
        ({"task": "digits", "constraint": {"macs": float("inf")}}, "positive number"),
        ({"task": "digits", "constraint": {"macs": "half"}}, "positive number"),
        (
            {"task": "digits", "constraint": {"joules": 1}},
            "one of macs, params, memory, memory_cached, latency, latency_ms, flops",
        ),
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


@pytest.mark.parametrize(
    ("key", "cure"),
    [
        ("compression.image", "did you mean compression.images? (`amc config` lists all)"),
        ("compresion.images", "did you mean compression.images? (`amc config` lists all)"),
        ("learning.sgima", "did you mean learning.sigma? (`amc config` lists all)"),
        ("knapsack.image", "did you mean knapsack.images? (`amc config` lists all)"),
        ("agnet", "did you mean agent? (`amc config` lists all)"),
        ("round_to", "did you mean rules.round_to? (`amc config` lists all)"),
        ("learning.colour", "`amc config` lists all"),
        ("colour", "`amc config` lists all"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(key: str, cure: str) -> None:
    with pytest.raises(ValueError, match="every configuration key") as caught:
        load_config(None, {"task": "digits", key: 1})
    assert str(caught.value) == f"every configuration key must be a known one, but got {key!r}: {cure}"


def test_a_recipe_with_an_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('task = "digits"\n[learning]\nbatchsize = 64\n')
    with pytest.raises(ValueError, match=r"but got 'learning.batchsize': did you mean learning.batch_size\?"):
        load_config(tmp_path / "recipe.toml", {})


def test_every_key_has_a_type_a_default_and_a_meaning() -> None:
    keys = {key.name: key for key in keys_of(SearchConfig)}
    assert all(key.type and key.meaning for key in keys.values())
    assert [name for name, key in keys.items() if key.required] == ["task"]
    assert keys["compression.images"][1:3] == ("integer >= 16", 2000)
    assert keys["savings.error"][1:3] == ("number > 0 and < 0.5", 0.01)
    assert keys["learning.hidden"][1:3] == ("list of integers", [128, 128])
    assert keys["compression.ridge"].default_text == "left out"
    assert keys["constraint"].default_text == "macs=0.5"
    assert keys["starts"].type == "list of knapsack, uniform"


def test_every_default_may_be_written_as_it_is() -> None:
    given = {key.name: key.default for key in keys_of(SearchConfig) if key.default is not None}
    config = load_config(None, {"task": "digits", **given})
    apart = {"learning"}  # only what is set is kept there, and all is set now
    assert config.model_dump(exclude=apart) == SearchConfig(task="digits").model_dump(exclude=apart)
    assert config.learning == LearningConfig()


def test_names_in_the_configuration_are_those_of_the_registries() -> None:
    assert get_args(Algorithm) == tuple(ALGORITHMS)
    assert cost.LATENCY == budgets.LATENCY
    assert choices_of(BackendConfig.model_fields["name"]) == ("auto", *get_args(Backend))


def test_what_a_run_derives_is_added_to_what_a_recipe_sets() -> None:
    compression = CompressionConfig(images=64, importance="l1")
    settings = CompressionSettings(**compression.model_dump(), seed=3, device="cuda")
    assert settings.model_dump(include=set(CompressionConfig.model_fields)) == compression.model_dump()
    for derived in ("compression.seed", "compression.device", "learning.algorithm", "learning.warmup_episodes"):
        with pytest.raises(ValueError, match="must be a known one"):
            load_config(None, {"task": "digits", derived: 1})


def test_rules_leave_out_what_the_configuration_leaves_out() -> None:
    assert Rules().model_dump() == SearchConfig(task="digits").rules.model_dump()


def test_a_learner_keeps_only_what_is_set_so_that_a_preset_can_say_the_rest() -> None:
    config = load_config(None, {"task": "digits", "preset": "paper", "learning.sigma": 0.2, "learning.hidden": [8]})
    assert config.model_dump(mode="json")["learning"] == {"hidden": [8], "sigma": 0.2}
    settings = PAPER_SETTINGS.changed(**config.learning.model_dump(exclude_unset=True))
    assert (settings.sigma, settings.hidden, settings.tau) == (0.2, (8,), PAPER_SETTINGS.tau)
    light = load_config(None, {"task": "digits", "learning": "light"})
    assert light.learning.model_dump(exclude_unset=True) == LIGHT
    assert load_config(None, light.model_dump(mode="json", exclude_none=True)) == light


def test_the_file_of_an_old_run_is_read(tmp_path: Path) -> None:
    """As `amc search --preset paper --set learning.sigma=0.2` wrote it before learning was a model of its own."""
    path = tmp_path / "config.toml"
    path.write_text(OLD)
    config = load_config(path, {})
    assert (config.learning.sigma, config.compression.images, config.rules.skip) == (0.2, 64, ("stem*",))
    later = 'attention = "auto"\n'  # a key that there was not: it has its default
    assert config.to_toml() == OLD.replace("skip = [", f"{later}skip = [")


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
