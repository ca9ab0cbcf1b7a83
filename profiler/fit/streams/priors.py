"""What is assumed where streams do not tell: of the nearest profile, or of transformers in general.

A token of context costs a decode what reading its keys and values takes, a token of a prompt what multiplying it takes:
their ratio falls as models grow (of the profiles that ship: 1.7e-3 for 8B, 4.3e-4 for 70B in 16 bits, as
size^-0.65), and so does that of attention (1.5e-5 and 6e-6). Where no size is known, 30B is assumed.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from simbatch.sim.cost.gpus import capture_size_of_model, default_max_capture_size
from simbatch.sim.cost.host import HostTimes
from simbatch.sim.cost.profile import Profile
from simbatch.sim.cost.step_time import LinearStepTime

SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[bB](?![a-zA-Z])")
UNKNOWN_B = 30.0
CONTEXT, CONTEXT_POWER = 1.7e-3, -0.65  # of 8B
ATTENTION, ATTENTION_POWER = 1.5e-5, -0.42
BESIDE = 1.5  # between profiles of two attention kernels (1) and of one (2.2)
MAX_CAPTURE = default_max_capture_size("h100")  # where the GPU is not known
GRAPH, LAUNCH = 0.3, 0.5  # of a decode's step: launches that nobody sees


class Priors(NamedTuple):
    """What the traffic hardly tells; `EpisodesProblem.launch_s` has the launches' forms."""

    context: float  # a decode's context over a prefill token
    mixed_context: float  # a decode's context beside prefills over that without
    attention: float  # per q * (2h + q), over a prefill token
    graph_s: float
    launch_s: float
    per_seq: float = 0.0  # what a launch grows by with each running request, over the launch; 0: not known
    max_capture: int = MAX_CAPTURE  # tokens of the largest CUDA graph


class ModelShape(NamedTuple):
    """Ratios, and launches where a host is known, s."""

    context: float
    mixed_context: float
    attention: float
    graph_s: float | None = None
    launch_s: float | None = None
    per_seq: float = 0.0
    max_capture: int = MAX_CAPTURE

    def priors(self, decode_s: float) -> Priors:
        """With launches, if these are not known, as parts of the shortest decode."""
        graph = GRAPH * decode_s if self.graph_s is None else self.graph_s
        return Priors(
            self.context,
            self.mixed_context,
            self.attention,
            graph,
            LAUNCH * decode_s if self.launch_s is None else self.launch_s,
            self.per_seq,
            self.max_capture,
        )


def of_name(model: str | None) -> ModelShape:
    """Of a model by the size in its name."""
    found = SIZE.search((model or "").replace("-", " ").replace("_", " "))
    size = max(1.0, float(found[1])) if found else UNKNOWN_B
    return ModelShape(
        CONTEXT * (size / 8) ** CONTEXT_POWER,
        BESIDE,
        ATTENTION * (size / 8) ** ATTENTION_POWER,
        max_capture=capture_size_of_model(model or "") or MAX_CAPTURE,
    )


def of_profile(profile: Profile) -> ModelShape:
    """Of the nearest profile."""
    own = _launches(profile.host_times()) | {
        "max_capture": profile.capture_size_of_model or profile.default_max_capture_size
    }
    step_time = profile.step_time
    if isinstance(step_time, LinearStepTime):
        token_s = step_time.per_prefill_token_s
        if token_s <= 0:
            return of_name(None)._replace(**own)
        return ModelShape(step_time.per_context_token_s / token_s, 1.0, 0.0, **own)
    mixed, decode = step_time.mixed, step_time.decode
    counts, times_s = np.array(mixed.tokens.count), np.array(mixed.tokens.time_s)
    token_s = float((times_s[-1] - times_s[0]) / max(1, counts[-1] - counts[0])) + mixed.per_prefill_context_token_s
    if token_s <= 0 or decode.per_context_token_s <= 0:
        return of_name(None)._replace(**own)
    return ModelShape(
        decode.per_context_token_s / token_s,
        mixed.per_context_token_s / decode.per_context_token_s,
        mixed.per_attention_unit_s / token_s,
        **own,
    )


def _launches(host: HostTimes | None) -> dict[str, Any]:
    if host is None or not host.none.base_ps:
        return {}
    none = host.none
    return {
        "graph_s": max(1e-4, host.graph.base_ps * 1e-12),
        "launch_s": none.base_ps * 1e-12,
        "per_seq": none.per_seq_ps / (none.base_ps + none.per_prefill_ps),
    }
