"""Tasks: what is pruned and by what it is judged. Splits of data, readers of data sets and weights, the shipped tasks.

What users bring is checked here, before any work is done. `from_huggingface` and `from_timm` are imported when they are
asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amc.tasks.adapters.huggingface import from_huggingface
    from amc.tasks.adapters.timm import from_timm

__all__ = ["from_huggingface", "from_timm"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"amc.tasks.adapters.{name.removeprefix('from_')}"), name)
