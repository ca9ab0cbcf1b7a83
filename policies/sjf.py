"""Shortest predicted job first."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simbatch.sim.plugins.policy import Policy, RequestView


class ShortestJobFirst(Policy):
    """Admit the request with the shortest predicted output first; nobody who runs is interrupted.

    The predictor's error is stated: `predictor_error` is the standard deviation of ln(predicted / true), 0 an oracle.
    With `max_overtaking_s`, a request's place is its arrival put off by a share of that time, the larger the longer
    its prediction and a half at `typical_output_tokens`; so nobody waits for ever.

    Source: Qiu et al., Efficient Interactive LLM Serving with Proxy Model-based Sequence Length Prediction (SSJF, AIOps
    at ASPLOS 2024); Fu et al., Efficient LLM Scheduling by Learning to Rank (NeurIPS 2024): mean latency falls against
    first come, first served as long as requests queue, the less the worse the prediction.
    """

    known_as = "SSJF"
    predictor_error: Annotated[float, Field(ge=0, le=10, description="of ln(predicted / true); 0: an oracle")] = 0.5
    max_overtaking_s: Annotated[
        float | None, Field(ge=0, description="overtaken only by requests that come within this time; none: no bound")
    ] = None
    typical_output_tokens: Annotated[
        float, Field(gt=0, description="the prediction that is put off by half of max_overtaking_s")
    ] = 200.0

    def order(self, request: RequestView) -> float:
        """The predicted length; with a bound, the arrival, put off by less than that bound."""
        predicted = request.predicted_output_tokens
        if self.max_overtaking_s is None:
            return predicted
        return request.arrival_s + self.max_overtaking_s * predicted / (predicted + self.typical_output_tokens)

    def starvation_bound_s(self) -> float | None:
        """As the parameter says."""
        return self.max_overtaking_s
