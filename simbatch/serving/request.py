"""A request of vLLM's as the simulator knows requests; read by the names of vLLM 0.32, nothing is imported from it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from simbatch.sim.scheduler.request import NEVER

UNASKED = object()


class ServedRequest:
    """A request of vLLM's (`inside`) as the simulator's decisions and views know requests; what changes is read live.

    `ahead` holds what the step in planning has given out so far: vLLM adds it up when the step is planned, the
    simulator at once. What vLLM does not know of a request comes with it, in `vllm_xargs`, which become
    `SamplingParams.extra_args`.
    """

    first_token_ps = finish_ps = NEVER
    predicted_output_tokens: float | None = None
    view: object = None  # what policies see of it

    def __init__(self, index: int, inside: Any, arrival_ps: int, max_model_len: int, ahead: dict[str, int]) -> None:
        self.index, self.inside, self.arrival_ps, self._ahead = index, inside, arrival_ps, ahead
        self.max_tokens = min(inside.max_tokens, max_model_len - inside.num_prompt_tokens)
        self.priority = inside.priority
        extra = getattr(inside.sampling_params, "extra_args", None) or {}
        self.tenant = extra.get("tenant")
        self.session_id = extra.get("session_id")
        self.turn = int(extra.get("turn", 0))
        self.has_next_turn = bool(extra.get("has_next_turn", False))
        self.foretold = extra.get("predicted_output_tokens")  # by whoever sent it
        self._name = extra.get("request_id") or own_name(inside.request_id)
        self.is_seated = False  # as far as the policy has been told
        self.lane: Hashable = UNASKED

    @property
    def request_id(self) -> str:
        """The name it came with."""
        return self._name

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return int(self.inside.num_prompt_tokens)

    @property
    def num_tokens(self) -> int:
        """The prompt and the outputs received."""
        return int(self.inside.num_tokens)

    @property
    def num_output_tokens(self) -> int:
        """Tokens produced and received so far."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def num_computed_tokens(self) -> int:
        """Tokens in the KV cache, or being computed."""
        return int(self.inside.num_computed_tokens) + self._ahead.get(self.inside.request_id, 0)

    @property
    def num_placeholders(self) -> int:
        """Tokens sampled by steps in flight."""
        return int(self.inside.num_output_placeholders)

    @property
    def num_preemptions(self) -> int:
        """How often it has lost its blocks."""
        return int(self.inside.num_preemptions)


def own_name(inside: str) -> str:
    """The name that a request came with: vLLM adds a dash and eight random digits (v1/engine/input_processor.py)."""
    name, dash, digits = inside.rpartition("-")
    return name if dash and name and len(digits) == 8 and set(digits) <= set("0123456789abcdef") else inside
