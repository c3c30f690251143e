#!/usr/bin/env python3
"""Times micro-graphs on this device: needs only Python, numpy and onnxruntime; writes one JSON file.

`amc profile bundle` puts this file into an archive as its main program, with `device`, `passes` and `rounds` beside it:
`python bundle.zip --help`. On the machine that made the bundle the same functions measure directly, so that there is
one way of timing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from hw_profiles.device import describe_device, now
from hw_profiles.passes import AGAIN_MINUTES, Journal, Record, Report, TrustLimits, check_trust, in_passes, in_words
from hw_profiles.rounds import measure

FATAL = 4  # onnxruntime's quietest level
CONFIDENCE = 0.01  # relative standard error to reach
MAX_BLOCKS = 61
MANIFEST = "manifest.json"


class TimedSession:
    """An ONNX model loaded in onnxruntime that can be timed."""

    def __init__(self, model: bytes, threads: int, feed: dict[str, Any] | None = None) -> None:
        """Loads a model and runs it once, on random inputs if none are given; inputs that it has not are left out."""
        self._session = make_session(model, threads)
        known = {one.name for one in self._session.get_inputs()}
        given = random_feed(self._session) if feed is None else feed
        self._feed = {name: array for name, array in given.items() if name in known}
        self._session.run(None, self._feed)

    def seconds(self, runs: int) -> float:
        """Seconds per run, over a block of runs."""
        run, feed = self._session.run, self._feed
        began = time.perf_counter()
        for _ in range(runs):
            run(None, feed)
        return (time.perf_counter() - began) / runs


def random_feed(session: Any) -> dict[str, Any]:
    """A random input for every input of a session."""
    generator = np.random.default_rng(0)
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    return {i.name: generator.random(i.shape).astype(types[i.type]) for i in session.get_inputs()}


def make_session(model: bytes, threads: int, profile: str = "") -> Any:
    """A session on the CPU; `profile` is the prefix of a file in which it records what it executes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def recorded(model: bytes, runs: int = 1, feed: dict[str, Any] | None = None) -> list[list[Record]]:
    """What the runtime's own profiler says of each run: its operators in order, with name, shapes and microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        session = make_session(model, 1, os.path.join(folder, "profile"))
        feed = random_feed(session) if feed is None else feed
        for _ in range(runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    rows = [{"op": e["args"]["op_name"], "us": e["dur"], "shapes": e["args"].get("output_type_shape")} for e in nodes]
    each = len(rows) // runs
    return [rows[k * each : (k + 1) * each] for k in range(runs)]


def detect_formats(models: dict[int, bytes]) -> Record:
    """Block and alignment of the runtime's tensor format: for which input channels a convolution converts its input.

    Args:
        models: Input channels -> a graph of one convolution of that many channels.
    """
    converted = sorted(c for c, m in models.items() if any(r["op"] == "ReorderInput" for r in recorded(m)[0]))
    if not converted:
        return {"block": 0, "align": 1, "fuses": True}
    block = converted[0]
    return {"block": block, "align": min((c - block for c in converted if c > block), default=block), "fuses": True}


class Bundle:
    """The archive that this script lies in: a zip file, or a folder that it was unpacked to."""

    def __init__(self, path: Path) -> None:
        """Opens it and reads its manifest."""
        self._archive = zipfile.ZipFile(path) if zipfile.is_zipfile(path) else None
        self._path = path
        self.manifest: Record = json.loads(self.read(MANIFEST))

    def read(self, name: str) -> bytes:
        """The content of one file."""
        return self._archive.read(name) if self._archive else (self._path / name).read_bytes()


def measure_bundle(
    bundle: Bundle,
    threads: int,
    journal: Path,
    report: Report,
    *,
    again_minutes: float = AGAIN_MINUTES,
    keep_disturbed: bool = False,
    timer: Callable[..., Record] = measure,
) -> Record:
    """Measures a whole bundle, or goes on where it was interrupted; returns the content of the result file.

    Args:
        bundle: What to measure.
        threads: Threads within an operator.
        journal: File that every record is written to as it comes, those of the second pass as well.
        report: Told about progress.
        again_minutes: Time for timing disturbed entries again.
        keep_disturbed: Whether to return what stays too disturbed to be trusted.
        timer: Times one entry, as `measure` does.

    Raises:
        ValueError: If the runtime's formats are not planned for, or too many entries stay disturbed.
    """
    manifest = bundle.manifest
    device = describe_device(threads)
    plan = _plan(bundle)
    entries = plan["entries"]
    header = {
        "schema_version": 1,
        "runtime": "onnxruntime",
        "runtime_version": onnxruntime.__version__,
        "dtype": manifest["dtype"],
        "batch": manifest["batch"],
        "threads": threads,
        "formats": plan["formats"],
        "device": {**device, "mhz": None},
    }
    book = Journal(journal, {**header, "plan": manifest["digest"]})
    yardstick = TimedSession(bundle.read(manifest["yardstick"]), threads)

    def timed(index: int) -> Record:
        graphs = (TimedSession(bundle.read(entries[index][part]), threads) for part in ("one", "many"))
        return timer(*graphs, entries[index]["copies"], yardstick, CONFIDENCE, MAX_BLOCKS)

    limits = TrustLimits(device["cores"] - threads)
    records, found = in_passes(timed, len(entries), book, limits, seconds=60 * again_minutes, report=report)
    if not keep_disturbed:
        check_trust(found)
    kept = [{**{k: e[k] for k in ("kernel", "inputs", "outputs")}, **r} for e, r in zip(entries, records)]  # noqa: B905 (Python 3.9)
    usual = {name: float(np.median([r[name] for r in records])) for name in ("yardstick_ms", "overhead_ms")}
    return {**header, "device": device, "date": now(), **usual, "disturbed": found, "entries": kept}


def _plan(bundle: Bundle) -> Record:
    """What to measure in the tensor format of this runtime."""
    manifest = bundle.manifest
    formats = detect_formats({int(c): bundle.read(name) for c, name in manifest["format_probes"].items()})
    for plan in manifest["plans"]:
        if plan["formats"] == formats:
            return dict(plan)
    known = [plan["formats"] for plan in manifest["plans"]]
    raise ValueError(f"the runtime's tensor formats must be among {known}, but here they are {formats}: report this")


def progress(what: str, done: int, total: int, left: float) -> None:
    """One line of the screen for each pass."""
    end = "\n" if done == total else ""
    print(f"\r{done} of {total} {what}, {left / 60:4.1f} minutes left", end=end, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None, timer: Callable[..., Record] = measure) -> int:
    """Measures the bundle that this script lies in; `timer` times one entry, as `measure` does."""
    parser = argparse.ArgumentParser(description="Measure this device for AMC: writes one JSON file to import there.")
    parser.add_argument("--threads", type=int, default=1, help="threads within an operator (default 1)")
    parser.add_argument("--out", type=Path, default=Path("measured.json"), help="file to write (default measured.json)")
    parser.add_argument(
        "--again-minutes",
        type=float,
        default=AGAIN_MINUTES,
        help="time for timing disturbed entries again (default %(default)s)",
    )
    parser.add_argument("--keep-disturbed", action="store_true", help="write the file however disturbed it stays")
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parent, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    journal = options.out.with_name(options.out.name + ".partial")
    try:
        found = measure_bundle(
            Bundle(options.bundle),
            options.threads,
            journal,
            progress,
            again_minutes=options.again_minutes,
            keep_disturbed=options.keep_disturbed,
            timer=timer,
        )
    except KeyboardInterrupt:
        print(f"\nstopped: run it again to go on ({journal} holds what was measured)", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    temporary = options.out.with_name(options.out.name + ".new")
    temporary.write_text(json.dumps(found, indent=1))
    temporary.replace(options.out)
    journal.unlink()
    print(
        f"{in_words(found['disturbed'])}\nwrote {options.out}: bring it back and `amc profile import` it",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
