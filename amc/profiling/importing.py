"""Adding what another device has measured to one's own profiles."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError

from amc.profiling.store import SUFFIX, user_folder, write_profile
from hw_profiles.bench.bundle import Measured
from hw_profiles.documents import one_line, parse_json, parse_model, read_text
from hw_profiles.latency.profile import Profile, parse

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def import_profile(file: Path, name: str | None, *, replace: bool = False) -> tuple[Path, int]:
    """Checks a device's file (or a profile) and writes it to the user's folder.

    Args:
        file: What the device wrote.
        name: Name of the profile; None: the file's.
        replace: Whether an existing profile of that name may be replaced.

    Returns:
        The written file and the number of its entries.

    Raises:
        ValueError: If the file is not valid, the name no file name, or taken.
    """
    name = file.stem if name is None else name
    if not NAME.fullmatch(name):
        raise ValueError(f"a profile's name must be letters, digits and . _ -, but got {name!r}: pass --name")
    profile = read_measured(file)
    target = user_folder() / f"{name}{SUFFIX}"
    if target.exists() and not replace:
        raise ValueError(f"a profile's name must be free, but {name!r} is {target}: pass --replace or another --name")
    write_profile(target, profile)
    return target, sum(len(times.entries) for times in profile.kernels)


def read_measured(file: Path) -> Profile:
    """A device's file, or a profile, as a profile.

    Raises:
        ValueError: If it is neither; one line.
    """
    text = read_text(file, "what a device measured")
    data = parse_json(text, str(file), "what a device measured")
    if isinstance(data, dict) and "sessions" in data:
        return parse(text, str(file))
    measured = parse_model(Measured, text, str(file), "a device's measurements")
    try:
        return measured.profile()
    except ValidationError as error:
        raise ValueError(f"{str(file)!r}: {one_line(error.errors()[0]['msg'])}") from error
    except ValueError as error:
        raise ValueError(f"{str(file)!r}: {error}") from error
