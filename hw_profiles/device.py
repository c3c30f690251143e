"""What can be read of the machine that this runs on.

It travels to devices beside `device_script`, so it needs only Python.
"""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


def describe_device(threads: int) -> dict[str, Any]:
    """The device header of a profile, as far as it can be read.

    Args:
        threads: Threads that compute.
    """
    kilohertz = _read("cpufreq/scaling_cur_freq")
    return {
        "name": platform.node(),
        "cpu": cpu_model(),
        "gpu": None,
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count() or 1,
        "cores_used": threads,
        "governor": _read("cpufreq/scaling_governor"),
        "mhz": int(kilohertz) / 1000 if kilohertz else None,
    }


def cpu_model() -> str:
    """Model of the processor; its architecture where nothing better is known."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")  # noqa: UP017 (devices may have an old Python)


def _read(name: str) -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0", name).read_text().strip()
    except OSError:
        return None
