"""What was measured, and how many of a simulation's steps were inside it."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from simbatch.sim.strict import Strict

SLICE_ROWS = 65_536


def _in_order(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError("the lowest stands first")
    return bounds


Bounds = Annotated[
    tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]],
    AfterValidator(_in_order),
    Field(strict=False, description="lowest and highest, both inside"),
]


class DecodeRange(Strict):
    """Decode-only steps: batch, mean context of a decode, context of all decodes together."""

    num_decodes: Bounds
    mean_context: Bounds
    decode_context: Bounds


class MixedRange(Strict):
    """Steps with any prefill; `num_tokens` counts prefill and decode tokens, `mean_history` is weighted by chunk."""

    num_tokens: Bounds
    prefill_tokens: Bounds
    mean_history: Bounds
    num_decodes: Bounds
    mean_context: Bounds
    decode_context: Bounds


class MeasuredRange(Strict):
    """The measured range by regime: mean contexts and histories in tokens."""

    decode: DecodeRange
    mixed: MixedRange

    def share_inside(self, segments: NDArray[np.void]) -> float:
        """The share of steps inside the range, 1 when there is none; `segments`: see `engine.record.SEGMENT_DTYPE`."""
        inside = total = 0
        for begin in range(0, len(segments), SLICE_ROWS):  # millions of rows are not copied at once
            rows = segments[begin : begin + SLICE_ROWS]
            has_prefill = rows["prefill_tokens"] > 0
            decodes_only = (rows["num_decodes"] > 0) & ~has_prefill
            total += int(rows["num_steps"][has_prefill | decodes_only].sum())
            inside += self._decode_steps_inside(_Chosen(rows, decodes_only))
            inside += self._mixed_steps_inside(_Chosen(rows, has_prefill))
        return inside / total if total else 1.0

    def _decode_steps_inside(self, rows: _Chosen) -> int:
        """Step i of a span has a context of K + i*n: the steps inside are an interval of i."""
        n, context, last = rows["num_decodes"], rows["decode_context"], rows["num_steps"] - 1
        lowest = np.maximum(self.decode.mean_context[0] * n, self.decode.decode_context[0])
        highest = np.minimum(self.decode.mean_context[1] * n, self.decode.decode_context[1])
        first_inside = np.maximum(0, -((context - lowest) // n))
        last_inside = np.minimum(last, (highest - context) // n)
        steps = np.maximum(0, last_inside - first_inside + 1)
        return int(steps[_within(n, self.decode.num_decodes)].sum())

    def _mixed_steps_inside(self, rows: _Chosen) -> int:
        n, context, tokens = rows["num_decodes"], rows["decode_context"], rows["prefill_tokens"]
        # sum of q*(2h+q) = 2 * P * mean history + sum of q*q, and chunks of one size have a q*q of P*P / count
        squares = tokens * tokens / np.maximum(1, rows["num_prefills"])
        history = np.maximum(0.0, rows["prefill_attention"] - squares) / (2 * tokens)
        r = self.mixed
        inside = _within(tokens + n, r.num_tokens) & _within(tokens, r.prefill_tokens) & _within(n, r.num_decodes)
        inside &= _within(history, r.mean_history)
        inside &= (n == 0) | (_within(context / np.maximum(1, n), r.mean_context) & _within(context, r.decode_context))
        return int(rows["num_steps"][inside].sum())


class _Chosen:
    """Some rows, a column at a time: to copy them whole takes ten times as long."""

    def __init__(self, rows: NDArray[np.void], chosen: NDArray[np.bool_]) -> None:
        self._rows, self._chosen = rows, chosen

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        column: NDArray[np.int64] = self._rows[name][self._chosen]
        return column


def _within(values: NDArray[Any], bounds: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray((values >= bounds[0]) & (values <= bounds[1]))
