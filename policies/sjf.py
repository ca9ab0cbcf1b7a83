"""Shortest predicted job first."""

from __future__ import annotations

from math import inf
from typing import Annotated

from pydantic import Field

from simbatch.policies.base import Policy, RequestView


class ShortestJobFirst(Policy):
    """Admit the request with the shortest predicted output first; nobody who runs is interrupted.

    The predictor's error is stated: `predictor_error` is the standard deviation of ln(predicted / true), 0 an oracle.
    Source: Qiu et al., Efficient Interactive LLM Serving with Proxy Model-based Sequence Length Prediction (2024);
    Fu et al., Efficient LLM Scheduling by Learning to Rank (NeurIPS 2024): mean latency falls against first come,
    first served as long as requests queue, the less the worse the prediction.
    """

    predictor_error: Annotated[float, Field(ge=0, le=10, description="of ln(predicted / true); 0: an oracle")] = 0.5
    max_overtaking_s: Annotated[
        float | None, Field(ge=0, description="overtaken only by requests that come within this time; none: no bound")
    ] = None
    s_per_token: Annotated[float, Field(gt=0, description="what a predicted token weighs against waiting")] = 1.0

    def order(self, request: RequestView) -> float:
        """The predicted length; with a bound, the arrival, put off by up to that bound."""
        if self.max_overtaking_s is None:
            return request.predicted_output_tokens
        return request.arrival_s + min(request.predicted_output_tokens * self.s_per_token, self.max_overtaking_s)

    def starvation_bound_s(self) -> float | None:
        """As the parameter says."""
        return self.max_overtaking_s if self.max_overtaking_s != inf else None
