"""Profiles by file or by name: where they are looked for, and how one is read and written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hw_profiles
from amc.storage.files import write_text
from hw_profiles.documents import read_text
from hw_profiles.latency.profile import Profile, parse
from hw_profiles.latency.table import LatencyTable

SUFFIX = ".json"


def user_folder() -> Path:
    """`amc/profiles` in the user's data folder."""
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")) / "amc" / "profiles"


def folders() -> list[Path]:
    """Where names are looked for, first wins: folders of `AMC_PROFILES`, the user's data folder, the shipped one."""
    own = [Path(part) for part in os.environ.get("AMC_PROFILES", "").split(os.pathsep) if part]
    return [*own, user_folder(), Path(hw_profiles.__file__).parent / "data"]


def known() -> Iterator[tuple[str, Path, bool]]:
    """(name, file, whether an earlier folder hides it) of every profile in the folders."""
    seen: set[str] = set()
    for folder in folders():
        for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []:
            yield path.stem, path, path.stem in seen
            seen.add(path.stem)


def locate(name: str) -> tuple[Path, tuple[Path, ...]]:
    """The file of a profile, and the files of the same name that it hides.

    Anything that exists as a file, ends in .json or has a folder in it is a path; all else is a name.

    Raises:
        ValueError: If there is none.
    """
    path = Path(name)
    if path.is_file() or path.suffix == SUFFIX or len(path.parts) > 1:
        if not path.is_file():
            raise ValueError(f"a profile must be an existing file, but {name!r} is not: `amc profile list` shows names")
        return path, ()
    found = [file for other, file, _ in known() if other == name]
    if not found:
        names = ", ".join(dict.fromkeys(other for other, _, _ in known())) or "none"
        raise ValueError(
            f"a profile must be a file or one of the known names ({names}), but got {name!r}: measure one with "
            f"`amc profile measure --task TASK --out {name}{SUFFIX}`"
        )
    return found[0], tuple(found[1:])


def find_profile(name: str, warn: Callable[[str], None]) -> tuple[Path, Profile]:
    """A profile by file or name; `warn` is told which others of the name are not used, and if it was too disturbed.

    Raises:
        ValueError: If there is none, or it is not valid.
    """
    path, hidden = locate(name)
    profile = read_profile(path)
    for when, found, what in profile.disturbances():
        if not found.trusted:
            warn(f"{path}, {when}: {found.in_words(what)}; its times are not to be trusted")
    if hidden:
        warn(f"{len(hidden) + 1} profiles are called {name!r}: {path} is used, not {', '.join(map(str, hidden))}")
    return path, profile


def load_table(name: str, warn: Callable[[str], None]) -> LatencyTable:
    """The latencies of a profile by file or name; as `find_profile`."""
    path, profile = find_profile(name, warn)
    return LatencyTable(profile, str(path))


def read_profile(path: Path) -> Profile:
    """Reads and checks a profile.

    Raises:
        ValueError: If it cannot be read or is not valid; one line.
    """
    return parse(read_text(path, "a profile"), str(path))


def write_profile(path: Path, profile: Profile) -> None:
    """Writes a profile atomically, after checking that it would be read back.

    Raises:
        OSError: If it cannot be written.
    """
    text = profile.text()
    parse(text, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
