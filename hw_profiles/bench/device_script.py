#!/usr/bin/env python3
"""Times micro-graphs on this device: needs only Python, numpy and onnxruntime; writes one JSON file.

`amc profile bundle` puts this file into an archive as its main program, with `passes` beside it: `python bundle.zip
--help`. On the machine that made the bundle the same functions measure directly, so that there is one way of timing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from hw_profiles.passes import AGAIN_MINUTES, Journal, Law, Record, Report, check_trust, in_passes, in_words

FATAL = 4  # onnxruntime's quietest level
BLOCK_SECONDS = 1.5e-3  # one block of runs of one graph
FEWEST_BLOCKS = 7
SMALLEST_ERROR = 5e-5  # ms: below this a better standard error says nothing about a network
CONFIDENCE, MOST_BLOCKS = 0.01, 61
MANIFEST = "manifest.json"


class Graph:
    """A loaded ONNX graph that can be timed."""

    def __init__(self, model: bytes, threads: int, feed: dict[str, Any] | None = None) -> None:
        """Loads a model and runs it once, on random inputs if none are given."""
        self._session = make_session(model, threads)
        self._feed = random_feed(self._session) if feed is None else feed
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


def others_ready() -> float | None:
    """Programs beside this one that are ready to run now; None where the system does not tell.

    The load average would not do: it follows a minute late, and holds what this program itself did before.
    """
    try:
        return max(0, int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0]) - 1)
    except (OSError, ValueError, IndexError):
        return None


def measure(
    one: Any,
    many: Any,
    copies: int,
    yardstick: Any,
    confidence: float,
    most_blocks: int,
    others: Callable[[], float | None] = others_ready,
) -> Record:
    """Times one entry: blocks of the small graph, the large graph and the yardstick in turn, in alternating order.

    Stops when the standard error of the median slope is below `confidence` of it.

    Args:
        one: The graph with one copy; anything with `seconds(runs)`.
        many: The graph with `copies` copies.
        copies: Copies in the larger graph.
        yardstick: The fixed graph.
        confidence: Relative standard error to reach.
        most_blocks: Blocks at most.
        others: Tells how many other programs are ready to run now.

    Returns:
        n; median, mean, variance and p95 of the slope per copy; what a call takes beside ("overhead_ms"); the
        yardstick's median; all in milliseconds; and the median of `others`.
    """
    graphs = (one, many, yardstick)
    runs = [_warm_up(graph) for graph in graphs]
    rows: list[list[float]] = []
    beside: list[float | None] = []
    while len(rows) < most_blocks:
        row = [0.0, 0.0, 0.0]
        beside.append(others())
        for index in (0, 1, 2) if len(rows) % 2 else (2, 1, 0):
            row[index] = 1e3 * block_seconds(graphs[index], runs[index])
        rows.append(row)
        if len(rows) >= FEWEST_BLOCKS and len(rows) % 2:
            slopes = _slopes(rows, copies)
            if standard_error(slopes) <= max(confidence * float(np.median(slopes)), SMALLEST_ERROR):
                break
    slopes, table = _slopes(rows, copies), np.asarray(rows)
    return {
        "n": len(rows),
        "median_ms": max(0.0, float(np.median(slopes))),
        "mean_ms": float(slopes.mean()),
        "variance": float(slopes.var(ddof=1)),
        "p95_ms": float(np.quantile(slopes, 0.95)),
        "overhead_ms": max(0.0, float(np.median(table[:, 0] - slopes))),
        "yardstick_ms": float(np.median(table[:, 2])),
        "others": median_known(beside),
    }


def median_known(values: Sequence[float | None]) -> float | None:
    """Median of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def block_seconds(graph: Any, runs: int) -> float:
    """Seconds per run over a block, after a run that does not count: it finds another graph's weights in the cache."""
    graph.seconds(1)
    return float(graph.seconds(runs))


def _warm_up(graph: Any) -> int:
    """How many runs make a block."""
    graph.seconds(3)
    return max(1, int(BLOCK_SECONDS / max(graph.seconds(3), 1e-7) + 0.5))


def _slopes(rows: list[list[float]], copies: int) -> Any:
    table = np.asarray(rows)
    return (table[:, 1] - table[:, 0]) / (copies - 1)


def standard_error(values: Any) -> float:
    """Standard error of a median, from the quartiles (a busy machine has outliers)."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float(1.2533 * (high - low) / 1.349 / np.sqrt(len(values)))


def describe_device(threads: int) -> Record:
    """What can be read of this device."""
    kilohertz = _read("cpufreq/scaling_cur_freq")
    return {
        "name": platform.node(),
        "cpu": _processor(),
        "gpu": None,
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count() or 1,
        "cores_used": threads,
        "governor": _read("cpufreq/scaling_governor"),
        "mhz": int(kilohertz) / 1000 if kilohertz else None,
    }


def now() -> str:
    """The time in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")  # noqa: UP017 (devices may have an old Python)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _read(name: str) -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0", name).read_text().strip()
    except OSError:
        return None


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


def survey(
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
    manifest, device = bundle.manifest, describe_device(threads)
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
    yardstick = Graph(bundle.read(manifest["yardstick"]), threads)

    def timed(index: int) -> Record:
        graphs = (Graph(bundle.read(entries[index][part]), threads) for part in ("one", "many"))
        return timer(*graphs, entries[index]["copies"], yardstick, CONFIDENCE, MOST_BLOCKS)

    law = Law(device["cores"] - threads)
    records, found = in_passes(timed, len(entries), book, law, seconds=60 * again_minutes, report=report)
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
        found = survey(
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
