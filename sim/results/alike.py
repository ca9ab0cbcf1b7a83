"""What a comparison must say of its candidates by name: which never differed, and which run on another profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simbatch.sim.results.console import in_place_of

Summary = Mapping[str, Any]
# what a candidate is, not what came of it; and the mean KV use, which is counted by spans: they may be cut differently
_LEFT_OUT = ("policy", "predicted_by", "engine", "engine_defaults", "profile", "warnings", "kv_cache", "cluster")


def same_as(summaries: Mapping[str, Sequence[Summary]]) -> dict[str, str]:
    """Of each candidate all of whose runs have the very figures of an earlier one: the name of that one."""
    found: dict[str, str] = {}
    first: list[tuple[str, list[Summary]]] = []
    for label, runs in summaries.items():
        figures = [_figures(run) for run in runs]
        other = next((name for name, known in first if known == figures), None)
        if other is None:
            first.append((label, figures))
        else:
            found[label] = other
    return found


def same_notes(same: Mapping[str, str], num_runs: int) -> Iterator[str]:
    """A sentence for each candidate that others are the same as."""
    where = "every run here" if num_runs > 1 else "this run"
    for other in dict.fromkeys(same.values()):
        *names, last = (label for label in same if same[label] == other)
        who = f"{', '.join(names)} and {last} are" if names else f"{last} is"
        yield f"NOTE: {who} the same as {other} in {where}: every request fared alike."


def taken_notes(summaries: Mapping[str, Summary]) -> Iterator[str]:
    """Whose profile is another than it asked for; a summary of each will do."""
    for label, summary in summaries.items():
        profile = summary["simbatch"]["profile"]
        if instead := in_place_of(profile, summary["simbatch"]["engine"]):
            yield f"NOTE: {label} runs on profile {profile['name']}{instead}."


def _figures(summary: Summary) -> Summary:
    ours = {key: value for key, value in summary["simbatch"].items() if key not in _LEFT_OUT}
    return {**summary, "simbatch": ours}
