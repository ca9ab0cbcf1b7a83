"""How many of a layer's experts a step's tokens meet, and so how many are read."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.model.config import ModelConfig
from simbatch.sim.errors import Problem, UserError

OPTION = "--experts-met"


class Routing(NamedTuple):
    """Experts met by so many tokens, as somebody counted them; without points every expert is as likely.

    Of E experts T tokens that each choose k then meet E * (1 - (1 - k / E) ** T).
    """

    tokens: tuple[int, ...] = ()
    experts: tuple[float, ...] = ()

    def met_share(self, num_experts: int, per_token: int, tokens: Any) -> Any:
        """The share of experts that so many tokens meet: between points on a line over the logarithm of tokens."""
        chosen = min(per_token, num_experts)
        if num_experts == 1:
            return 1.0
        if not self.tokens:
            return 1.0 - (1.0 - chosen / num_experts) ** tokens
        points = (1, *self.tokens) if self.tokens[0] > 1 else self.tokens
        met = (chosen, *self.experts) if self.tokens[0] > 1 else self.experts
        return np.interp(np.log(np.maximum(tokens, 1)), np.log(points), met) / num_experts


EVEN = Routing()


def routing_of(text: str | None, config: ModelConfig) -> Routing:
    """`8:30,64:100`: 8 tokens meet 30 experts, 64 meet 100; UserError for what cannot be, and for a dense model."""
    if text is None:
        return EVEN
    if config.num_experts == 1:
        raise UserError(Problem(OPTION, "the model has no experts", text, "leave it out"))
    pairs = [re.fullmatch(r"\s*(\d+):(\d+(?:\.\d+)?)\s*", one) for one in text.split(",")]
    points = [(int(one[1]), float(one[2])) for one in pairs if one is not None]
    rises = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(points))
    inside = all(n >= 1 and config.num_experts_per_tok <= met <= config.num_experts for n, met in points)
    if len(points) < len(pairs) or not rises or not inside:
        rule = (
            f"must be TOKENS:EXPERTS,... that rise, with {config.num_experts_per_tok} to {config.num_experts} experts"
        )
        raise UserError(Problem(OPTION, rule, text, "for example 8:40,64:110"))
    return Routing(tuple(n for n, _ in points), tuple(met for _, met in points))
