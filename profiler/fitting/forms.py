"""The forms that a fit chooses from; each ends as the parts of a two-regime step time, so that a run needs one model.

hinges: few terms, the functions of a count bend at fixed shares of what the engine allows (gpu/NOTES of the sources:
        at 64 and 128 of 256 sequences, at 256 of 2,048 tokens).
table:  the functions of a count bend wherever enough steps were measured; three densities.
roofline: see `roofline_form`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from simbatch.profiler.fitting.fit import fit_decode, fit_mixed
from simbatch.profiler.fitting.robust import solve_robust
from simbatch.profiler.fitting.roofline_form import fit_roofline
from simbatch.profiler.fitting.samples import EngineFacts
from simbatch.profiler.fitting.steps import Floats, Ints, Steps

SEQ_HINGES = (0.25, 0.5)  # of max_num_seqs
TOKEN_HINGES = (0.125,)  # of max_num_batched_tokens
DRAWS_PER_KNOT = {"table (coarse)": 25, "table": 10, "table (fine)": 4}
MOST_KNOTS = {"table (coarse)": 10, "table": 24, "table (fine)": 64}
Parts = dict[str, dict[str, Any]]  # `decode` and `mixed` of a two-regime step time


@dataclass(frozen=True)
class Measured:
    """Steps with their times in s and the draw of the design that each belongs to."""

    steps: Steps
    time_s: Floats
    episodes: Ints

    def __len__(self) -> int:
        return len(self.time_s)

    def select(self, rows: Any) -> Measured:
        """Return the chosen steps."""
        return Measured(self.steps.select(rows), self.time_s[rows], self.episodes[rows])

    def regime(self, name: str) -> Any:
        """Which steps are `decode` (no prefill), `prefill` (nothing else) or `mixed`."""
        has_prefill, has_decodes = self.steps.prefill_tokens > 0, self.steps.num_decodes > 0
        return {"decode": ~has_prefill, "prefill": has_prefill & ~has_decodes, "mixed": has_prefill & has_decodes}[name]


Form = Callable[[Measured], Parts]


def forms_for(engine: EngineFacts) -> dict[str, Form]:
    """The forms that can be tried on this engine, the simplest first."""
    roofline = fit_roofline(engine)
    few_terms: dict[str, Form] = {
        "hinges": lambda data: _fit_hinges(data, engine),
        "roofline": lambda data: roofline(*_by_part(data)),
    }
    return few_terms | table_forms()


def table_forms() -> dict[str, Form]:
    """Those that need no facts of the engine."""
    return {name: _table(name) for name in DRAWS_PER_KNOT}


def _fit_hinges(data: Measured, engine: EngineFacts) -> Parts:
    decode, mixed = _by_part(data)
    seq_knots = [round(share * engine.max_num_seqs) for share in SEQ_HINGES]
    token_knots = [round(share * engine.max_num_batched_tokens) for share in TOKEN_HINGES]
    return {
        "decode": fit_decode(decode.steps, decode.time_s, seq_knots, solve_robust),
        "mixed": fit_mixed(mixed.steps, mixed.time_s, token_knots, solve_robust),
    }


def _table(name: str) -> Form:
    def fit(data: Measured) -> Parts:
        decode, mixed = _by_part(data)
        seq_knots = _dense_knots(name, decode.episodes, decode.steps.num_decodes)
        token_knots = _dense_knots(name, mixed.episodes, mixed.steps.num_tokens)
        return {
            "decode": fit_decode(decode.steps, decode.time_s, seq_knots, solve_robust),
            "mixed": fit_mixed(mixed.steps, mixed.time_s, token_knots, solve_robust),
        }

    return fit


def _dense_knots(name: str, episodes: Ints, counts: Ints) -> list[int]:
    """Knots at equal shares of the draws: a batch that decodes for eight steps is one draw."""
    draws = np.unique(np.column_stack([episodes, counts]), axis=0)[:, 1]
    num_knots = int(np.clip(len(draws) // DRAWS_PER_KNOT[name], 2, MOST_KNOTS[name]))
    return sorted({int(knot) for knot in np.quantile(draws, np.linspace(0, 1, num_knots), method="nearest")})


def _by_part(data: Measured) -> tuple[Measured, Measured]:
    is_decode = data.regime("decode")
    return data.select(is_decode), data.select(~is_decode)
