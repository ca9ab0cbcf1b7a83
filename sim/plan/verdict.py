"""What the simulations of one fleet at one rate say of the limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from simbatch.sim.metrics.steady import OVERLOADED
from simbatch.sim.results.runs import Summary, refusal_of
from simbatch.sim.tuning.goal import Limit

MAX_REFUSED = 0.001  # share of the requests that may be rejected or refused
REFUSED = "refused"


@dataclass(frozen=True)
class Verdict:
    """What the runs of one fleet at one rate say of the limits: the worst run of each figure."""

    values: Mapping[str, float | None]
    excess: Mapping[str, float]  # by which share each limit is broken (above 0) or kept (below)
    is_overloaded: bool
    refused_share: float
    throughput: float  # requests per second, the least
    output_throughput: float
    input_throughput: float
    concurrency: float
    busy_share: float  # of the devices' time, on average

    @classmethod
    def of(cls, summaries: Sequence[Summary], limits: Sequence[Limit]) -> Verdict:
        """Of the runs under several seeds."""
        figures = [{limit.metric.key: limit.metric.of(summary) for limit in limits} for summary in summaries]
        worst = [max(figures, key=lambda run, key=limit: key.excess(run[key.metric.key])) for limit in limits]  # type: ignore[misc]
        values = {limit.metric.key: run[limit.metric.key] for limit, run in zip(limits, worst, strict=True)}
        return cls(
            values=values,
            excess={limit.metric.key: limit.excess(values[limit.metric.key]) for limit in limits},
            is_overloaded=any(refusal_of(summary) == OVERLOADED for summary in summaries),
            refused_share=max(map(_refused_share, summaries)),
            throughput=min(float(summary["request_throughput"] or 0.0) for summary in summaries),
            output_throughput=_mean([float(summary["output_throughput"] or 0.0) for summary in summaries]),
            input_throughput=_mean([_input_throughput(summary) for summary in summaries]),
            concurrency=max(summary["simbatch"]["mean_concurrent_requests"] or 0.0 for summary in summaries),
            busy_share=_mean([float(summary["simbatch"]["device_busy_share"] or 0.0) for summary in summaries]),
        )

    @property
    def broken(self) -> dict[str, float]:
        """What is broken, by which share; a growing queue and refused requests among them."""
        found = {key: excess for key, excess in self.excess.items() if excess > 0}
        if self.is_overloaded:
            found[OVERLOADED] = inf
        if self.refused_share > MAX_REFUSED:
            found[REFUSED] = self.refused_share
        return found

    @property
    def is_kept(self) -> bool:
        """Whether every limit is kept."""
        return not self.broken

    @property
    def margin(self) -> float:
        """By how much the limit that is nearest is kept; below 0 where it is broken."""
        return -max([*self.excess.values(), *self.broken.values()], default=-1.0)

    @property
    def nearest(self) -> str | None:
        """What is broken most, or would be next."""
        return max(self.broken or self.excess, key=lambda key: (self.broken or self.excess)[key], default=None)


def _refused_share(summary: Summary) -> float:
    requests = summary["simbatch"]["requests"]
    lost = sum(int(requests.get(kind, 0)) for kind in ("rejected", "refused"))
    return lost / max(1, int(requests["total"]))


def _input_throughput(summary: Summary) -> float:
    duration = summary["duration"]
    return float(summary["total_input_tokens"]) / duration if duration else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
