"""What a profile says of its measurement beside its figures: how tokens were drawn, what first visits took."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simbatch.profiler.fitting.robust import non_negative
from simbatch.profiler.fitting.samples import StepSample, steps_of
from simbatch.profiler.fitting.steps import predict_s
from simbatch.sim.cost.model import CostModel

FEW = 30  # steps


def sampling_note(by_model: Sequence[StepSample], cost: CostModel) -> str:
    """What drawing tokens as the model's own config says adds to a step, beside greedy ones, of decodes alone."""
    steps, took_s, _ = steps_of(by_model)
    rows = steps.prefill_tokens == 0
    if rows.sum() < FEW:
        return "sampling: greedy (temperature 0); too few steps with the model's own config to tell what that adds"
    n = steps.num_decodes[rows]
    more_s = took_s[rows] - predict_s(cost, steps.select(rows))
    usual = more_s <= np.quantile(more_s, 0.95)  # without standstills
    base_s, each_s = non_negative(np.column_stack([np.ones(len(n)), n])[usual], more_s[usual])
    return (
        "sampling: greedy (temperature 0); as the model's generation_config.json says a step of decodes takes "
        f"{1e3 * base_s:.2f} ms and {1e6 * each_s:.1f} us a request longer ({rows.sum():,} steps)"
    )


def first_visits_note(samples: Sequence[StepSample], cost: CostModel) -> str:
    """How much longer steps take whose number of tokens is met for the first time; a server meets them too."""
    steps, took_s, _ = steps_of(samples)
    _, first = np.unique(steps.num_tokens, return_index=True)
    more_s = took_s - predict_s(cost, steps)
    again = np.delete(more_s, first)
    if min(len(first), len(again)) < FEW:
        return ""
    return (
        f"first visits: {len(first):,} steps had a number of tokens that no step before had; they took "
        f"{1e3 * (more_s[first].mean() - again.mean()):+.2f} ms on average against the others, and are fitted with them"
    )
