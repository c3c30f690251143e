"""Options made from the fields of the configuration: type, default and help text stand there, and only there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer
from pydantic import BaseModel, ValidationError
from typer.core import TyperCommand

from amc.config.budgets import parse_constraints
from amc.config.keys import Key, choices_of, explain, fields_of, key_of, plain_type
from amc.config.parts import WorkersConfig
from amc.config.search import SearchConfig, parse_override
from amc.runs.finetuning.settings import FinetuneConfig

Command = Callable[..., None]
Overrides = Mapping[str, Any]
"""Dotted key -> value, of the options that were given."""

WORKER_FLAGS = {"workers": "--workers", "address": "--ray", "gpus": "--gpus-per-worker", "limit_seconds": "--limit"}
"""Field of `WorkersConfig` -> option."""

RecipeArgument = Annotated[Path | None, typer.Argument(help="TOML recipe; every option overrides it.")]
_SETTINGS = inspect.Parameter(
    "settings",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        list[str] | None,
        typer.Option("--set", help="Any key that `amc config` lists, such as compression.images=500; repeatable."),
    ],
)


def configured(*keys: str, anything: bool = True) -> Callable[[Command], Command]:
    """Gives a command one option per configuration key; its parameter `overrides` gets those that were given.

    Args:
        keys: Dotted keys of `SearchConfig`; the option is named by the last part.
        anything: Whether there is `--set` too.
    """
    named = {key.replace(".", "__"): key for key in keys}

    def collect(given: dict[str, Any]) -> Overrides:
        settings = given.pop("settings", None) or []
        overrides = {named[name]: value for name, value in given.items() if value not in (None, [])}
        if "constraint" in overrides:
            overrides["constraint"] = parse_constraints(overrides["constraint"])
        return overrides | dict(parse_override(text) for text in settings)

    options = [option(SearchConfig, key) for key in keys] + [_SETTINGS] * anything
    return lambda command: _expanded(command, "overrides", options, collect)


def with_workers(command: Command) -> Command:
    """Gives a command the options of workers; its parameter `workers` gets a `WorkersConfig`."""

    def collect(given: dict[str, Any]) -> WorkersConfig:
        try:
            return WorkersConfig(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            raise ValueError(explain(error, WorkersConfig)) from error

    options = [option(WorkersConfig, name, flag) for name, flag in WORKER_FLAGS.items()]
    return _expanded(command, "workers", options, collect)


def with_finetuning(command: Command) -> Command:
    """Gives a command the options of fine-tuning; its parameter `settings` gets those that were given."""

    def collect(given: dict[str, Any]) -> Overrides:
        return {name: value for name, value in given.items() if value is not None}

    options = [option(FinetuneConfig, name) for name, _ in fields_of(FinetuneConfig)]
    return _expanded(command, "settings", options, collect)


def option(model: type[BaseModel], name: str, flag: str = "") -> inspect.Parameter:
    """The option for one field; None, or an empty list, stands for "not given".

    Args:
        model: Whose field it is.
        name: Dotted name of the field.
        flag: Name of the option; left out: the last part of the field's.
    """
    field = dict(fields_of(model))[name]
    annotation = plain_type(field)
    key = key_of(name, field)
    repeatable = get_origin(annotation) in (tuple, dict)
    kind: Any = list[str] if repeatable else annotation if annotation in (bool, int, float, Path) else str
    plain = name.rpartition(".")[2].replace("_", "-")
    own = f"--{plain}/--no-{plain}" if kind is bool else f"--{plain}"
    info = typer.Option(flag or own, help=_help(key, choices_of(field), repeatable))
    return inspect.Parameter(
        name.replace(".", "__"),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, info],
    )


class Spread(TyperCommand):
    """A command whose repeatable options take several values: `--budgets 0.3 0.5` is `--budgets 0.3 --budgets 0.5`."""

    several = ("--budgets", "--agents", "--profiles", "--tune")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spreads the values, then parses as usual."""
        spread: list[str] = []
        option = ""
        for text in args:
            if text.startswith("-"):
                option = text if text in self.several else ""
            elif option and spread[-1] != option:
                spread.append(option)
            spread.append(text)
        return super().parse_args(ctx, spread)


def _help(key: Key, choices: Sequence[str], repeatable: bool) -> str:
    """The field's meaning, what may be chosen, and what holds where the option is left out."""
    text = key.meaning[0].upper() + key.meaning[1:]
    text += f" ({', '.join(choices)})" if choices else ""
    text += "; repeatable." if repeatable else "."
    return text if key.required or key.default in (None, []) else f"{text} Default: {key.default_text}."


def _expanded(
    command: Command, name: str, options: Sequence[inspect.Parameter], collect: Callable[[dict[str, Any]], Any]
) -> Command:
    """A command with its parameter `name` replaced by options, whose values are collected into it."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    kept = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own if one.name != name]
    parameters = [*kept, *options]

    @wraps(command)
    def run(**values: Any) -> None:
        given = {one.name: values.pop(one.name) for one in options}
        command(**values, **{name: collect(given)})

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run
