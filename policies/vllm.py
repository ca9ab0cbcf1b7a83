"""vLLM's default scheduler."""

from __future__ import annotations

from simbatch.sim.plugins.policy import Policy


class VLLM(Policy):
    """vLLM's own scheduler: every decision as vLLM V1 makes it, in the order of `engine.scheduling_policy`.

    Source: `v1/core/sched/scheduler.py` of vLLM 0.32; Kwon et al., Efficient Memory Management for Large Language Model
    Serving with PagedAttention (SOSP 2023), and the iteration-level batching of Yu et al., Orca (OSDI 2022): whoever
    ends leaves at once and the next takes the seat. So it serves more per second, sooner, than batches that run to
    their end, the more so the more the lengths of outputs differ.
    """

    known_as = "vLLM V1"
