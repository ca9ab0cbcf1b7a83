"""The `step_time` of a profile: two forms, checked when read, each making a cost model; and how steps are spread."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from simbatch.sim.clock import to_ps
from simbatch.sim.cost.host import NoiseDraws, WindowCost, ratio_table
from simbatch.sim.cost.model import (
    CostModel,
    LinearCost,
    PiecewiseLinear,
    TwoRegimeCost,
    attention_of,
    step_ps_alike,
)
from simbatch.sim.json_values import Strict

# An hour: no step lasts longer, and sums of such steps stay inside 64 bits.
MAX_STEP_S = 3600.0
PADDED = "whether the number of tokens is padded to the next CUDA graph's (a capture size) before it is costed"

Seconds = Annotated[float, Field(ge=0, le=MAX_STEP_S, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(gt=0, le=1000)]
MEAN_TOLERANCE = 1e-3  # of the mean of ratios


class LinearStepTime(Strict):
    """base + per_prefill_token * P + per_decode_seq * n + per_context_token * context (computed before + scheduled)."""

    form: Literal["linear"] = "linear"
    padded: bool = Field(default=False, description=PADDED)
    base_s: Seconds = Field(description="cost of any step, s")
    per_prefill_token_s: Seconds = Field(default=0.0, description="per scheduled token that is not a decode, s")
    per_decode_seq_s: Seconds = Field(default=0.0, description="per decode, s")
    per_context_token_s: Seconds = Field(
        default=0.0, description="per token of context (computed before + scheduled now, over all entries), s"
    )

    @model_validator(mode="after")
    def _positive(self) -> LinearStepTime:
        _check_positive(self.cost_model())
        return self

    def cost_model(self, capture_sizes: Sequence[int] = ()) -> LinearCost:
        """The cost model, rounded to ps; `capture_sizes` rise, and are heeded where steps are padded."""
        return LinearCost(
            base_ps=to_ps(self.base_s),
            per_prefill_token_ps=to_ps(self.per_prefill_token_s),
            per_decode_seq_ps=to_ps(self.per_decode_seq_s),
            per_context_token_ps=to_ps(self.per_context_token_s),
            capture_sizes=tuple(capture_sizes) if self.padded else (),
        )


class Knots(Strict):
    """A function of a count, linear between its knots and above them, constant below them."""

    count: Annotated[tuple[Count, ...], Field(strict=False, min_length=1, max_length=4096)]
    time_s: Annotated[tuple[Seconds, ...], Field(strict=False, min_length=1, max_length=4096)]

    @model_validator(mode="after")
    def _rises(self) -> Knots:
        if len(self.count) != len(self.time_s):
            raise ValueError(f"count and time_s must be of one length, not {len(self.count)} and {len(self.time_s)}")
        if any(b <= a for a, b in pairwise(self.count)):
            raise ValueError("count must rise from knot to knot")
        if any(b < a for a, b in pairwise(self.time_s)):
            raise ValueError("time_s must not fall from knot to knot: more work never takes less time")
        return self

    def function(self, capture_sizes: Sequence[int] = ()) -> PiecewiseLinear:
        """The function, rounded to ps, of counts padded to the next of `capture_sizes`."""
        return PiecewiseLinear(self.count, [to_ps(value) for value in self.time_s], capture_sizes)


class DecodeStepTime(Strict):
    """A decode-only step: seqs(n) + per_context_token * context."""

    seqs: Knots = Field(description="by the number of decodes, without their context")
    per_context_token_s: Seconds = Field(description="per token computed before, over all decodes, s")


class MixedStepTime(Strict):
    """A step with any prefill: its tokens, decodes, contexts and attention, each with a term (`TwoRegimeCost`)."""

    tokens: Knots = Field(description="by the number of scheduled tokens, prefill and decode")
    per_decode_seq_s: Seconds = Field(description="per decode, on top of its token, s")
    per_seq_token_s: Seconds = Field(default=0.0, description="per decode and prefill token, s")
    per_context_token_s: Seconds = Field(description="per token computed before, over all decodes, s")
    per_prefill_context_token_s: Seconds = Field(default=0.0, description="per h + q of a prefill of q after h, s")
    per_attention_unit_s: Seconds = Field(description="per q * (2h + q) of a prefill of q tokens after h, s")


class WindowStepTime(Strict):
    """Layers that look at a window of the newest tokens: of a context only what is inside it costs."""

    size_tokens: int = Field(gt=0, le=2**31, description="of the window")
    decode_per_token_s: Seconds = Field(description="per token inside a decode's window, in a decode-only step, s")
    mixed_per_token_s: Seconds = Field(description="the same in a step with a prefill, s")
    per_attention_unit_s: Seconds = Field(
        description="per q * (2h + q) of a prefill of q tokens after h, each looking back at a window, s"
    )

    def windows(self) -> WindowCost:
        """Rounded to ps."""
        decode_ps, mixed_ps = to_ps(self.decode_per_token_s), to_ps(self.mixed_per_token_s)
        return WindowCost(self.size_tokens, decode_ps, mixed_ps, attention_of(self.per_attention_unit_s))


class TwoRegimeStepTime(Strict):
    """Decode-only steps and steps with any prefill, each with its own terms."""

    form: Literal["two_regime"]
    padded: bool = Field(default=False, description=PADDED)
    decode: DecodeStepTime
    mixed: MixedStepTime
    window: WindowStepTime | None = Field(default=None, description="what layers with a window add")

    @model_validator(mode="after")
    def _positive(self) -> TwoRegimeStepTime:
        _check_positive(self.cost_model())
        return self

    def cost_model(self, capture_sizes: Sequence[int] = ()) -> TwoRegimeCost:
        """The cost model, rounded to ps; `capture_sizes` rise, and are heeded where steps are padded."""
        mixed, sizes = self.mixed, capture_sizes if self.padded else ()
        return TwoRegimeCost(
            decode=self.decode.seqs.function(sizes),
            decode_context_ps=to_ps(self.decode.per_context_token_s),
            tokens=mixed.tokens.function(sizes),
            seq_ps=to_ps(mixed.per_decode_seq_s),
            seq_token_ps=to_ps(mixed.per_seq_token_s),
            context_ps=to_ps(mixed.per_context_token_s),
            prefill_context_ps=to_ps(mixed.per_prefill_context_token_s),
            attention_s=mixed.per_attention_unit_s,
            windows=None if self.window is None else self.window.windows(),
        )


def _form_of(value: Any) -> Any:
    return value.get("form", "linear") if isinstance(value, dict) else getattr(value, "form", "linear")


# What is written inside a scenario needs no `form`: it is linear then.
StepTime = Annotated[
    Annotated[LinearStepTime, Tag("linear")] | Annotated[TwoRegimeStepTime, Tag("two_regime")],
    Discriminator(
        _form_of,
        custom_error_type="form",
        custom_error_message="form must be linear or two_regime",
    ),
]


def _check_positive(cost: CostModel) -> None:
    """No term is negative, so the smallest steps show whether any step can take no time."""
    smallest: Sequence[tuple[str, int]] = (
        ("a decode of one token", step_ps_alike(cost, 1, 1)),
        ("a prefill of one token", step_ps_alike(cost, 0, 0, 1, 1, 1)),
    )
    for what, duration in smallest:
        if duration <= 0:
            raise ValueError(f"a step time must be positive, and {what} takes {duration} ps: give it a base")


class Ratios(Strict):
    """Quantiles of measured over predicted time, linear in between; the mean is 1, so that totals stay."""

    share: Annotated[tuple[Share, ...], Field(strict=False, min_length=2, max_length=4096)]
    ratio: Annotated[tuple[Ratio, ...], Field(strict=False, min_length=2, max_length=4096)]

    @model_validator(mode="after")
    def _is_a_distribution(self) -> Ratios:
        if len(self.share) != len(self.ratio):
            raise ValueError(f"share and ratio must be of one length, not {len(self.share)} and {len(self.ratio)}")
        if self.share[0] != 0 or self.share[-1] != 1 or any(b <= a for a, b in pairwise(self.share)):
            raise ValueError("share must rise from 0 to 1")
        if any(b < a for a, b in pairwise(self.ratio)):
            raise ValueError("ratio must not fall")
        if abs(self.mean - 1) > MEAN_TOLERANCE:
            raise ValueError(f"the mean ratio must be 1, not {self.mean:.4f}: divide every ratio by that")
        return self

    @property
    def mean(self) -> float:
        """Mean of the distribution."""
        pairs = pairwise(zip(self.share, self.ratio, strict=True))
        return sum((p1 - p0) * (r0 + r1) / 2 for (p0, r0), (p1, r1) in pairs)

    def table(self) -> list[int]:
        """Equally likely ratios as integers, their mean 1 to the last bit."""
        return ratio_table(self.share, self.ratio)


class StepNoise(Strict):
    """The spread of decode-only steps and of steps with prefills."""

    decode: Ratios
    mixed: Ratios

    def draws(self, seed: int, replica: int = 0) -> NoiseDraws:
        """Draws for one run of one replica."""
        return NoiseDraws(self.decode.table(), self.mixed.table(), seed, replica)
