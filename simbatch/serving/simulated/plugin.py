"""What vLLM asks of every installed platform (`vllm.platform_plugins` in pyproject.toml): whether it is its turn.

This is imported wherever vLLM and simbatch are installed together, so it imports nothing: the platform itself is named,
and imported only under `simbatch serve`.
"""

from __future__ import annotations

import os

SPEC = "SIMBATCH_SERVE"  # the file that says what is served; set for the processes of `simbatch serve` alone


def register() -> str | None:
    """The platform's name under `simbatch serve`, None everywhere else."""
    return "simbatch.serving.simulated.platform.SimulatedPlatform" if os.environ.get(SPEC) else None
