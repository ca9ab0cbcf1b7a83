"""A ranking as text: a page of Markdown for the documentation, tables for the console, numbers for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from simbatch.sim.files import write_json
from simbatch.sim.metrics.registry import Metric, shown
from simbatch.sim.results import files
from simbatch.sim.results.runs import Runs, Summary
from simbatch.sim.scenario import ONE_RUN, runs_words
from simbatch.sim.search.rank import (
    NORMALISED,
    OUTPUT,
    SESSIONS_WITHIN_SLO,
    WITHIN_SLO,
    Judged,
    PolicyStanding,
    RankingPlan,
    overall,
)
from simbatch.sim.text import percent, table

OWN_FILES = ("ranking.md", "ranking.json")
OTHERS = shown("rank")
BEST, EQUAL = "best", "not told apart from the best"
WORDS = {
    WITHIN_SLO.key: "the share of requests within the SLO",
    SESSIONS_WITHIN_SLO.key: "the share of sessions within the SLO",
    OUTPUT.key: "output tokens per second (no SLO, everything arrives at once)",
    NORMALISED.key: "the mean latency per output token (no SLO)",
}


@dataclass(frozen=True)
class Ranking:
    """What came of a plan."""

    plan: RankingPlan
    summaries: Mapping[str, Summary]  # by the cells' keys

    @cached_property
    def judged(self) -> list[Judged]:
        """Each scenario's outcome."""
        return [Judged.of(entry, self.summaries) for entry in self.plan.entries]

    def text(self) -> str:
        """The overall table and who is best where."""
        rows = [
            (row.policy, f"{row.num_scenarios}", f"{row.num_best}", f"{row.mean_rank:.1f}")
            for row in overall(self.judged)
        ]
        lines = table(("policy", "scenarios", "best or not told apart", "mean rank"), rows)
        best = [(judged.entry.scenario.name, _best_words(judged)) for judged in self.judged]
        width = max(len(name) for name, _ in best)
        return "\n".join([*lines, "", *(f"{name.ljust(width)}  {words}" for name, words in best), *self._left_out()])

    def markdown(self) -> str:
        """The page."""
        lines = [
            "# Which policy is best where",
            "",
            f"Made by `simbatch rank` of simbatch {version('simbatch')}; [judging](judging.md) says how.",
            "All policies of a scenario got the same arrivals, seed by seed. *Best* has the best mean; the others are",
            "compared with it by paired differences, whose 95 % intervals hold together in a scenario (Bonferroni).",
            "*Not told apart* is not *equal*. Shares differ in points (of 100). A policy has its default parameters,",
            "except where the scenario gives it others (†).",
            "",
            "| policy | scenarios | best, or not told apart from it | mean rank |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| `{row.policy}` | {row.num_scenarios} | {row.num_best} | {row.mean_rank:.1f} |"
            for row in overall(self.judged)
        ]
        lines += ["", "The mean rank is over the scenarios in which a policy took part; who was in fewer stands below."]
        for judged in self.judged:
            lines += ["", *_section(judged)]
        return "\n".join([*lines, *self._left_out()]) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """The content of ranking.json."""
        return {
            "overall": [
                {
                    "policy": row.policy,
                    "scenarios": row.num_scenarios,
                    "best": row.num_best,
                    "mean_rank": row.mean_rank,
                }
                for row in overall(self.judged)
            ],
            "scenarios": [
                {
                    "scenario": judged.entry.scenario.name,
                    "judge": judged.entry.judge.key,
                    "seeds": list(judged.entry.seeds),
                    "left_out": dict(judged.left_out),
                    "policies": [_as_dict(judged, standing) for standing in judged.standings],
                }
                for judged in self.judged
            ],
            "left_out": self.plan.left_out,
        }

    def save(self, folder: Path | str) -> list[Path]:
        """Write ranking.md and ranking.json; returns their paths."""
        writers: dict[str, Callable[[Path], None]] = {
            "ranking.md": lambda path: _write(path, self.markdown()),
            "ranking.json": lambda path: write_json(path, self.as_dict()),
        }
        scenarios = [judged.entry.scenario for judged in self.judged]
        versions = {scenario.name: scenario.engine.simulated_version for scenario in scenarios}
        return files.write_result(Path(folder), writers, OWN_FILES, versions)

    def _left_out(self) -> Iterator[str]:
        if self.plan.left_out:
            yield ""
        for name, reason in self.plan.left_out.items():
            yield f"Left out: {name} ({reason})."


