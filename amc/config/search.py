"""The configuration of a search: checked by pydantic, recipes in TOML, one dotted override at a time."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from agents.names import AGENTS
from agents.settings import LearningConfig
from amc.config.budgets import COVERAGE, LATENCY, checked_budgets, with_range, with_sparsity
from amc.config.keys import explain
from amc.config.own_code import refuse_code
from amc.config.parts import BackendConfig, KnapsackConfig, Part, SavingsConfig
from envs.compression.settings import CompressionConfig
from envs.lookup import OneOf, passed_in, unknown
from envs.reward import REWARDS
from envs.space.kinds import KINDS
from envs.space.settings import RulesConfig
from envs.units.attention.decided import Decision
from hw_profiles.documents import MAX_TOML_BYTES, parse_toml, read_text

Start = Literal["knapsack", "uniform"]
SINGLE = ("knapsack", "uniform")
"""Agents that compute one policy; the others search (`agents.names.AGENTS`)."""

RANGED = ("ddpg", "td3", "sac", "cmaes")
"""Agents that learn for a range of budgets: they can be asked for a policy without exploring."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "episodes": 400,
        "warmup": 100,
        "round_size": 1,
        "starts": (),
        "reward": "accuracy",
        "compression": {"importance": "l1", "repair": "layerwise"},
    },
}
"""What a preset changes, beside the learner's own `agents.settings.PAPER_SETTINGS`: He et al., AMC, ECCV 2018."""

MOST_EPISODES = 1_000_000
"""Of a search; sizes that a recipe may ask for are bounded, so that none fills the memory or never ends unnoticed."""

LIGHT: dict[str, Any] = {"most_steps": 64, "batch_size": 256, "replay_episodes": 192}
"""Learning that keeps a driver of many workers free: few, large gradient steps after a large round. What that costs
in quality: experiments/results/light_learning.md."""


