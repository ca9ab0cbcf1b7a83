"""What a validation's figures are made of: the real engine's steps and the turns of sessions, beside the simulated."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.records.lines import durations_s
from simbatch.profiler.records.real_run import RealRun, features
from simbatch.sim.clock import PS_PER_MS, PS_PER_S
from simbatch.sim.cost.model import CostModel, step_ps
from simbatch.sim.metrics.sessions import SessionFigures

UNTOLD_HITS = (
    "hit rates by turn left out: the server does not tell how much of a prompt it found in its cache "
    "(vllm serve --enable-prompt-tokens-details), or found nothing"
)


def step_figures(runs: Sequence[RealRun], cost: CostModel) -> list[dict[str, Any]]:
    """Per regime: how many steps, what they took on average and what the profile says of them, ms."""
    found: dict[str, list[tuple[float, int]]] = {"decode-only": [], "with prefills": []}
    for run in runs:
        for step, took_s in durations_s(run.lines):
            pair = took_s * PS_PER_S, step_ps(cost, features(step, cost.windows))
            found["with prefills" if step.prefills else "decode-only"].append(pair)
    return [_row(regime, np.array(pairs, dtype=np.float64)) for regime, pairs in found.items() if pairs]


def _row(regime: str, pairs: NDArray[np.float64]) -> dict[str, Any]:
    real_ms, profile_ms = pairs.mean(axis=0) / PS_PER_MS
    figures = {"real_ms": float(real_ms), "profile_ms": float(profile_ms), "error": float(profile_ms / real_ms - 1)}
    return {"regime": regime, "num_steps": len(pairs), **figures}


def turn_figures(real: Sequence[RealRun], simulated: RealRun) -> list[dict[str, Any]]:
    """A row a turn of sessions (0: the first): the mean TTFT, ms, and the share of prompts from the prefix cache.

    Each is the median of the `real` runs beside the `simulated` one; None where nothing was measured. No rows without
    sessions, or where a real run's requests are not known.
    """
    own, theirs = SessionFigures.of(simulated.record), [SessionFigures.of(run.record) for run in real]
    known = [figures for figures in theirs if figures is not None]
    if own is None or not known or len(known) < len(theirs):
        return []
    tells = any(run.record.requests.num_cached_tokens.any() for run in real)
    every = [{row["turn"]: row for row in figures.by_turn()} for figures in known]
    rows = []
    for row in own.by_turn():
        beside = [by_turn[row["turn"]] for by_turn in every if row["turn"] in by_turn]
        both = {
            key: {"real": _median([each[key] for each in beside]), "simulated": row[key]}
            for key in ("mean_ttft_ms", "cached_tokens_share")
        }
        if not tells:
            both["cached_tokens_share"]["real"] = None
        rows.append({name: row[name] for name in ("turn", "last_turn", "num_requests")} | both)
    return rows


def _median(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return median(there) if there else None
