"""Ctrl-C ends in one line and exit code 130: within imports, where Python would lose it, and pressed twice."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amc.cli.interrupts import NOTHING_LOST

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no timers that send signals")

WHILE_IMPORTING = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
sys.argv = ["amc", "search", "--task", "digits", "--out", {out!r}]
from amc.cli.__main__ import main
main()
"""
PREPARED = """
import os, signal, time
from amc.cli.interrupts import interrupt_between_imports
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
interrupt_between_imports()
try:
    {body}
    time.sleep(60)
except KeyboardInterrupt:
    print("caught", {told})
"""


def outcome(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([os.getcwd(), str(folder)])
    arguments = [sys.executable, "-c", program]
    return subprocess.run(
        arguments, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, timeout=100
    )


@pytest.mark.parametrize("module", ["typer", "torch"])
def test_within_the_imports_of_a_command_the_process_ends_at_once(tmp_path: Path, module: str) -> None:
    done = outcome(WHILE_IMPORTING.format(module=module, out=str(tmp_path / "run")), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"stopped: {NOTHING_LOST}\n")
    assert not (tmp_path / "run").exists()


def test_within_a_later_import_it_waits_for_the_end_of_the_import(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("from __main__ import interrupt\ninterrupt()\ndone = True\n")
    done = outcome(PREPARED.format(body="import slow", told="slow.done"), tmp_path)
    assert (done.stdout, done.stderr) == ("caught True\n", "")


def test_what_python_would_only_print_is_raised_again(tmp_path: Path) -> None:
    body = "type('Last', (), {'__del__': lambda self: interrupt()})()"
    done = outcome(PREPARED.format(body=body, told="''"), tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("caught", "")


def test_pressed_again_it_waits_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("from __main__ import interrupt\ninterrupt()\ninterrupt()\n")
    done = outcome(PREPARED.format(body="import slow", told="''"), tmp_path)
    assert (done.returncode, done.stderr) == (130, f"stopped: {NOTHING_LOST}\n")