class SearchConfig(Part):
    """Everything that determines a search."""

    task: str = Field(
        description="what is pruned: digits, cluttered-digits, cifar10-resnet20, cifar10-resnet56 or "
        "package.module:function"
    )
    data: Path | None = Field(None, description="folder of the task's data")
    checkpoint: Path | None = Field(None, description="weights of the task: safetensors, or a torch state dict")
    constraint: dict[str, float] = Field(
        default_factory=lambda: {"macs": 0.5},
        description="COST=BUDGET, a fraction of dense (<= 1) or absolute, or LOW:HIGH for one agent of all budgets "
        "between; several hold together. Costs are macs "
        "(synonym: flops), params, memory, memory_cached (with keys and values kept), latency (fraction), latency_ms; "
        "with patterns sparsity=2:4@RULES (multiple-of-4, cutlass-float16, ...) and coverage=SHARE",
    )
    budget_range: dict[str, tuple[float, float]] | None = Field(
        None, description="lowest and highest budget by cost, where one agent learns all between; set by constraint"
    )
    choose: Annotated[str, OneOf(KINDS)] = Field(
        "channels", description="what is decided: widths, a pattern per layer, a density per layer, widths and patterns"
    )
    branches: bool = Field(False, description="whole residual branches may be removed, too")
    patterns: tuple[str, ...] = Field(
        ("2:4",), min_length=1, max_length=64, description="what layers may choose beside dense"
    )
    densities: tuple[float, ...] = Field(
        (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7), min_length=1, max_length=1000, description="densities beside dense"
    )
    sparsity: str | None = Field(None, description="PATTERN@RULES: the pattern and the shapes that a device takes")
    profile: str | None = Field(None, description="file or name of the profile that latency budgets count by")
    profiles: tuple[str, ...] = Field(
        (), max_length=64, description="profiles of several devices, for all of which one agent learns a latency range"
    )
    agent: Annotated[str, OneOf(AGENTS, SINGLE, objects=True)] = Field("ddpg", description="what chooses the widths")
    preset: Literal["default", "paper"] = Field(
        "default", description="settings of ddpg, td3 and sac; paper: as He et al. 2018"
    )
    episodes: int = Field(
        120, ge=1, le=MOST_EPISODES, description="policies tried, by every agent but knapsack and uniform"
    )
    warmup: int = Field(12, ge=0, le=MOST_EPISODES, description="episodes before ddpg, td3 and sac learn")
    round_size: int = Field(4, ge=1, le=10_000, description="episodes proposed together")
    starts: tuple[Start, ...] = Field(("knapsack", "uniform"), description="solutions that a learner starts from")
    agent_from: Path | None = Field(
        None,
        description="run folder of a search over a range: at one budget its agent's answer is a start, over another "
        "range its agent learns on",
    )
    max_minutes: float | None = Field(None, gt=0, description="no new round if confirmation would end later")
    effort: int | None = Field(None, ge=1, description="no new round once this many image-forwards are paid")
    reward: str = Field(
        "auto",
        description=f"what an episode is paid: {', '.join(REWARDS)}, package.module:function, or auto "
        "(output_error for top-1, else accuracy, which is the task's metric)",
    )
    reward_split: Literal["validation", "calibration"] = Field("validation", description="where reward images are from")
    reward_images: int = Field(2500, ge=16, description="images that the reward sees, at most half of validation")
    confirm: int = Field(5, ge=1, le=10_000, description="best policies repaired in full and scored on unseen images")
    seed: int = Field(0, ge=0, description="seed of every draw")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where networks are measured, repaired and scored")
    backend: BackendConfig = BackendConfig()
    learning: LearningConfig = LearningConfig()
    rules: RulesConfig = RulesConfig()
    compression: CompressionConfig = CompressionConfig()
    knapsack: KnapsackConfig = KnapsackConfig()
    savings: SavingsConfig = SavingsConfig()

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if isinstance(values.get("constraint"), Mapping):
            values = with_range(with_sparsity(values))
        if values.get("profiles") and values.get("profile") is None:
            values = {**values, "profile": values["profiles"][0]}
        preset = PRESETS.get(str(values.get("preset", "default")))
        return _laid_under(values, preset) if preset else values

    @field_validator("learning", mode="before")
    @classmethod
    def _learnable(cls, value: Any) -> Any:
        if value == "light":
            return dict(LIGHT)
        if not isinstance(value, (Mapping, LearningConfig)):
            raise ValueError(f'must be "light" or a table of settings, but got {value!r}')
        return value

    @field_serializer("learning")
    def _only_what_is_set(self, value: LearningConfig, info: SerializationInfo) -> dict[str, Any]:
        """What is left open is the preset's to say."""
        return value.model_dump(mode=info.mode, exclude_unset=True)

    @model_serializer(mode="wrap")
    def _as_before_where_off(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Files of searches without branches or several devices, and what they are known by, stay as they were."""
        values: dict[str, Any] = write(self)
        for name in ("branches", "profiles"):
            if not getattr(self, name):
                values.pop(name, None)
        return values

    @field_validator("reward")
    @classmethod
    def _rewarding(cls, value: str) -> str:
        if value not in ("auto", *REWARDS) and ":" not in value and not passed_in(value):
            raise ValueError(unknown(value, ("auto", *REWARDS, "package.module:function")))
        return value

    @field_validator("data", "checkpoint", "agent_from")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.absolute()  # a run may be resumed from anywhere

    @field_validator("constraint", mode="before")
    @classmethod
    def _budgets(cls, value: Any) -> dict[str, float]:
        return checked_budgets(value)

    @field_validator("profile")
    @classmethod
    def _found_from_anywhere(cls, value: str | None) -> str | None:
        return None if value is None else _from_anywhere(value)

    @field_validator("profiles")
    @classmethod
    def _different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(_from_anywhere(one) for one in value)
        if len(found) == 1 or len(set(found)) < len(found):
            raise ValueError(
                f"must name at least two different profiles, but got {', '.join(value)}: use profile for one"
            )
        return found

    @model_validator(mode="after")
    def _devices_share_a_range(self) -> SearchConfig:
        if not self.profiles:
            return self
        if "latency" not in (self.budget_range or ({} if self.agent_from is None else self.constraint)):
            raise ValueError(
                "profiles needs a range of latencies, as fractions of dense on each device, but got none: "
                "add --constraint latency=0.4:0.8, or use profile for one device"
            )
        if self.profile not in self.profiles:
            raise ValueError(f"profile must be one of profiles ({', '.join(self.profiles)}), but got {self.profile}")
        return self

    @model_validator(mode="after")
    def _latency_needs_a_profile(self) -> SearchConfig:
        bounded = any(name in self.constraint for name in LATENCY)
        if bounded and self.profile is None:
            raise ValueError(
                "a latency budget needs a profile, but got none: add --profile, `amc profile list` shows them"
            )
        if self.reward == "accuracy_latency" and not bounded:
            raise ValueError(
                "reward accuracy_latency needs a latency budget, but got none: add --constraint latency=0.65"
            )
        return self

    @model_validator(mode="after")
    def _ranges_fit(self) -> SearchConfig:
        if self.budget_range is None:
            return self
        for name, (low, high) in self.budget_range.items():
            if not low < self.constraint.get(name, 0) < high:
                raise ValueError(
                    f"the budget must lie within its range {low:g}:{high:g}, but got {name}="
                    f"{self.constraint.get(name, 0):g}: write --constraint {name}={low:g}:{high:g}"
                )
        if self.agent not in RANGED and not passed_in(self.agent) and ":" not in self.agent:
            raise ValueError(
                f"a range of budgets needs an agent that answers for each, but got {self.agent!r}: "
                f"use {', '.join(RANGED)}"
            )
        if self.savings.images is not None:
            raise ValueError("savings.images compares policies of one budget, but got a range: leave one of them out")
        return self

    @field_validator("patterns")
    @classmethod
    def _readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from hw_profiles.patterns import parse_pattern  # needs numpy, which no other key does

        return tuple(str(parse_pattern(text)) for text in value if text != "dense")

    @field_validator("densities")
    @classmethod
    def _proper(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        from hw_profiles.patterns import unstructured

        return tuple(unstructured(density).density for density in value)

    @model_validator(mode="after")
    def _patterns_are_chosen(self) -> SearchConfig:
        if self.sparsity is not None:
            from hw_profiles.shape_rules import load_rules

            pattern = self.sparsity.partition("@")[0]
            rules = load_rules(self.shapes or "")
            if pattern not in rules.patterns or self.patterns != (pattern,):
                raise ValueError(f"sparsity {self.sparsity!r} needs one pattern of {', '.join(rules.patterns)}")
        if self.choose not in ("patterns", "mixed") and (self.sparsity is not None or COVERAGE in self.constraint):
            raise ValueError(
                f"sparsity and coverage need layers that choose patterns, but got choose={self.choose!r}: "
                "add --choose patterns or --choose mixed"
            )
        if not self.constraint.get(COVERAGE, 0) <= 1:
            raise ValueError(f"coverage must be a share of the MACs, but got {self.constraint[COVERAGE]:g}: write 0.8")
        return self

    @property
    def shapes(self) -> str | None:
        """Name of the shape rules, if any."""
        return None if self.sparsity is None else self.sparsity.partition("@")[2]

    @property
    def attention(self) -> Decision:
        """What is decided about attention: channels of layers that choose patterns are never principal."""
        left_open = self.rules.attention == "auto" and self.choose != "channels"
        return "heads" if left_open else self.rules.attention

    @property
    def single(self) -> bool:
        """Whether the agent proposes one policy and is done."""
        return self.agent in SINGLE

    @property
    def planned_episodes(self) -> int:
        """Episodes that will be played, if neither effort nor time ends the search."""
        return 1 if self.single else self.episodes

    def to_toml(self) -> str:
        """The complete configuration as TOML; reading it back gives an equal one."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def _from_anywhere(profile: str) -> str:
    """A file's path from wherever it is read later; a name as it is."""
    return str(Path(profile).absolute()) if Path(profile).is_file() else profile


def load_config(recipe: Path | None, overrides: Mapping[str, Any]) -> SearchConfig:
    """Reads a recipe and lays overrides over it.

    Args:
        recipe: TOML file, or None.
        overrides: Dotted keys ("rules.round_to") to values; None values are left out.

    Raises:
        ValueError: If the file cannot be read, or a key or value is not allowed; one line.
    """
    values = _read_recipe(recipe) if recipe is not None else {}
    for key, value in overrides.items():
        if value is not None:
            _put(values, key, value)
    if "task" not in values:
        raise ValueError("a search needs a task, but got none: pass --task digits, or a recipe that names one")
    try:
        return SearchConfig(**values)
    except ValidationError as error:
        raise ValueError(explain(error, SearchConfig)) from error


def recipe_config(recipe: Path | None, overrides: Mapping[str, Any]) -> SearchConfig:
    """As `load_config`, for a recipe from anywhere: code that it names runs only if an override names it too.

    Raises:
        ValueError: As there, or if only the recipe names a function of its own.
    """
    if recipe is not None:
        refuse_code(_read_recipe(recipe), {key: one for key, one in overrides.items() if one is not None}, str(recipe))
    return load_config(recipe, overrides)


def parse_override(text: str) -> tuple[str, Any]:
    """Reads `dotted.key=value`, the value as TOML (a bare word is a string)."""
    key, separator, raw = text.partition("=")
    if not separator or not key.strip():
        raise ValueError(f"--set must read KEY=VALUE, but got {text!r}: write for example compression.images=500")
    try:
        return key.strip(), tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):  # no TOML
        return key.strip(), raw


def _read_recipe(path: Path) -> dict[str, Any]:
    text = read_text(path, "a recipe", "TOML file", MAX_TOML_BYTES)
    return parse_toml(text, str(path), "a recipe")


def _laid_under(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with what they leave open taken from the defaults, part by part."""
    result = dict(defaults) | dict(values)
    for key, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(values.get(key), Mapping):
            result[key] = _laid_under(values[key], default)
    return result


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ValueError(f"{key!r} names a key inside {parent!r}, but that is a plain value")
    values[leaf] = value
