"""The `sessions` section of a workload: users and agents whose turns wait for answers, drawn from distributions.

Distributions of prompt and output lengths are pydantic models that draw, here for all workloads.
`mean` and `cv` describe the distribution itself. A draw is rounded to a whole number of tokens and then set to `min`
or `max` when it lies outside (`min` is at least 1), so clipping moves the mean of what is drawn.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from simbatch.sim.json_values import MAX_TOKENS, Count, Mistake, Seconds, Share, Strict, Tokens, refuse, rule_error
from simbatch.sim.workload.arrivals import AllAtOnce, Arrival, ClosedLoop
from simbatch.sim.workload.formats import (
    CHARS_PER_TOKEN,
    TOKENIZER,
    Between,
    CharsPerToken,
    OnEmpty,
    TokenizerFile,
    TraceColumns,
    TraceFormat,
)

MeanTokens = Annotated[float, Field(gt=0, le=MAX_TOKENS)]
Variation = Annotated[float, Field(ge=0, le=100)]
_MIN = "shorter draws are set to it, tokens"
_MAX = "longer draws are set to it, tokens"


class _Clipped(Strict):
    min: Tokens | None = Field(default=None, description=_MIN)
    max: Tokens | None = Field(default=None, description=_MAX)

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            refuse(self, [Mistake("min", f"must be at most max ({self.max})", "swap them or lower it")])
        return self


class FixedLength(Strict):
    """Always the same length."""

    distribution: Literal["fixed"]
    mean: MeanTokens = Field(description="the length, tokens")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.mean.is_integer():
            refuse(self, [Mistake("mean", "a fixed length must be a whole number of tokens", "round it")])
        return self


class Uniform(_Clipped):
    """Every whole length from `min` to `max` alike, or around `mean` with the width that `cv` gives."""

    distribution: Literal["uniform"]
    mean: MeanTokens | None = Field(default=None, description="mean length, tokens; with cv, instead of min and max")
    cv: Variation | None = Field(default=None, description="standard deviation / mean, at most 0.577")
    min: Tokens | None = Field(default=None, description="shortest length, tokens")
    max: Tokens | None = Field(default=None, description="longest length, tokens")

    @model_validator(mode="after")
    def _check(self) -> Self:
        by_bounds = self.min is not None and self.max is not None
        if self.cv is not None:
            mistakes = self._check_mean_and_cv(self.cv, by_bounds)
        elif not by_bounds:
            missing = [key for key in ("min", "max") if getattr(self, key) is None]
            mistakes = [Mistake(key) for key in missing]
        elif self.mean is not None and self.min is not None and self.max is not None:
            middle = (self.min + self.max) / 2
            rule = f"must be the middle of min and max ({middle:g})"
            mistakes = [] if self.mean == middle else [Mistake("mean", rule, "leave mean out")]
        else:
            mistakes = []
        refuse(self, mistakes)
        return self

    def _check_mean_and_cv(self, cv: float, by_bounds: bool) -> list[Mistake]:
        if by_bounds:
            return [Mistake("cv", "min and max already give the width", "leave cv out, or min and max")]
        if self.mean is None:
            return [Mistake("mean")]
        if cv > 1 / math.sqrt(3):
            return [Mistake("cv", "a uniform distribution from 0 has 0.577, and none has more", "lower it")]
        return []


class Lognormal(_Clipped):
    """Lognormal with exactly this mean and coefficient of variation before clipping."""

    distribution: Literal["lognormal"]
    mean: MeanTokens = Field(description="mean length before clipping, tokens")
    cv: Variation = Field(description="standard deviation / mean, before clipping")


class Geometric(_Clipped):
    """Each further token with the same probability: 1, 2, 3, ... with this mean (ours, for theory)."""

    distribution: Literal["geometric"]
    mean: Annotated[float, Field(ge=1, le=MAX_TOKENS)] = Field(description="mean length before clipping, tokens")


class Empirical(_Clipped):
    """Drawn with replacement from a trace's own lengths: its prompts for `prompt_len`, its outputs for `output_len`."""

    distribution: Literal["empirical"]
    path: Annotated[str, Field(min_length=1)] = Field(description="a trace; a relative path starts at the scenario")
    format: TraceFormat | None = Field(default=None, description="the trace's format (default: detected)")
    columns: TraceColumns | None = Field(default=None, description="names of columns in that file")
    limit: Count | None = Field(default=None, description="use the first so many requests only")
    between: Between = Field(default=None, description="[START, END]: only rows of this time, by the file's own clock")
    on_empty: OnEmpty = Field(default="error", description="rows without output tokens: error, or skip")
    chars_per_token: CharsPerToken = Field(default=None, description=CHARS_PER_TOKEN)
    tokenizer: TokenizerFile = Field(default=None, description=TOKENIZER)


_POINTS = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_POINT = "this share of the lengths is at most so many tokens"


