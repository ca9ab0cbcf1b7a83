"""Where a profile's figures are from and how far off they are: held-out errors, real runs, links, fits from servers.

The range that was measured tells how many of a simulation's steps were inside it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from simbatch.sim.json_values import Strict

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
        self._rows, self._places = rows, np.flatnonzero(chosen)

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        column: NDArray[np.int64] = self._rows[name][self._places]
        return column


def _within(values: NDArray[Any], bounds: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray((values >= bounds[0]) & (values <= bounds[1]))


Count = Annotated[int, Field(ge=0)]


class ErrorFigures(Strict):
    """Relative errors as shares of the measured step time; bias: sum predicted / sum measured - 1."""

    num_steps: int = Field(ge=0)
    mape: float = Field(ge=0)
    p95: float = Field(ge=0)
    bias: float


class FitError(Strict):
    """Held-out error per regime; bands by the number of decodes, named `9-32`."""

    design: str = Field(description="which steps were fitted on, and which held out")
    against: Literal["steps", "tables"] = Field(
        default="steps", description="measured steps, or steps composed of measured operations or kernels"
    )
    decode: ErrorFigures
    decode_bands: dict[str, ErrorFigures] = Field(default_factory=dict)
    prefill: ErrorFigures
    mixed: ErrorFigures
    noise_floor: dict[str, float] = Field(
        default_factory=dict, description="mean absolute deviation of repeats of one step, by regime"
    )
    forms: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="held-out mean absolute error of every form tried, by regime"
    )

    @model_serializer(mode="wrap")
    def _without_empty(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What was not measured is not written."""
        content: dict[str, Any] = serialise(self)
        return {key: value for key, value in content.items() if value or key not in ("noise_floor", "forms")}

    def summary(self) -> str:
        """One line for people: the mean absolute error of each regime, and of what."""
        parts = {"decode": self.decode, "prefill": self.prefill, "mixed": self.mixed}
        shares = ", ".join(f"{name} {100 * part.mape:.1f} %" for name, part in parts.items() if part.num_steps)
        return f"{shares} ({'held out' if self.against == 'steps' else 'fit to composed tables'})"


class RealRuns(Strict):
    """Whole runs on a real server beside their simulation: relative errors of means, lowest and highest."""

    runs: str = Field(description="which runs, and where they are told")
    mean_ttft: tuple[float, float] = Field(strict=False)
    mean_tpot: tuple[float, float] = Field(strict=False)

    def summary(self) -> str:
        """One line for people."""
        return f"real runs: mean TTFT {span(self.mean_ttft)}, mean TPOT {span(self.mean_tpot)} ({self.runs})"


def span(errors: tuple[float, float]) -> str:
    """`-50 to -37 %`; one figure where both are the same, small ones with a digit more."""
    shown = [f"{100 * error:+.{0 if abs(error) > 0.02 else 1}f}" for error in dict.fromkeys(errors)]
    return f"{' to '.join(shown)} %"


class Link(Strict):
    """Latency of a call, and bandwidth in one direction."""

    latency_s: float = Field(gt=0, le=1, allow_inf_nan=False)
    bandwidth_bytes_per_s: float = Field(gt=0, le=1e15, allow_inf_nan=False)

    def text(self) -> str:
        """`40 us and 16 GB/s`."""
        return f"{1e6 * self.latency_s:g} us and {self.bandwidth_bytes_per_s / 1e9:g} GB/s"


class GapFigures(Strict):
    """Gaps between updates, replayed along the recorded batches by a fit that had not seen them."""

    number: Count
    mean_ms: float
    error_ms: float = Field(description="mean |error|")
    noise_ms: float | None = Field(
        default=None, description="mean distance of gaps from the mean of those alike: no model can beat it"
    )
    total: float = Field(description="predicted over real sum, less 1")


class RecorderFit(Strict):
    """A fit from every step of one server."""

    files: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    steps: Count
    requests: Count
    recorded_s: float = Field(ge=0, description="from the first step to the last, all files together")
    has_device_times: bool = Field(description="by the GPU's own clock; else by when the thread's waits ended")
    device_shows: dict[str, float] = Field(description="share of the steps of a regime whose device time shows")
    launches: dict[str, Count] = Field(description="steps by kind of launch")
    error: FitError = Field(description="of the device's times, held out")
    gaps: GapFigures | None = Field(
        default=None, description="held out; null: the file is too short to leave a part out"
    )
    taken: dict[str, str] = Field(
        default_factory=dict, description="what the files did not tell, and what stands there"
    )
    max_num_seqs: int | None = Field(default=None, gt=0)
    max_num_batched_tokens: int | None = Field(default=None, gt=0)
    async_scheduling: bool
    range: MeasuredRange

    def summary(self) -> str:
        """One line for people."""
        what = f"fitted from a recorder's files ({self.steps:,} steps, {self.requests:,} requests)"
        if self.gaps is not None:
            floor = "" if self.gaps.noise_ms is None else f", of which no model can tell {self.gaps.noise_ms:.2f}"
            what += (
                f"; gaps between tokens, held out: {self.gaps.error_ms:.2f} of {self.gaps.mean_ms:.2f} ms off{floor}, "
                f"their sum {100 * self.gaps.total:+.1f} %"
            )
        return f"{what}; not told: {', '.join(self.taken)}" if self.taken else what


HARDLY_TOLD = 0.5  # a standard error that large, over the value
Pair = Annotated[tuple[Count, Count], Field(strict=False)]


class MeanErrors(Strict):
    """Simulated over recorded means, less 1."""

    ttft: float
    tpot: float
    e2el: float


class SeenRun(Strict):
    """One result that was fitted on; `predicted` is how far the other ones alone predict it."""

    file: str
    requests: Count
    steps: Count
    max_concurrency: int | None = None
    batch: Pair = Field(description="decodes of a step, 5 to 95 %")
    prompt_tokens: Pair
    prefill_steps: Count
    fitted: MeanErrors
    predicted: MeanErrors | None = None


class StreamFit(Strict):
    """A fit from the streams of benchmark results."""

    runs: Annotated[tuple[SeenRun, ...], Field(strict=False, min_length=1)]
    halves: float | None = Field(
        description="time of the second halves' steps, predicted by the first, over real, less 1"
    )
    sure: dict[str, float] = Field(description="standard error over value, by part; above 0.5: hardly told")
    taken: dict[str, str] = Field(description="parts that the streams did not tell, and where they are from")
    warnings: Annotated[tuple[str, ...], Field(strict=False)] = ()
    max_num_seqs: int | None = Field(default=None, gt=0, description="the server's, where it was said or reached")
    max_num_batched_tokens: int = Field(gt=0, description="the server's, said or read off the steps")
    async_scheduling: bool
    kv_tokens: Count = Field(description="most tokens that were in the KV cache at once")
    range: MeasuredRange

    def summary(self) -> str:
        """One line for people."""
        requests, steps = sum(run.requests for run in self.runs), sum(run.steps for run in self.runs)
        what = f"fitted from the streams of {len(self.runs)} results ({requests:,} requests, {steps:,} steps)"
        predicted = [run.predicted for run in self.runs if run.predicted is not None]
        if predicted:
            shares = ", ".join(
                f"{name} {span((min(values), max(values)))}"
                for name, values in (
                    ("mean TTFT", [each.ttft for each in predicted]),
                    ("mean TPOT", [each.tpot for each in predicted]),
                )
            )
            what += f"; each predicted from the others: {shares}"
        return f"{what}; not told: {', '.join(self.taken)}" if self.taken else what
