"""The file of a profile: what is read back, and that whatever is broken is refused in one line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from amc.profiling.show import listing
from amc.profiling.store import find_profile, read_profile, user_folder, write_profile
from hw_profiles.latency.graphs import Probe
from hw_profiles.latency.kernels import Kernel
from hw_profiles.latency.profile import (
    Device,
    Disturbance,
    Entry,
    FormatsKey,
    Profile,
    Session,
    kernel_times,
    parse,
    schema_text,
)

ROOT = Path(__file__).resolve().parents[2]
CONV = Kernel(op="conv", mode="plain", activation="relu", kernel=(3, 3), stride=(1, 1), in_map=(8, 8), out_map=(8, 8))
DEVICE = Device(name="board", cpu="a cpu", machine="x86_64", system="Linux", cores=4, cores_used=1)
SESSION = Session(
    date="2026-01-01T00:00:00+00:00", device=DEVICE, runtime_version="1.31.1", yardstick_ms=0.08, overhead_ms=0.003
)


def entry(inputs: int, outputs: int, ms: float) -> Entry:
    return Entry(
        inputs=inputs,
        outputs=outputs,
        n=9,
        median_ms=ms,
        mean_ms=ms,
        variance=1e-9,
        p95_ms=ms,
        yardstick_ms=0.08,
        session=0,
    )


def small_profile(**changes: Any) -> Profile:
    entries = {Probe(CONV, i, o): entry(i, o, 1e-3 * (i + o)) for i in (4, 8) for o in (4, 16)}
    return Profile(
        runtime="onnxruntime",
        dtype="fp32",
        batch=1,
        threads=1,
        sessions=[SESSION],
        kernels=kernel_times(entries),
        formats=FormatsKey(block=0, align=1, fuses=True),
        **changes,
    )


def broken(change: Callable[[dict[str, Any]], None]) -> str:
    data = json.loads(small_profile().text())
    change(data)
    return json.dumps(data)


def refusal(text: str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(text, "mine.json")
    message = str(caught.value)
    assert "\n" not in message
    assert "mine.json" in message
    return message


def test_a_profile_is_read_back_as_it_was_written() -> None:
    profile = small_profile()
    assert parse(profile.text(), "x") == profile


def test_every_entry_stands_on_a_line_of_its_own() -> None:
    lines = [line for line in small_profile().text().splitlines() if '"median_ms"' in line]
    assert len(lines) == 4


def test_the_published_schema_is_that_of_the_code() -> None:
    assert (ROOT / "hw_profiles" / "profile.schema.json").read_text() == schema_text()


@given(st.integers(0, len(small_profile().text()) - 3))
def test_a_truncated_profile_is_refused(length: int) -> None:
    refusal(small_profile().text()[:length])


@given(st.text())
def test_any_text_that_is_no_profile_is_refused(text: str) -> None:
    refusal(text)


@given(
    field=st.sampled_from(["median_ms", "mean_ms", "p95_ms", "variance", "yardstick_ms"]),
    value=st.one_of(st.floats(max_value=-1e-9), st.just(float("nan")), st.just(float("inf")), st.text(), st.none()),
)
def test_times_that_are_negative_or_no_numbers_are_refused(field: str, value: object) -> None:
    def change(data: dict[str, Any]) -> None:
        data["kernels"][0]["entries"][1][field] = value

    refusal(broken(change))


@given(st.data())
def test_a_profile_without_one_of_its_fields_is_refused(data: st.DataObject) -> None:
    def change(profile: dict[str, Any]) -> None:
        levels = [
            profile,
            profile["sessions"][0],
            profile["kernels"][0],
            profile["kernels"][0]["kernel"],
            profile["kernels"][0]["entries"][0],
            profile["formats"],
        ]
        level = data.draw(st.sampled_from(levels))
        del level[data.draw(st.sampled_from(sorted(set(level) - {"layout", "corrections"})))]

    refusal(broken(change))


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version_is_refused(version: object) -> None:
    assert "schema_version" in refusal(broken(lambda data: data.update(schema_version=version)))


@pytest.mark.parametrize(
    ("field", "value", "law"),
    [("cpu", "another", "same processor"), ("machine", "aarch64", "same architecture"), ("gpu", "one", "same GPU")],
)
def test_mixed_devices_are_refused(field: str, value: str, law: str) -> None:
    def change(data: dict[str, Any]) -> None:
        session = json.loads(json.dumps(data["sessions"][0]))
        session["device"][field] = value
        data["sessions"].append(session)

    assert law in refusal(broken(change))


def test_sessions_of_two_runtime_versions_are_refused() -> None:
    def change(data: dict[str, Any]) -> None:
        data["sessions"].append(data["sessions"][0] | {"runtime_version": "9"})

    assert "same runtime version" in refusal(broken(change))


def test_an_entry_that_stands_twice_is_refused() -> None:
    assert "stands twice" in refusal(broken(lambda d: d["kernels"][0]["entries"].append(d["kernels"][0]["entries"][0])))


def test_a_kernel_that_stands_twice_is_refused() -> None:
    assert "stands twice" in refusal(broken(lambda data: data["kernels"].append(data["kernels"][0])))


def test_a_key_that_stands_twice_is_refused() -> None:
    assert "stands twice" in refusal(small_profile().text().replace('"batch": 1', '"batch": 1, "batch": 2'))


def test_a_hole_in_the_grid_is_refused() -> None:
    assert "full grid" in refusal(broken(lambda data: data["kernels"][0]["entries"].pop()))


# Names


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("AMC_PROFILES", str(tmp_path / "first"))
    return tmp_path


def test_the_first_folder_wins_and_the_hidden_profile_is_named(own_folders: Path) -> None:
    write_profile(own_folders / "first" / "board.json", small_profile())
    write_profile(user_folder() / "board.json", small_profile())
    said: list[str] = []
    path, _ = find_profile("board", said.append)
    assert path == own_folders / "first" / "board.json"
    assert len(said) == 1
    assert str(user_folder() / "board.json") in said[0]


@pytest.mark.parametrize(("left", "warned"), [(1, False), (2, True)])
def test_a_profile_that_was_too_disturbed_is_used_with_a_warning(own_folders: Path, left: int, warned: bool) -> None:
    session = SESSION.model_copy(update={"disturbed": Disturbance(entries=10, at_first=4, left=left)})
    profile = small_profile().model_copy(update={"sessions": [session]})
    write_profile(own_folders / "first" / "board.json", profile)
    said: list[str] = []
    assert find_profile("board", said.append)[1] == profile
    assert [f"4 of 10 entries were disturbed, {left} still are; its times are not" in text for text in said] == (
        [True] if warned else []
    )


def test_a_path_is_never_taken_for_a_name(own_folders: Path) -> None:
    write_profile(own_folders / "first" / "board.json", small_profile())
    with pytest.raises(ValueError, match="must be an existing file"):
        find_profile("elsewhere/board.json", lambda text: None)


def test_an_unknown_name_lists_the_known_ones(own_folders: Path) -> None:
    write_profile(own_folders / "first" / "board.json", small_profile())
    with pytest.raises(ValueError, match=r"board.*but got 'bord'.*amc profile measure"):
        find_profile("bord", lambda text: None)


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a readable file"):
        read_profile(tmp_path / "nothing.json")


def test_the_list_names_every_profile_under_its_folder_and_fits_a_narrow_screen(own_folders: Path) -> None:
    write_profile(own_folders / "first" / "board.json", small_profile())
    write_profile(user_folder() / "board.json", small_profile())
    (own_folders / "first" / "broken.json").write_text("{")
    console = Console(file=io.StringIO(), width=80)
    console.print(listing())
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "  board" in lines
    assert "  board  (hidden)" in lines
    assert "    a cpu, onnxruntime 1.31.1 fp32, threads 1, batch 1, 4 entries" in lines
    assert any(line.startswith("    broken: ") for line in lines)
    assert all("threads 1" in text.split(name)[1] for name in ("t1-b1", "t1-b8"))  # the shipped ones