class Quantiles(_Clipped):
    """Through these points, two or more (`p50: 800, p99: 6000`); lognormal between them and beyond the outer ones.

    With two points it is the lognormal distribution that has them.
    """

    distribution: Literal["quantiles"]
    p1: MeanTokens | None = Field(default=None, description=_POINT)
    p5: MeanTokens | None = Field(default=None, description=_POINT)
    p10: MeanTokens | None = Field(default=None, description=_POINT)
    p25: MeanTokens | None = Field(default=None, description=_POINT)
    p50: MeanTokens | None = Field(default=None, description=_POINT)
    p75: MeanTokens | None = Field(default=None, description=_POINT)
    p90: MeanTokens | None = Field(default=None, description=_POINT)
    p95: MeanTokens | None = Field(default=None, description=_POINT)
    p99: MeanTokens | None = Field(default=None, description=_POINT)

    @model_validator(mode="after")
    def _check(self) -> Self:
        points = self.points()
        if len(points) < 2:
            rule = "two points are needed, such as p50 and p99"
            refuse(self, [Mistake("p99" if self.p99 is None else "p50", rule, "add it, or take distribution: fixed")])
        pairs = pairwise(points)
        falling = [(percent, before) for (_, before), (percent, tokens) in pairs if tokens < before]
        refuse(
            self,
            [
                Mistake(f"p{percent}", f"must be at least {before:g}, as the point before", "raise it")
                for percent, before in falling
            ],
        )
        return self

    def points(self) -> list[tuple[int, float]]:
        """Percent and tokens, in order of percent."""
        given = ((percent, getattr(self, f"p{percent}")) for percent in _POINTS)
        return [(percent, tokens) for percent, tokens in given if tokens is not None]


def _not_a_number(value: object) -> object:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise rule_error("must be a mapping with a distribution", f"write {{distribution: fixed, mean: {value:g}}}")
    return value


Length = Annotated[
    FixedLength | Uniform | Lognormal | Geometric | Empirical | Quantiles,
    Field(discriminator="distribution"),
    BeforeValidator(_not_a_number),
]


class LognormalTime(Strict):
    """Lognormal with exactly this mean and coefficient of variation before clipping."""

    distribution: Literal["lognormal"]
    mean: Seconds = Field(gt=0, description="mean before clipping, s")
    cv: Annotated[float, Field(ge=0, le=100)] = Field(description="standard deviation / mean, before clipping")
    max: Seconds | None = Field(default=None, description="longer draws are set to it, s")


class ExponentialTime(Strict):
    """Exponential: as long again from any moment on."""

    distribution: Literal["exponential"]
    mean: Seconds = Field(gt=0, description="mean before clipping, s")
    max: Seconds | None = Field(default=None, description="longer draws are set to it, s")


class UniformTime(Strict):
    """Every time from `min` to `max` alike."""

    distribution: Literal["uniform"]
    min: Seconds = Field(description="shortest, s")
    max: Seconds = Field(description="longest, s")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            refuse(self, [Mistake("min", f"must be at most max ({self.max:g})", "swap them or lower it")])
        return self


Time = Seconds | Annotated[LognormalTime | ExponentialTime | UniformTime, Field(discriminator="distribution")]


class Branch(Strict):
    """Turns that fan out: an agent sends sub-requests in parallel, and goes on when all have ended."""

    share: Share = Field(description="share of the turns that do, of those with a turn behind them")
    width: Length = Field(description="distribution of how many sub-requests there are")


class Sessions(Strict):
    """So many sessions, each of some turns; a turn goes out when the one before it has ended and its delay has passed.

    A prompt is the system prompt, all that was said before, and what is new.
    """

    num_sessions: Count = Field(description="how many sessions there are")
    arrival: Arrival | None = Field(default=None, description="when they begin: request_rate is sessions per second")
    concurrency: Count | None = Field(
        default=None, description="users: so many sessions at once, the next begins when another has ended"
    )
    turns: Length = Field(description="distribution of the turns of a session")
    new_tokens: Length = Field(description="distribution of what is new in a turn's prompt, tokens")
    output_len: Length = Field(description="distribution of the outputs' lengths, tokens")
    system_prompt_tokens: Annotated[int, Field(ge=0, le=2**20)] = Field(
        default=0, description="tokens that the first prompt of a session begins with"
    )
    num_system_prompts: Count = Field(default=1, description="how many different ones there are, drawn alike")
    think_time_s: Time | None = Field(default=None, description="a person's pause before a later turn, s")
    tool_time_s: Time | None = Field(default=None, description="how long a tool takes before a later turn, s")
    tool_share: Share | None = Field(
        default=None, description="share of the later turns that follow a tool; needed where there are both times"
    )
    branch: Branch | None = Field(default=None, description="turns that fan out into parallel sub-requests")
    max_context: Tokens | None = Field(
        default=None, description="a session ends before a prompt and its answer are longer, tokens"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        both = self.think_time_s is not None and self.tool_time_s is not None
        mistakes = []
        if (self.arrival is None) == (self.concurrency is None):
            rule, mend = "needs one of arrival and concurrency", "for example concurrency: 50"
            mistakes.append(Mistake("arrival", rule, mend))
        if isinstance(self.arrival, ClosedLoop):
            mistakes.append(Mistake("arrival", "users are sessions.concurrency", "write concurrency: USERS instead"))
        elif getattr(self.arrival, "request_rate", 0) is None:
            mistakes.append(Mistake("arrival", "needs request_rate, sessions per second", "add arrival.request_rate"))
        if both and self.tool_share is None:
            mistakes.append(
                Mistake("tool_share", "tool_share is needed with both think_time_s and tool_time_s", "add it")
            )
        if not both and self.tool_share is not None:
            rule = "says nothing without both think_time_s and tool_time_s"
            mistakes.append(Mistake("tool_share", rule, "leave it out, or add the other time"))
        refuse(self, mistakes)
        return self

    def begins(self) -> Arrival:
        """When sessions begin: all at once where users take them in turn."""
        return self.arrival or AllAtOnce(process="all_at_once")
