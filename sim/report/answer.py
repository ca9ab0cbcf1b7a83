"""What a run says in four lines: is the SLO kept, what binds, is there room, how far can it be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from simbatch.sim.metrics.steady import OVERLOADED
from simbatch.sim.text import number, percent

FULL = 0.99  # of the KV cache
MIN_WAIT = 0.1  # of the time, from which on a wait for host or front end is worth naming


def answer(summary: Mapping[str, Any]) -> Iterator[str]:
    """The four lines; `summary` as in summary.json."""
    ours = summary["simbatch"]
    yield f"SLO: {_kept(summary)}."
    yield f"What binds: {' and '.join(_binding(ours)) or 'nothing but the time that steps take'}."
    yield f"Load: {_load(ours)}."
    yield f"Trust: {trust_of(ours['profile'])}."


def _kept(summary: Mapping[str, Any]) -> str:
    ours = summary["simbatch"]
    shares = {name: share for name, share in ours["slo_share"].items() if share is not None}
    if not shares:
        tails = ", ".join(f"{name.upper()} {number(summary[f'p99_{name}_ms'], 0)} ms" for name in ("ttft", "tpot"))
        return f"none is set; P99 {tails}, {number(summary['output_throughput'])} output tok/s"
    kept = f"{percent(shares.pop('all'))} of {ours['requests']['total']:,} requests keep it"
    worst = min(shares, key=lambda name: shares[name], default=None)
    if worst is None or shares[worst] == 1:
        return kept
    limit = ours["slo"][f"{worst}_ms"]
    return f"{kept}; {worst.upper()} breaks it most ({percent(shares[worst])} are within {limit:g} ms)"


def _binding(ours: Mapping[str, Any]) -> Iterator[str]:
    """What the run came up against."""
    kv, batch, shares = ours["kv_cache"], ours["batch_size"], ours["time_share"]
    if (kv["peak_use"] or 0) >= FULL or ours["num_preemptions"]:
        yield f"the KV cache ({percent(kv['peak_use'])} at its peak, {ours['num_preemptions']:,} preemptions)"
    most = ours["engine"].get("max_num_seqs")
    if most is not None and batch["max"] >= most:
        yield f"max_num_seqs (all {most:,} were running)"
    for name, what in (("host", "the GPU waited for it"), ("front_end", "tokens waited for it")):
        if (shares[name] or 0) >= MIN_WAIT:
            yield f"the {name.replace('_', ' ')} ({what} {percent(shares[name])} of the time)"


def _load(ours: Mapping[str, Any]) -> str:
    if ours["steady_state"]["refused"] == OVERLOADED or any(w.startswith("Overloaded") for w in ours["warnings"]):
        return "above the capacity: the queue kept growing for as long as requests arrived"
    waiting = number(ours["queue"]["mean_waiting"])
    return f"the queue does not keep growing ({waiting} wait on average); room: simbatch tune --capacity"


def trust_of(profile: Mapping[str, Any]) -> str:
    """How far a profile can be trusted, in half a line; `profile` as in summary.json."""
    if profile["is_estimate"]:
        return f"{profile['name']} is an estimate, which nobody measured"
    if not profile["source"]:
        return "step times are those of the scenario"
    error = (profile["error"] or "error not stated").partition(";")[0].partition(" (")[0]
    share = profile["share_of_steps_in_range"]
    inside = "" if share is None else f"; {percent(share)} in range"
    return f"{profile['name']} ({error}{' off' if error.endswith('%') else ''}){inside}"
