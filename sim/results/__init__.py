"""What a simulation says: the metrics of `vllm bench serve`, files, pictures, comparisons."""

from simbatch.sim.results.facts import RunFacts, Slo
from simbatch.sim.results.result import Result

__all__ = ["Result", "RunFacts", "Slo"]
