"""vLLM's default scheduler."""

from __future__ import annotations

from simbatch.policies.base import Policy


class VLLM(Policy):
    """vLLM's own scheduler: every decision as vLLM V1 makes it, in the order of `engine.scheduling_policy`."""
