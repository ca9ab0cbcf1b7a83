"""How far a simulation may be off: bounds in percent, and which figure each of them holds for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from simbatch.sim.errors import Problem, UserError

STATISTICS = ("mean", "median", "p90", "p99")
LATENCIES = ("ttft", "tpot", "e2el")
THROUGHPUTS = ("request_throughput", "output_throughput")
SPREADS = 2.0  # a figure may be off by so many times the real runs' own spread, where that is more
MEND = "write for example --bounds mean=5,mean_ttft=10,p90=10"


@dataclass(frozen=True)
class Bounds:
    """Shares by name: a statistic, `throughput`, or one figure; the nearest name counts."""

    shares: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> Bounds:
        """From `mean=5,p90=10,mean_ttft=10,throughput=4` (percent); UserError for anything else."""
        shares = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            known = {*STATISTICS, "throughput", *THROUGHPUTS, *(f"{s}_{n}" for s in STATISTICS for n in LATENCIES)}
            if name not in known or not equals:
                rule = f"must name {', '.join(STATISTICS)}, throughput or one figure (mean_ttft, output_throughput)"
                raise UserError(Problem("--bounds", rule, part, MEND))
            if name in shares:
                raise UserError(Problem("--bounds", f"{name} is given twice", text, MEND))
            shares[name] = _percent(name, value.removesuffix("%"))
        return cls(shares)

    def of(self, key: str) -> float | None:
        """The bound of a figure by its key in summary.json, a share; None where there is none."""
        name = key.removesuffix("_ms")
        if name in self.shares:
            return self.shares[name]
        if name in THROUGHPUTS:  # they are means over time
            return self.shares.get("throughput", self.shares.get("mean"))
        statistic, _, latency = name.partition("_")
        return self.shares.get(statistic) if latency in LATENCIES else None

    def unchecked(self, keys: Collection[str]) -> list[str]:
        """The names that hold for none of the figures `keys`."""
        return [name for name, share in self.shares.items() if not any(Bounds({name: share}).of(key) for key in keys)]


def _percent(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UserError(Problem("--bounds", f"{name} must be a number of percent above 0", text, MEND))
    return value / 100


def is_within(error: float | None, bound: float, spread: float | None) -> bool:
    """Within the bound, or within twice the runs' own spread where that is larger; what was not measured is not."""
    return error is not None and abs(error) <= max(bound, SPREADS * (spread or 0.0))
