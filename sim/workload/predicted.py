"""What is predicted of the output lengths before the requests reach the engine: by a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import isfinite
from numbers import Real

from simbatch.sim.clock import to_s
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.plugins import place_of
from simbatch.sim.workload.chunk import RequestChunk, RequestSource


@dataclass(frozen=True, slots=True)
class Predictable:
    """What a predictor is shown of a request; with the true length, so that it can err in a way of its own."""

    request_id: str
    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    priority: int
    tenant: str | None


Predictor = Callable[[Predictable], float]  # tokens, above 0


class PredictedSource:
    """The requests of `source` with what `predictor` says of each, asked once a request, in order of arrival."""

    def __init__(self, source: RequestSource, predictor: Predictor) -> None:
        self._source, self._predictor = source, predictor
        self.hash_block_tokens = source.hash_block_tokens
        self.num_requests = source.num_requests
        self.max_concurrency = source.max_concurrency
        self.think_time_ps = source.think_time_ps
        self.skipped = 0

    def chunks(self) -> Iterator[RequestChunk]:
        """The requests; UserError for a predictor that fails or does not answer with a length."""
        first = 0
        for chunk in self._source.chunks():
            yield replace(chunk, predicted_output_tokens=[self._ask(each) for each in _shown(chunk, first)])
            first += len(chunk)
        self.skipped = self._source.skipped

    def _ask(self, request: Predictable) -> float:
        name = name_of(self._predictor)
        try:
            predicted = self._predictor(request)
        except Exception as error:
            place, mend = place_of(error, self._predictor)
            rule = f"predictor {name} failed for request {request.request_id}: {type(error).__name__}: {error}"
            raise UserError(Problem(place, rule, mend=mend)) from error
        if isinstance(predicted, Real) and isfinite(predicted) and predicted > 0:
            return float(predicted)
        rule = f"must return a number of tokens above 0 (for request {request.request_id})"
        raise UserError(Problem(f"predictor {name}", rule, predicted, "mend the predictor"))


def name_of(predictor: Predictor) -> str:
    """What results call it: `module:function`, or its class."""
    named = predictor if hasattr(predictor, "__qualname__") else type(predictor)
    return f"{named.__module__}:{named.__qualname__}"


def _shown(chunk: RequestChunk, first: int) -> Iterator[Predictable]:
    for i, arrival_ps in enumerate(chunk.arrival_ps):
        yield Predictable(
            chunk.request_id[i] if chunk.request_id else str(first + i),
            to_s(arrival_ps),
            chunk.num_prompt_tokens[i],
            chunk.num_output_tokens[i],
            chunk.priority[i] if chunk.priority else 0,
            chunk.tenant[i] if chunk.tenant else None,
        )