def verdict(judged: Judged, standing: PolicyStanding) -> str:
    """`best`, what is not told apart from it, or `worse`."""
    if standing.difference is None:
        return BEST
    if judged.is_told_apart(standing):
        return "worse"
    return "equal" if standing.is_equal or judged.is_one_run else EQUAL


def _section(judged: Judged) -> Iterator[str]:
    entry = judged.entry
    judge, seeds = entry.judge, entry.seeds
    runs = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else ONE_RUN
    if entry.is_resampled:
        runs = f"{runs_words(entry.scenario, len(seeds))}, {runs}"
    yield f"## {entry.scenario.name}"
    yield ""
    yield f"Judged by {WORDS[judge.key]}{_slo(entry.scenario.slo.model_dump(exclude_none=True))}; {runs}."
    yield ""
    every = [summary for _, _, runs in judged.experiment for summary in runs.summaries]
    others = [metric for metric in OTHERS if any(metric.of(summary) is not None for summary in every)]
    titles = ["rank", "policy", judge.label, "from the best", *(metric.label for metric in others), ""]
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for standing in judged.standings:
        mine = "†" if standing.policy == entry.scenario.policy.name and entry.scenario.policy.params else ""
        shown = [_figure(standing.runs, metric) for metric in (judge, *others)]
        cells = [f"{standing.rank:g}", f"`{standing.policy}`{mine}", shown[0], _behind(standing), *shown[1:]]
        yield f"| {' | '.join([*cells, _remark(judged, standing)])} |"
    if judged.left_out:
        yield ""
        yield "Left out: " + "; ".join(f"`{name}` ({reason})" for name, reason in judged.left_out.items()) + "."


def _remark(judged: Judged, standing: PolicyStanding) -> str:
    """The verdict, and what must be known about the figures beside it."""
    num = standing.runs.num_overloaded
    share = standing.runs.rejected_share
    notes = [f"overloaded in {num} of {len(judged.entry.seeds)}"] if num else []
    notes += [f"rejected {percent(share)}"] if share else []
    return "; ".join([verdict(judged, standing), *notes])


def _figure(runs: Runs, metric: Metric) -> str:
    """Mean and interval."""
    interval = runs.interval(metric)
    ends = (None, None) if interval is None else (interval.low, interval.high)
    return metric.text_with(runs.mean(metric), *ends)


def _behind(standing: PolicyStanding) -> str:
    """The interval of the difference from the best."""
    if standing.difference is None or standing.difference.interval is None:
        return ""
    difference, span, _, _ = standing.difference.cells()
    return span if difference != "0" else "0"


def _best_words(judged: Judged) -> str:
    best, *others = judged.standings
    equal = [standing.policy for standing in others if not judged.is_told_apart(standing)]
    value = _figure(best.runs, judged.entry.judge)
    rest = f"; not told apart: {', '.join(equal)}" if equal else ""
    return f"{best.policy} ({judged.entry.judge.label} {value}){rest}"


def _slo(limits: Mapping[str, float]) -> str:
    if not limits:
        return ""
    given = [f"{key.removesuffix('_ms').upper()} ≤ {limit:g} ms" for key, limit in limits.items()]
    return f" ({', '.join(given)})"


def _as_dict(judged: Judged, standing: PolicyStanding) -> dict[str, Any]:
    runs, interval = standing.runs, standing.runs.interval(judged.entry.judge)
    return {
        "policy": standing.policy,
        "parameters": {key: value for key, value in runs.summaries[0]["simbatch"]["policy"].items() if key != "name"},
        "rank": standing.rank,
        "mean": standing.mean,
        "interval": interval and {"low": interval.low, "high": interval.high, "n": interval.n},
        "difference": standing.difference and standing.difference.as_dict(),
        "verdict": verdict(judged, standing),
        "overloaded_runs": standing.runs.num_overloaded,
        "rejected_share": standing.runs.rejected_share,
        "runs": standing.values,
        "others": {metric.key: runs.values(metric) for metric in OTHERS},
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
