"""The range that steps span, regime by regime, as a profile states it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.fitting.forms import Measured
from simbatch.profiler.fitting.steps import Steps


def range_of(data: Measured) -> dict[str, Any]:
    """Lowest and highest of everything that `MeasuredRange` looks at."""
    is_decode = data.regime("decode")
    decode, mixed = data.steps.select(is_decode), data.steps.select(~is_decode)
    # as MeasuredRange computes it: chunks of one size
    squares = mixed.prefill_tokens**2 / np.maximum(1, mixed.num_prefills)
    history = np.maximum(0.0, mixed.prefill_attention - squares) / (2 * mixed.prefill_tokens)
    return {
        "decode": {"num_decodes": _bounds(decode.num_decodes), **_contexts(decode)},
        "mixed": {
            "num_tokens": _bounds(mixed.num_tokens),
            "prefill_tokens": _bounds(mixed.prefill_tokens),
            "mean_history": _bounds(history),
            "num_decodes": _bounds(mixed.num_decodes),
            **_contexts(mixed.select(mixed.num_decodes > 0)),
        },
    }


def _contexts(steps: Steps) -> dict[str, tuple[int, int]]:
    return {"mean_context": _bounds(steps.mean_context), "decode_context": _bounds(steps.decode_context)}


def _bounds(values: NDArray[Any]) -> tuple[int, int]:
    return int(np.floor(values.min())), int(np.ceil(values.max()))
