"""The face: tasks, evaluation, allocation, rollouts, search, export and the command line.

Here lives everything that knows datasets, files, configurations and people. Nothing below may import it:
`envs` is the world, `agents` learn, `hw_profiles` count costs.
"""

from importlib.util import find_spec
from pathlib import Path

import gymnasium

ENVIRONMENT_ID = "amc/ChannelPruning-v0"


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


_check_siblings()
if ENVIRONMENT_ID not in gymnasium.registry:
    gymnasium.register(id=ENVIRONMENT_ID, entry_point="amc.problem.make_env:channel_pruning")
