"""The search, and everything that knows datasets, files, configurations and people.

- `cli`: the command line; `runs`: searches on disk, one and many; `reporting`: reports and tables.
- `search`: the algorithm (`search.loop`); `problem`: what is searched; `pool`: work in this process or on Ray;
  `scoring`: networks to evaluations; `profiling`: timing on this machine.
- `tasks`: networks and data that come in; `export`: what leaves; `config`: settings; `storage`: files and the cache;
  `testing`: laws that plug-ins keep to.

No lower package may import it: `envs` is what is pruned, `agents` learn, `hw_profiles` says what layers cost.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import amc.search as _room

if TYPE_CHECKING:
    from amc.export.onnx import export_onnx
    from amc.export.program import save_program
    from amc.export.rebuild import load
    from amc.runs.applying import apply
    from amc.runs.found import Result
    from amc.runs.library import finetune, inspect, policy, resume, search
    from amc.runs.studies.library import compare, sweep, tune
    from amc.tasks.metric import Metric
    from amc.tasks.task import Task

__all__ = [
    "Metric",
    "Result",
    "Task",
    "apply",
    "compare",
    "export_onnx",
    "finetune",
    "inspect",
    "load",
    "policy",
    "resume",
    "save_program",
    "search",
    "sweep",
    "tune",
]
"""The public names; all but `search` are imported when first asked for."""

ENVIRONMENT_ID = "amc/ChannelPruning-v0"
_PLACES = {
    "Metric": "amc.tasks.metric",
    "Result": "amc.runs.found",
    "Task": "amc.tasks.task",
    "apply": "amc.runs.applying",
    "compare": "amc.runs.studies.library",
    "export_onnx": "amc.export.onnx",
    "finetune": "amc.runs.library",
    "inspect": "amc.runs.library",
    "load": "amc.export.rebuild",
    "policy": "amc.runs.library",
    "resume": "amc.runs.library",
    "save_program": "amc.export.program",
    "sweep": "amc.runs.studies.library",
    "tune": "amc.runs.studies.library",
}


def _check_siblings() -> None:
    """Our package names are generic: refuses to run with foreign packages of the same names.

    Raises:
        ImportError: Names the package that stands in the way.
    """
    home = Path(__file__).resolve().parent.parent
    for name in ("envs", "agents", "hw_profiles"):
        spec = find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
        if home / name not in places:
            found = str(places[0]) if places else "nowhere"
            raise ImportError(
                f"amc needs its own package {name!r} beside it in {home}, but Python finds it at {found}: "
                "install amc into an environment of its own"
            )


def _register_environment() -> None:
    """Registers the environment now if Gymnasium was imported, otherwise as soon as it is.

    `gymnasium.make("amc:amc/ChannelPruning-v0")` imports `amc` and then looks into the registry. Where `amc` was
    imported first, that import does nothing any more; and Gymnasium is too heavy to be imported here.
    """
    if "gymnasium" in sys.modules:
        _register()
    elif not any(isinstance(finder, _UponImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _UponImport())


def _register() -> None:
    import gymnasium

    if ENVIRONMENT_ID not in gymnasium.registry:
        gymnasium.register(id=ENVIRONMENT_ID, entry_point="amc.problem.make_env:channel_pruning")


class _UponImport:
    """Finds Gymnasium as usual, and registers the environment when it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == "gymnasium" else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            sys.meta_path.remove(self)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


class _CallableRoom(ModuleType):
    """`amc.search` is the room of the algorithm and, called, the search (`amc.runs.library.search`)."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        from amc.runs.library import search

        return search(*args, **settings)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'amc' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_PLACES[name]), name)


_check_siblings()
_register_environment()
_room.__class__ = _CallableRoom
if not TYPE_CHECKING:
    search = _room
