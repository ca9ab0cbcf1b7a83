"""The simulated GPU as vLLM's platforms are: what it is called, how much memory it has, whose worker runs on it.

By the names of vLLM 0.32 (vllm/platforms/interface.py, cpu.py). Tensors are a CPU's, since there are next to none.
"""

from __future__ import annotations

from typing import Any

from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import PlatformEnum

from simbatch.serving.simulated.device import ServeSpec
from simbatch.sim.cost.profile import MeasuredProfile

WORKER = "simbatch.serving.simulated.worker.SimulatedWorker"
SCHEDULER = "simbatch.serving.simulated.rounds.watched_scheduler"
INLINE_BYTES = 80 * 2**30  # nobody said how large the GPU is


class SimulatedPlatform(CpuPlatform):  # type: ignore[misc]
    """A device whose only property is how long it takes."""

    _enum = PlatformEnum.OOT
    device_name = "simulated"

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:  # noqa: ARG003 - there is one
        """What logs call it."""
        return f"simulated {ServeSpec.of_environment().resolved.profile.name}"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:  # noqa: ARG003
        """Bytes, as the profile says."""
        profile = ServeSpec.of_environment().resolved.profile
        return profile.memory.total_bytes if isinstance(profile, MeasuredProfile) else INLINE_BYTES

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """Our worker, and none of what a CPU needs: no compilation, no graphs, the scheduling that was asked for."""
        spec = ServeSpec.of_environment()
        vllm_config.parallel_config.worker_cls = WORKER
        # never captured; a policy that looks at step times reads them here
        vllm_config.compilation_config.cudagraph_capture_sizes = list(spec.resolved.capture_sizes)
        if spec.is_watched:
            vllm_config.scheduler_config.scheduler_cls = SCHEDULER

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: Any) -> None:
        """The block size is what was asked for: no kernel wants another."""
