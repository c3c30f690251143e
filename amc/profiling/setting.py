"""Under which setting networks are run and timed."""

from __future__ import annotations

from dataclasses import dataclass

from hw_profiles.latency.profile import Profile
from hw_profiles.latency.runtimes import EXECUTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How networks are run.

    Attributes:
        runtime: Name of the runtime (`EXECUTIONS`).
        threads: Threads within an operator.
        batch: Batch size.
        dtype: fp32 or fp16.
    """

    runtime: str = "onnxruntime"
    threads: int = 1
    batch: int = 1
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        """Refuses what cannot be measured."""
        if self.runtime not in EXECUTIONS:
            raise ValueError(f"--runtime must be {' or '.join(EXECUTIONS)}, but got {self.runtime!r}")
        if self.dtype not in ("fp32", "fp16"):
            raise ValueError(
                f"--dtype must be fp32 or fp16, but got {self.dtype!r}: int8 needs a quantized network, which a "
                "pruned one is not"
            )
        if self.threads < 1 or self.batch < 1:
            raise ValueError(
                f"--threads and --batch must be at least 1, but got threads={self.threads}, batch={self.batch}"
            )

    @classmethod
    def of(cls, profile: Profile) -> Setting:
        """The setting under which a profile was measured."""
        return cls(runtime=profile.runtime, threads=profile.threads, batch=profile.batch, dtype=profile.dtype)
