"""README, CONTRIBUTING and every page of docs/ are followed: the code blocks of a page are executed in order, in an
empty folder. A new page or block is picked up; what cannot run anywhere is listed in `NOWHERE` with its reason.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from amc.cli.main import app, main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

SLOW = {
    "README.md",
    "docs/extending.md",
    "docs/guides/command_line.md",
    "docs/guides/finetuning.md",
    "docs/guides/patterns.md",
    "docs/guides/ranges.md",
    "docs/hardware_profiles.md",
    "docs/own_task.md",
    "docs/ray.md",
    "docs/start/demo.md",
    "docs/start/start.md",
}
"""Pages that take longer to follow; the quick suite compiles their programs and reads their commands."""

NOWHERE = {
    "make": "runs this suite, or what it tests, in a fresh clone",
    "python3 -m venv": "installs the environment that runs this test",
    ".venv/bin/pip": "the same",
    "pip": "the same",
    "first$": "needs several machines",
    "other$": "needs several machines",
    "open": "needs a screen",
    "amc profile check": "needs a quiet machine: it refuses times that do not grow with the predicted ones",
}
"""First words of a command -> why no test can run it."""

SHELL = ("console", "bash", "sh")
"""Languages of command lines."""

BUSY: dict[tuple[str, ...], tuple[str, ...]] = {
    ("profile", "measure"): ("--keep-disturbed", "--again-minutes", "0"),
    ("bundle.zip", "--threads"): ("--keep-disturbed", "--again-minutes", "0"),
}
"""Command -> options that a page need not have: whoever measures waits for a quiet machine, and a test cannot."""


@dataclass(frozen=True)
class Block:
    """A code block: its language, its text, and the line of the page where it begins."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page; those in braces are Sphinx's."""
    text = page.read_text()
    for found in re.finditer(r"^```(\S*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        if not found[1].startswith("{"):
            yield Block(found[1], found[2], text[: found.start()].count("\n") + 2)


def commands(block: Block) -> list[str]:
    """The commands of a block, one a line."""
    lines = [line.removeprefix("$ ") for line in block.text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip()]


def runs(line: str) -> bool:
    """Whether a command can run here."""
    return not line.startswith(tuple(NOWHERE))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_can_be_read(page: Path) -> None:
    """Programs compile, data can be parsed, and commands have only options that there are."""
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, f"{page}:{block.line}", "exec")
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language in SHELL:
            for line in commands(block):
                assert line.startswith(("amc ", "python ")) or not runs(line), f"{page}: nothing runs {line!r}"
                if words := re.match(r"(?:\w+\$ )?amc (.*)", line):
                    read_options(shlex.split(words[1], comments=True))
        else:
            assert block.language in ("", "text"), f"{page}:{block.line}: nothing runs {block.language!r}"
            assert not re.search(r"^(amc|make|\$) ", block.text, flags=re.MULTILINE), (
                f"{page}:{block.line}: say console"
            )


def read_options(words: list[str]) -> None:
    """Reads a command line as `amc` does, without running it."""
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]  # type: ignore[attr-defined]
    if hasattr(command, "commands"):
        assert words[:1] in (["--help"], ["--version"]), f"there is no command {words[0]!r}"
    with suppress(typer.Exit):
        command.make_context("amc", words)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if name_of(page) in SLOW else [])
        for page in PAGES
        if any(block.language in ("python", *SHELL) for block in blocks(page))
    ],
)
def test_pages_can_be_followed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything on a page runs, in order: `# name.py` at the head of a block, and "Saved as `name`", make files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "profiles"))
    (tmp_path / "experiments").mkdir()
    shutil.copytree(ROOT / "experiments" / "recipes", tmp_path / "experiments" / "recipes")
    names: dict[str, object] = {"__name__": "__main__"}
    saved = iter(re.findall(r"^Saved as `(.*?)`:$", page.read_text(), flags=re.MULTILINE))
    for block in blocks(page):
        if block.language == "toml":
            Path(next(saved)).write_text(block.text)
        elif block.language == "python":
            if named := re.match(r"# (\w+\.py)\n", block.text):
                Path(named[1]).write_text(block.text)
            exec(compile(block.text, f"{page}:{block.line}", "exec"), names)
        elif block.language in SHELL:
            for line in filter(runs, commands(block)):
                run(shlex.split(line, comments=True), monkeypatch)


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs one command: `amc` in this process, and in one of its own what starts Ray or is another program."""
    words = [*words, *BUSY.get(tuple(words[1:3]), ())]
    if words[0] == "python" or "--workers" in words:
        program = words[1:] if words[0] == "python" else ["-m", "amc.cli", *words[1:]]
        subprocess.run([sys.executable, *program], check=True, capture_output=True)
        return
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code, words


@pytest.mark.slow
def test_the_documentation_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    options = ["--fail-on-warning", "--quiet", "--conf-dir", "docs"]
    subprocess.run([sys.executable, "-m", "sphinx", *options, ".", tmp_path], check=True, cwd=ROOT)
    assert (tmp_path / "docs" / "index.html").exists()
