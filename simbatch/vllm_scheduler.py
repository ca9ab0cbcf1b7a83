r"""The scheduler class that runs a simbatch policy in real vLLM, unchanged.

    vllm serve MODEL --scheduler-cls simbatch.vllm_scheduler.PolicyScheduler \
        --additional-config '{"simbatch": {"policy": {"name": "adaptive", "target_tpot_ms": 40}}}'

The policy sees vLLM's requests through the simulator's views, and the simulator's `Decisions` checks what it says.
vLLM's inside is no public interface: importing this raises UserError on a version that it was not written for.
"""

from __future__ import annotations

from simbatch.profiler.server.start import require_vllm

require_vllm()

from simbatch.serving.scheduler import AsyncPolicyScheduler, PolicyScheduler  # noqa: E402

__all__ = ["AsyncPolicyScheduler", "PolicyScheduler"]
